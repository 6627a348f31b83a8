"""Files of any name are worked on, and no command passes on to the terminal what is in their names."""

import ast
import json
import os
from pathlib import Path

import datasets
import pytest
from noise_photo import noise_photo

from alit_hf import cli


NAMES = ["a[1].png", "esc\x1b[31m.png", "line\nalit: error: no.png", "\udcff.png"]
BROKEN = ["broken\x1b]0;title\a.png", "broken\n\udcff.png"]
SHOWN = ["a[1].png", r"esc\x1b[31m.png", r"line\nalit: error: no.png", r"\udcff.png"]
SHOWN_BROKEN = [r"broken\n\udcff.png", r"broken\x1b]0;title\x07.png"]


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "in\x1b[2J"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        noise_photo(number).save(folder / name, "PNG")
    for name in BROKEN:
        (folder / name).write_bytes(b"no picture")
    return folder


@pytest.fixture
def safely(alit, tiny_model):
    """Runs a command and checks what reaches the terminal."""

    def run(*arguments):
        result = alit(*arguments, "--model", tiny_model)
        assert "\x1b" not in result.out + result.err
        assert "Traceback" not in result.err
        return result

    return run


def failures(result) -> list[str]:
    return [line.rsplit("/", 1)[-1] for line in result.errors]


def test_encode_and_decode(safely, alit, pictures, tmp_path):
    result = safely("encode", pictures, "-o", tmp_path / "out\x1b", "--num-tokens", 4)
    assert (result.code, len(os.listdir(tmp_path / "out\x1b"))) == (1, len(NAMES))
    reason = "is not a picture in a format that can be read"
    assert failures(result) == [f"{name} {reason}" for name in SHOWN_BROKEN]
    result = safely("decode", tmp_path / "out\x1b", "-o", tmp_path / "decoded")
    assert (result.code, set(os.listdir(tmp_path / "decoded"))) == (0, set(NAMES))
    for name, shown in zip(NAMES, SHOWN, strict=True):
        result = safely("encode", pictures / name, "-o", tmp_path / "one", "--num-tokens", 4)
        assert f"/{shown.removesuffix('.png')}.alit: 4 tokens, 36 bytes\n" in result.out
        assert r"\x1b" in alit("info", tmp_path / "out\x1b" / f"{name.removesuffix('.png')}.alit").out


@pytest.mark.parametrize("name", NAMES[1:])
def test_explore(safely, pictures, tmp_path, name):
    assert safely("explore", pictures / name, "-o", tmp_path / "figure.svg").code == 0
    assert b"\x1b" not in (tmp_path / "figure.svg").read_bytes()


def test_tokenize(safely, pictures, tmp_path):
    result = safely("tokenize", pictures, "-o", tmp_path / "out", "--num-tokens", 4)
    assert (result.code, len(result.errors)) == (1, 1)
    codes = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert codes["file_name"][:] == SHOWN
    listed = [json.loads(line) for line in (tmp_path / "out" / "undecodable.jsonl").read_text().splitlines()]
    assert [image["file_name"] for image in listed] == SHOWN_BROKEN
    assert all(image["reason"].startswith(f"{image['file_name']} is not a picture") for image in listed)
    for file in ("README.md", "tokenization.json"):
        text = (tmp_path / "out" / file).read_text()
        assert "\x1b" not in text
        assert str(tmp_path) not in text


def test_evaluate(safely, pictures, tmp_path):
    figure = tmp_path / "worst.svg"
    output = ["--output", tmp_path / "results.json", "--worst-figure", figure, "--lpips", "none"]
    result = safely("evaluate", "--data", pictures, *output)
    assert result.code == 1
    reason = "is not a picture in a format that can be read"
    assert result.errors == [f"alit: error: {name} {reason}" for name in SHOWN_BROKEN]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["data"]["sources"] == [r"in\x1b[2J"]
    assert {image["image"] for image in results["worst"]} == set(SHOWN)
    assert str(tmp_path) not in json.dumps(results)
    assert b"\x1b" not in figure.read_bytes()


def test_one_file_alone_prints():
    printing = {
        path.name
        for path in Path(cli.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    }
    assert printing == {"printing.py"}


def test_wrong_use(safely, pictures, tmp_path):
    for arguments in (
        ["encode", pictures / "missing\x1b.png", "-o", tmp_path / "out"],
        ["encode", pictures, "-o", pictures],
        ["decode", pictures, "-o", tmp_path / "out"],
        ["tokenize", pictures, "-o", pictures / "out"],
        ["explore", pictures / NAMES[0], "-o", pictures / "out.txt"],
    ):
        result = safely(*arguments)
        assert (result.code, result.out, len(result.errors)) == (2, "", 1)
        assert r"\x1b" in result.err
