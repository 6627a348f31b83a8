"""The program as a whole: exit codes, what goes to which stream, and how it ends when it is cut short."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

import alit_hf
from alit_hf.cli import encode, main
from alit_hf.cli.errors import FileError


ALIT = [sys.executable, "-m", "alit_hf.cli"]


def test_version(alit):
    assert alit("--version") == (0, f"alit {alit_hf.__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["encode"], ["decode"], ["explore"], ["info"], ["convert"]])
def test_help(alit, command):
    result = alit(*command, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("usage: alit")


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["--frobnicate"], ["info", "a", "b"]])
def test_wrong_use_is_one_line(alit, arguments):
    result = alit(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("alit: error: ")
    assert result.err.count("\n") == 1


def test_nothing_heavy_is_imported_before_arguments_are_parsed():
    # The package itself is left out: what it imports is not the program's choice.
    code = """
import sys, types
package = types.ModuleType("alit_hf")
package.__path__, package.__version__ = [sys.argv[1]], "0"
sys.modules["alit_hf"] = package
from alit_hf.cli import main
codes = [main(["--help"]), main(["encode", "missing", "-o", "x"]), main(["decode", "missing", "-o", "x"])]
heavy = {"torch", "transformers", "diffusers", "matplotlib", "numpy", "PIL"} & set(sys.modules)
sys.exit(f"{codes} {heavy}" if codes != [0, 2, 2] or heavy else 0)
"""
    folder = str(Path(alit_hf.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_interruption_is_no_traceback(alit, photos, tmp_path, tiny_model, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("alit_hf.model.image_io.open_image", interrupt)
    result = alit("encode", photos, "-o", tmp_path / "out", "--model", tiny_model)
    assert (result.code, result.out) == (130, "")
    assert result.errors == ["alit: error: interrupted"]
    assert "Traceback" not in result.err


def test_error_is_one_line_however_long_its_text(alit, monkeypatch):
    def fail(arguments):
        raise FileError("first\nsecond\r\n   third")

    monkeypatch.setattr(encode, "run", fail)
    assert alit("encode", "x", "-o", "y") == (1, "", "alit: error: first second third\n")


def test_name_that_the_terminal_has_no_letters_for(photos, tmp_path, tiny_model, monkeypatch):
    (photos / "a.png").rename(photos / "café.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    arguments = ["encode", photos / "café.png", "-o", tmp_path / "out", "--num-tokens", "4", "--model", tiny_model]
    assert main([str(argument) for argument in arguments]) == 0
    assert rb"caf\xe9.alit: 4 tokens" in terminal.buffer.getvalue()


def test_process_ends_with_the_exit_code(photos, tmp_path, tiny_model):
    (photos / "broken.png").write_bytes(b"broken")
    arguments = ["encode", photos, "-o", tmp_path / "out", "--num-tokens", "4", "--model", tiny_model]
    done = subprocess.run([*ALIT, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"alit: error: {photos / 'broken.png'} is not a picture")
    assert "5 files" in done.stdout


def test_reader_that_has_gone_is_no_traceback(tiny_model):
    process = subprocess.Popen([*ALIT, "info", tiny_model], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=100) == 141
