"""What a terminal shows: progress of every command that can take long, and nothing of it with `--quiet`."""

import os
import pty
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alit_hf.cli import main
from alit_hf.utils.progress import _Pace


PAGE = Path(__file__).parents[2] / "docs" / "scripting.md"


@pytest.fixture
def in_terminal(monkeypatch) -> Callable[..., str]:
    """Runs `alit` with stderr in a terminal, in which bars are drawn from the start; gives what that has shown."""
    monkeypatch.setattr("alit_hf.utils.progress._IN_TERMINAL", _Pace(0.0, 1.0))

    def run(*arguments: object) -> str:
        outside, inside = pty.openpty()
        shown: list[bytes] = []
        watching = threading.Thread(target=lambda: shown.extend(_read(outside)))
        watching.start()
        with open(inside, "w") as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            code = main([str(argument) for argument in arguments])
        watching.join()
        os.close(outside)
        text = b"".join(shown).decode()
        assert code == 0, text
        return text

    return run


def _read(terminal: int) -> Iterator[bytes]:
    try:
        while read := os.read(terminal, 2**16):
            yield read
    except OSError:  # how the end of a terminal is told
        return


@pytest.fixture
def code(photos, tmp_path, tiny_model) -> str:
    arguments = ["encode", photos / "a.png", "-o", tmp_path / "a.alit", "--num-tokens", 8, "--model", tiny_model]
    assert main([str(argument) for argument in arguments]) == 0
    return str(tmp_path / "a.alit")


COMMANDS = {
    "encode": (["encode", "PHOTOS/a.png", "-o", "OUT.alit"], ["loading", "fingerprint", "encoding:", "/1 ["]),
    "decode": (["decode", "CODE", "-o", "OUT.png"], ["loading", "decoding: 100%", "| 1/1 ["]),
    "explore": (["explore", "PHOTOS/a.png", "-o", "OUT.png"], ["loading", "exploring: 100%"]),
    "info": (["info", "MODEL"], ["loading", "fingerprint: 100%"]),
    "tokenize": (["tokenize", "PHOTOS", "-o", "OUT"], ["loading", "tokenizing: 100%", "| 5/5 ["]),
    "evaluate": (
        ["evaluate", "--data", "PHOTOS", "--lpips", "none", "--output", "OUT.json"],
        ["loading", "evaluating: 100%", "| 5/5 ["],
    ),
    "analyze": (
        ["analyze", "thresholds", "--data", "PHOTOS", "--output", "OUT", "--limit", "5"],
        ["loading", "thresholds: 100%", "| 5/5 ["],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_progress_and_quiet(in_terminal, photos, tmp_path, tiny_model, code, capfd, command):
    arguments, expected = COMMANDS[command]
    places = {"PHOTOS": str(photos), "OUT": str(tmp_path / "out"), "CODE": code, "MODEL": tiny_model}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    if command != "info":
        arguments += ["--model", tiny_model]
    shown = in_terminal(*arguments)
    position = 0
    for text in expected:
        position = shown.find(text, position)
        assert position >= 0, (text, shown)
    assert capfd.readouterr().out != ""
    assert in_terminal(*arguments, "--quiet") == ""
    assert capfd.readouterr().out == ""


def test_quiet_keeps_errors_and_json(alit, photos, tmp_path, tiny_model):
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "notes.txt").touch()
    arguments = ["encode", photos, "-o", tmp_path / "out", "--num-tokens", 4, "--model", tiny_model, "--quiet"]
    result = alit(*arguments)
    assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1)
    assert result.errors[0].startswith(f"alit: error: {photos / 'broken.png'} is not a picture")
    result = alit(*arguments, "--json")
    assert (result.code, len(result.json["files"]), len(result.err.splitlines())) == (1, 5, 1)


def test_the_page_has_the_names_of_json(alit, photos, tmp_path, tiny_model, code):
    model = ["--model", tiny_model]
    (photos / "broken.png").write_bytes(b"no picture")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.alit").touch()
    commands = {
        "`encode`": ["encode", photos, "-o", tmp_path / "codes", *model],
        "`decode`": ["decode", code, tmp_path / "in", "-o", tmp_path / "pictures", *model],
        "`info` of a file": ["info", code],
        "`info` of a model": ["info", tiny_model],
        "`evaluate`": ["evaluate", "--data", photos, "--lpips", "none", "--output", tmp_path / "r.json", *model],
        "`tokenize`": ["tokenize", photos, "-o", tmp_path / "tokens", *model],
    }
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    described = {row[0].removeprefix("| "): row[1] for row in rows if len(row) == 2}
    for command, arguments in commands.items():
        names = set(re.findall(r"`([a-z0-9_]+)`", described[command])) - {"vqgan", "kl"}
        results = alit(*arguments, "--json").json
        assert names == (set(results) if command == "`evaluate`" else set(_names(results))), command


def _names(results) -> Iterator[str]:
    if isinstance(results, dict):
        yield from (name for name in results if not name.isdecimal())
        results = list(results.values())
    for value in results if isinstance(results, list) else ():
        yield from _names(value)


def test_one_run_is_no_other(alit, tiny_model):
    """What a run in this process was asked to print does not concern the next one."""
    assert alit("info", tiny_model, "--quiet").out == ""
    assert alit("info", tiny_model, "--json").json["max_rollouts"] == 3
    assert alit("info", tiny_model).out.startswith("model ")
