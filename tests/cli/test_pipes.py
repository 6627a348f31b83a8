"""`-`: stdin and stdout in place of files; what goes to which of them, and where it ends."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from alit_hf.cli import main
from alit_hf.codes.token_file import TokenFile, model_fingerprint


ALIT = [sys.executable, "-m", "alit_hf.cli"]


@pytest.fixture
def pipe(capfdbinary, monkeypatch):
    """Runs `alit` with bytes in stdin; gives its exit code, stdout and stderr."""

    def run(stdin: bytes, *arguments: object) -> tuple[int, bytes, str]:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Unseekable(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return run


class Unseekable(io.BytesIO):
    """A pipe."""

    name = "<stdin>"

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")


@pytest.fixture
def code(photos, tmp_path, tiny_model) -> bytes:
    """An `.alit` file of `a.png`."""
    arguments = ["encode", photos / "a.png", "-o", tmp_path / "a.alit", "--num-tokens", "8", "--model", tiny_model]
    assert main([str(argument) for argument in arguments]) == 0
    return (tmp_path / "a.alit").read_bytes()


class TestBytes:
    def test_a_picture_from_stdin_is_the_code_of_the_file(self, pipe, photos, tiny_model, code):
        picture, model = (photos / "a.png").read_bytes(), ["--num-tokens", 8, "--model", tiny_model]
        assert pipe(picture, "encode", "-", *model) == (0, code, f"<stdout>: 8 tokens, {len(code)} bytes\n")
        assert pipe(picture, "encode", "-", "-o", "-", *model)[:2] == (0, code)

    def test_a_code_from_stdin_is_the_picture_of_the_file(self, pipe, tmp_path, tiny_model, code):
        assert pipe(b"", "decode", tmp_path / "a.alit", "-o", tmp_path / "a.png", "--model", tiny_model)[0] == 0
        picture = (tmp_path / "a.png").read_bytes()
        assert pipe(code, "decode", "-", "--model", tiny_model) == (0, picture, "<stdout>: 32x32\n")

    def test_one_side_may_be_a_file(self, pipe, photos, tmp_path, tiny_model, code):
        model = ["--model", tiny_model]
        assert pipe(code, "decode", "-", "-o", tmp_path / "new" / "a.JPG", *model)[:2] == (
            0,
            f"{tmp_path / 'new' / 'a.JPG'}: 32x32\n".encode(),
        )
        assert Image.open(tmp_path / "new" / "a.JPG").format == "JPEG"
        assert pipe(b"", "encode", photos / "a.png", "-o", "-", "--num-tokens", 8, *model)[:2] == (0, code)

    def test_info_reads_stdin(self, pipe, code):
        exit_code, out, err = pipe(code, "info", "-")
        assert (exit_code, err) == (0, "")
        assert out.decode().splitlines()[0] == f"file               <stdin>, {len(code)} bytes"

    def test_a_file_may_be_called_like_that(self, alit, photos, tmp_path, tiny_model, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (photos / "a.png").rename("-")
        assert alit("encode", "./-", "-o", "out/", "--num-tokens", 4, "--model", tiny_model).code == 0
        assert os.listdir("out") == ["-.alit"]

    @pytest.mark.parametrize("command", ["encode", "decode", "info"])
    def test_what_cannot_be_used_is_an_error_on_stderr(self, pipe, tiny_model, command):
        model = [] if command == "info" else ["--model", tiny_model]
        for stdin, problem in ((b"", "empty"), (b"something else", "no")):
            exit_code, out, err = pipe(stdin, command, "-", *model)
            assert (exit_code, out) == (1, b"")
            assert err.startswith("alit: error: <stdin>")
            assert problem in err

    def test_quiet_means_nothing_but_the_bytes(self, pipe, photos, tiny_model, code):
        picture = (photos / "a.png").read_bytes()
        arguments = ["encode", "-", "--num-tokens", 8, "--model", tiny_model, "--quiet"]
        assert pipe(picture, *arguments) == (0, code, "")


class TestWrongUse:
    """Nothing is read, loaded or written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["encode", "-", "a.png", "-o", "out"], "the input - is stdin, it must be the only input"),
            (
                ["encode", "-", "-o", "out"],
                "the output out must be a file name ending in .alit, as stdin has no",
            ),
            (["encode", "-", "-o", "sub/"], "the output sub/ must be a file name ending in .alit"),
            (["decode", "-", "-o", "a.alit"], "the output a.alit must be a file name ending in .png or .jpg"),
            (["encode", "sub", "-o", "-"], "the output - is stdout, which holds the output of one file"),
            (["encode", "a.png", "b.png", "-o", "-"], "the output - is stdout, which holds the output of one file"),
            (["encode", "missing.png", "-o", "-"], "missing.png does not exist"),
            (["encode", "a.png"], "the following arguments are required: -o/--output"),
            (["encode", "-", "--json"], "--json and the output would both go to stdout: name a file with --output"),
            (["decode", "a.alit", "-o", "-", "--json"], "--json and the output would both go to stdout"),
        ],
    )
    def test_is_refused(self, pipe, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sub").mkdir()
        for name in ("a.png", "b.png", "a.alit"):
            (tmp_path / name).touch()
        before = sorted(tmp_path.rglob("*"))
        code, out, err = pipe(b"something", *arguments)
        assert (code, out, err.count("\n")) == (2, b"", 1)
        assert message in err
        assert sorted(tmp_path.rglob("*")) == before
        assert sys.stdin.read() == "something"

    @pytest.mark.parametrize("arguments", [["encode", "-"], ["decode", "-"], ["info", "-"]])
    @pytest.mark.parametrize("stdin", ["terminal", "closed"])
    def test_a_stdin_that_brings_nothing(self, alit, monkeypatch, arguments, stdin):
        wrapper = io.TextIOWrapper(io.BytesIO())
        wrapper.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", wrapper if stdin == "terminal" else None)
        result = alit(*arguments)
        assert (result.code, result.out) == (2, "")
        assert f"the input - is stdin, which is {'a terminal' if stdin == 'terminal' else 'closed'}" in result.err

    def test_a_stdout_that_is_closed(self, alit, tmp_path, monkeypatch):
        (tmp_path / "a.png").touch()
        monkeypatch.setattr(sys, "stdout", None)
        assert main(["encode", str(tmp_path / "a.png"), "-o", "-"]) == 2
        assert main(["info", "--json"]) == 2


class TestProcesses:
    """As a shell runs them."""

    @pytest.mark.parametrize("command", ["encode", "decode"])
    def test_bytes_are_not_written_to_a_terminal(self, tmp_path, command):
        (tmp_path / "a").touch()
        terminal, inside = pty.openpty()
        done = subprocess.run([*ALIT, command, tmp_path / "a", "-o", "-"], stdout=inside, stderr=subprocess.PIPE)
        os.close(inside)
        with open(terminal, "rb", buffering=0) as shown, pytest.raises(OSError, match="Input/output error"):
            shown.read(1)
        assert done.returncode == 2
        assert done.stderr.decode() == (
            "alit: error: the output is binary and not written to a terminal: redirect it, or name a file with "
            "--output\n"
        )

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    def test_from_a_photo_to_a_picture(self, photos, tmp_path, tiny_model, loaded):
        script = 'cat "$1" | "$3" -m alit_hf.cli encode - --num-tokens 8 --model "$2" --quiet | tee "$4" | '
        script += '"$3" -m alit_hf.cli decode - --model "$2" --quiet'
        arguments = [photos / "a.png", tiny_model, sys.executable, tmp_path / "between.alit"]
        done = subprocess.run(["sh", "-c", script, "sh", *arguments], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        with Image.open(io.BytesIO(done.stdout)) as picture:
            assert (picture.format, picture.size) == ("PNG", (32, 32))
        tokens = TokenFile.load(tmp_path / "between.alit")
        assert (tokens.num_tokens, tokens.fingerprint) == (8, model_fingerprint(loaded[0]))

    @pytest.mark.parametrize("options", [["decode", "-o", "-"], ["info"], ["info", "--json"]])
    def test_a_reader_that_has_gone_is_no_error(self, tmp_path, tiny_model, code, monkeypatch, capfd, options):
        reader, writer = os.pipe()
        os.close(reader)
        model = ["--model", tiny_model] if "decode" in options else []
        with open(writer, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main([*options, str(tmp_path / "a.alit"), *model]) == 141
        # What Python does with stdout when it ends was no error either.
        assert capfd.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is full")
@pytest.mark.parametrize("options", [["info"], ["info", "--json"], ["decode", "-o", "-"]])
def test_a_full_disk_is_an_error(tmp_path, tiny_model, code, monkeypatch, capfd, options):
    monkeypatch.chdir(tmp_path)
    model = ["--model", tiny_model] if "decode" in options else []
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*options, "a.alit", *model]) == 1
    assert capfd.readouterr().err == "alit: error: /dev/full: No space left on device\n"


def test_a_stdout_that_is_closed_does_not_keep_from_the_work(photos, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    arguments = ["encode", photos / "a.png", "-o", tmp_path / "a.alit", "--num-tokens", "4", "--model", tiny_model]
    assert main([str(argument) for argument in arguments]) == 0
    assert TokenFile.load(tmp_path / "a.alit").num_tokens == 4
