"""The bash blocks of a page, run by bash, with the programs in this process: starting Python takes seconds."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO


# Each program sends its arguments, counted and ended by zero bytes, and waits for its exit code.
_FUNCTION = """
{name}() {{ printf '%s\\0' "$(($# + 1))" {name} "$@" >&{requests}; read -r code <&{answers}; return "$code"; }}
"""

Program = Callable[[Sequence[str]], int]
"""Takes arguments, without its own name, and gives the exit code."""


def run_bash(script: str, folder: Path, programs: Mapping[str, Program]) -> None:
    """
    Runs `script` in `folder`, which is also this process's working directory, and ends at the first failure.

    Raises:
        `AssertionError`: with what bash said, if the script fails.
    """
    requests, requests_in_bash = os.pipe()
    answers_in_bash, answers = os.pipe()
    functions = "".join(
        _FUNCTION.format(name=name, requests=requests_in_bash, answers=answers_in_bash) for name in programs
    )
    bash = subprocess.Popen(
        [shutil.which("bash"), "-euo", "pipefail", "-c", functions + script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(requests_in_bash, answers_in_bash),
    )
    os.close(requests_in_bash)
    os.close(answers_in_bash)
    said: list[bytes] = []
    listener = threading.Thread(target=lambda: said.append(bash.stdout.read()))
    listener.start()
    with open(requests, "rb") as incoming, open(answers, "wb", buffering=0) as outgoing:
        while count := _read_argument(incoming):
            name, *arguments = (_read_argument(incoming) for _ in range(int(count)))
            outgoing.write(b"%d\n" % programs[name](arguments))
    listener.join()
    assert bash.wait() == 0, f"{said[0].decode()}\nexit code {bash.returncode} of\n{script}"


def _read_argument(stream: BinaryIO) -> str:
    """Up to the next zero byte; empty at the end."""
    read = bytearray()
    while (byte := stream.read(1)) not in (b"", b"\0"):
        read += byte
    return read.decode()
