"""The bash blocks of a page, run by bash, with the programs in this process: starting them takes seconds."""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock


# Sends its arguments, stdin and stdout, and ends with the exit code that comes back.
_CLIENT = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
socket.send_fds(connection, ["\\0".join(sys.argv[2:]).encode()], [0, 1])
sys.exit(int(connection.recv(16)))
"""

Program = Callable[[Sequence[str]], int]
"""Takes arguments, without its own name, and gives the exit code."""


class _Call(NamedTuple):
    connection: socket.socket
    name: str
    arguments: list[str]
    stdout: int


def run_bash(script: str, folder: Path, programs: Mapping[str, Program]) -> None:
    """
    Runs `script` in `folder`, which is also this process's working directory, and ends at the first failure. Programs
    have the stdin and stdout that the script gives them.

    Raises:
        `AssertionError`: with what bash said, if the script fails.
    """
    with tempfile.TemporaryDirectory() as room, socket.socket(socket.AF_UNIX) as server:
        address = os.path.join(room, "programs")
        server.bind(address)
        server.listen()
        functions = "".join(
            f'{name}() {{ "$PAGE_PYTHON" -ISc "$PAGE_CLIENT" "$PAGE_PROGRAMS" {name} "$@"; }}\n' for name in programs
        )
        variables = {"PAGE_PYTHON": sys.executable, "PAGE_CLIENT": _CLIENT, "PAGE_PROGRAMS": address}
        # Its end is that of bash and of all that bash has started.
        end, held_by_bash = os.pipe()
        bash = subprocess.Popen(
            [shutil.which("bash"), "-euo", "pipefail", "-c", functions + script],
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[held_by_bash],
        )
        os.close(held_by_bash)
        said: list[bytes] = []
        listener = threading.Thread(target=lambda: said.append(bash.stdout.read()))
        listener.start()
        with open(end, "rb"):
            _serve(server, end, programs)
        listener.join()
    assert bash.wait() == 0, f"{said[0].decode()}\nexit code {bash.returncode} of\n{script}"


def _serve(server: socket.socket, end: int, programs: Mapping[str, Program]) -> None:
    calls: dict[int, _Call] = {}
    while True:
        # What is last in a pipe waits for what is first, whichever of them called first.
        ready = select.select([server, *calls, end], [], [])[0]
        if server in ready:
            connection, _ = server.accept()
            message, (stdin, stdout), _, _ = socket.recv_fds(connection, 2**16, 2)
            name, *arguments = message.decode().split("\0")
            calls[stdin] = _Call(connection, name, arguments, stdout)
        elif ready[0] != end:
            stdin = ready[0]
            call = calls.pop(stdin)
            with (
                call.connection,
                open(stdin, encoding="utf-8") as source,
                open(call.stdout, "w", encoding="utf-8") as target,
                mock.patch.object(sys, "stdin", source),
                contextlib.redirect_stdout(target),
            ):
                code = programs[call.name](call.arguments)
                target.close()
                call.connection.sendall(str(code).encode())
        else:
            return
