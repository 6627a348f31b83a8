"""`alit decode`: the picture that the code stands for, or an error that names the file."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from alit_hf.cli.decode import _save_picture
from alit_hf.codes.token_file import TokenFile, model_fingerprint
from alit_hf.model.image_io import open_image


@pytest.fixture
def tokens(loaded) -> TokenFile:
    model, _ = loaded
    return TokenFile([7, 1, 63, 0], (300, 200), (8, 8), 64, model_fingerprint(model))


@torch.no_grad()
def expected_picture(loaded, tokens: TokenFile) -> Image.Image:
    model, processor = loaded
    token_ids = torch.tensor(tokens.token_ids).unsqueeze(0)
    return processor.postprocess(model.decode(token_ids=token_ids, grid_size=tokens.grid_size).pixel_values)[0]


def assert_same_picture(actual: Image.Image, expected: Image.Image):
    """Equal but for the rounding of pixels that differ by less than 1e-5."""
    assert actual.size == expected.size
    difference = np.abs(np.subtract(actual, expected, dtype=np.int16))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def test_round_trip_of_a_folder(alit, photos, tmp_path, tiny_model, loaded):
    model, processor = loaded
    assert alit("encode", photos, "-o", tmp_path / "codes", "--threshold", 0.3, "--model", tiny_model).code == 0
    result = alit("decode", tmp_path / "codes", "-o", tmp_path / "out", "--model", tiny_model, "--batch-size", 3)
    assert (result.code, result.out) == (0, f"5 files in {tmp_path / 'out'}\n")
    targets = {
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "b.webp": "b",
        "sub/c.JPG": "sub/c",
        "sub/deeper/d.tif": "sub/deeper/d",
    }
    for name, target in targets.items():
        pixel_values = processor(open_image(photos / name), return_tensors="pt").pixel_values
        with torch.no_grad():
            code = model.encode(pixel_values, threshold=0.3)
            pixels = model.decode(token_ids=code.token_ids, num_tokens=code.num_tokens).pixel_values
        decoded = Image.open(tmp_path / "out" / f"{target}.png")
        assert_same_picture(decoded, processor.postprocess(pixels)[0])


def test_json_has_every_file_and_what_failed(alit, tmp_path, tiny_model, tokens):
    (tmp_path / "in").mkdir()
    tokens.save(tmp_path / "in" / "good.alit")
    (tmp_path / "in" / "bad.alit").write_bytes(b"")
    result = alit("decode", tmp_path / "in", "-o", tmp_path / "out", "--model", tiny_model, "--json")
    assert result.code == 1
    good = {"input": str(tmp_path / "in" / "good.alit"), "output": str(tmp_path / "out" / "good.png")}
    bad = {"input": str(tmp_path / "in" / "bad.alit"), "error": result.errors[0].removeprefix("alit: error: ")}
    assert result.json == {"files": [{**good, "width": 32, "height": 32}], "failed": [bad]}
    assert bad["error"].endswith("bad.alit: this is no .alit file, it is empty")


def test_lengths_and_grids_are_mixed_in_a_batch(alit, tmp_path, tiny_model, loaded, tokens):
    codes = [(4, (8, 8)), (12, (8, 8)), (4, (4, 6)), (8, (8, 8)), (12, (4, 6))]
    (tmp_path / "in").mkdir()
    files = {}
    for index, (num_tokens, grid_size) in enumerate(codes):
        ids = [(index * 17 + position) % 64 for position in range(num_tokens)]
        files[index] = TokenFile(ids, (10, 10), grid_size, 64, tokens.fingerprint)
        files[index].save(tmp_path / "in" / f"{index}.alit")
    assert alit("decode", tmp_path / "in", "-o", tmp_path / "out", "--model", tiny_model).code == 0
    for index, (_, (rows, columns)) in enumerate(codes):
        decoded = Image.open(tmp_path / "out" / f"{index}.png")
        assert decoded.size == (4 * columns, 4 * rows)
        assert_same_picture(decoded, expected_picture(loaded, files[index]))


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP"), (".tiff", "TIFF")])
def test_suffix_of_a_single_output_decides_its_format(alit, tmp_path, tiny_model, tokens, suffix, kind):
    tokens.save(tmp_path / "x.alit")
    out = tmp_path / f"picture{suffix}"
    assert alit("decode", tmp_path / "x.alit", "-o", out, "--model", tiny_model) == (0, f"{out}: 32x32\n", "")
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == (kind, (32, 32))
    assert {path.name for path in tmp_path.iterdir()} == {"x.alit", out.name}


def test_bad_files_are_reported_and_stop_nothing(alit, tmp_path, tiny_model, other_model, tokens, loaded):
    folder = tmp_path / "in"
    folder.mkdir()
    tokens.save(folder / "good.alit")
    data = tokens.to_bytes()
    (folder / "altered.alit").write_bytes(data[:-6] + b"x" + data[-5:])
    (folder / "foreign.alit").write_bytes(b"something else")
    (folder / "truncated.alit").write_bytes(data[:20])
    odd = TokenFile([1, 2, 3], (9, 9), (8, 8), 64, tokens.fingerprint)
    odd.save(folder / "odd.alit")
    result = alit("decode", folder, "-o", tmp_path / "out", "--model", tiny_model)
    assert result.code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    assert_same_picture(Image.open(tmp_path / "out" / "good.png"), expected_picture(loaded, tokens))
    found = {
        name: [line for line in result.errors if name in line] for name in ("altered", "foreign", "truncated", "odd")
    }
    assert [len(lines) for lines in found.values()] == [1, 1, 1, 1]
    assert len(result.errors) == 4
    assert "multiple of 4" in found["odd"][0]


def test_another_models_file_is_refused(alit, tmp_path, other_model, tokens):
    tokens.save(tmp_path / "x.alit")
    result = alit("decode", tmp_path / "x.alit", "-o", tmp_path / "x.png", "--model", other_model)
    assert (result.code, result.out) == (1, "")
    assert f"{tmp_path / 'x.alit'}: the tokens were made by another model" in result.errors[0]
    assert not (tmp_path / "x.png").exists()


def test_sizes_that_are_not_the_models_are_refused(alit, tmp_path, tiny_model, tokens):
    for name, values in (("grid", ((256, 256), 64)), ("codebook", ((8, 8), 4096))):
        TokenFile(tokens.token_ids, (300, 200), *values, tokens.fingerprint).save(tmp_path / f"{name}.alit")
    result = alit("decode", tmp_path / "grid.alit", tmp_path / "codebook.alit", "-o", tmp_path, "--model", tiny_model)
    assert (result.code, result.out) == (1, "")
    assert "the tokens have a grid of 256 × 256 positions, this model decodes at most 1024" in result.errors[0]
    assert "the tokens have a codebook of 4096 entries, this model's has 64" in result.errors[1]


def test_originals_are_never_overwritten(alit, photos, tmp_path, tiny_model):
    """Neither beside their codes nor by codes from elsewhere, while earlier decoded pictures are replaced."""
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    model = ["--model", tiny_model]
    assert alit("encode", photos, "-o", photos, *model).code == 2
    assert alit("encode", photos / "a.png", "-o", photos, *model).code == 0
    assert alit("encode", photos, "-o", tmp_path / "codes", "--num-tokens", 4, *model).code == 0
    codes = [tmp_path / "codes" / "sub" / "e.alit", photos / "f.alit"]
    for code, original in zip(codes, [photos / "sub" / "e.png", photos / "f.png"], strict=True):
        shutil.copy(photos / "a.png.alit", code)
        Image.new("RGB", (5, 5)).save(original)
        before[original] = original.read_bytes()
    for source in (photos, photos / "f.alit", tmp_path / "codes"):
        result = alit("decode", source, "-o", photos, *model)
        assert (result.code, len(result.errors)) == (2, 1), source
        assert f"the output {photos} is the input" in result.err or ".png would be overwritten" in result.err
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):
        assert alit("decode", tmp_path / "codes", "-o", tmp_path / "decoded", *model).code == 0


def test_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"before")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        _save_picture(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.alit", "-o", "x.psd"], "x.psd must end in .png or .jpg"),
        (["x.alit", "empty", "-o", "out"], "the folder empty has no .alit files"),
        (["x.alit", "-o", "x.png", "--num-tokens", "4"], "unrecognized arguments: --num-tokens 4"),
    ],
)
def test_wrong_use_does_nothing(alit, tmp_path, tiny_model, tokens, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    tokens.save("x.alit")
    os.mkdir("empty")
    result = alit("decode", *arguments, "--model", tiny_model)
    assert result.code == 2
    assert message in result.err
    assert sorted(os.listdir()) == ["empty", "x.alit"]
