"""`alit encode`: every picture gets its own code, and nothing that goes wrong with one touches another."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import save_tiny_model

from alit_hf import cli
from alit_hf.codes.length_choice import DEFAULT_THRESHOLD
from alit_hf.codes.token_file import TokenFile
from alit_hf.model import selection
from alit_hf.model.image_io import open_image


TARGETS = {
    "a.jpg": "a.jpg.alit",
    "a.png": "a.png.alit",
    "b.webp": "b.alit",
    "sub/c.JPG": "sub/c.alit",
    "sub/deeper/d.tif": "sub/deeper/d.alit",
}


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@torch.no_grad()
def encode_alone(loaded, path, **kwargs):
    model, processor = loaded
    return model.encode(processor(open_image(path), return_tensors="pt").pixel_values, **kwargs)


@pytest.fixture
def mixed_threshold(loaded, photos) -> float:
    """A threshold that some of the photos meet at their first length and some never."""
    scores = sorted(encode_alone(loaded, photos / name, threshold=10.0).score.item() for name in TARGETS)
    return (scores[1] + scores[2]) / 2


def test_folder_gives_each_picture_the_code_it_gets_alone(alit, photos, tmp_path, tiny_model, loaded, mixed_threshold):
    out = tmp_path / "out"
    result = alit("encode", photos, "-o", out, "--model", tiny_model, "--threshold", mixed_threshold)
    assert result.code == 0, result.err
    assert set(written(out)) == set(TARGETS.values())
    lengths = set()
    for name, target in TARGETS.items():
        tokens = TokenFile.load(out / target)
        alone = encode_alone(loaded, photos / name, threshold=mixed_threshold)
        assert tokens.token_ids.tolist() == alone.token_ids[0].tolist()
        assert tokens.original_size == Image.open(photos / name).size
        assert tokens.grid_size == (8, 8)
        tokens.check_model(loaded[0])
        lengths.add(tokens.num_tokens)
    assert lengths == {4, 12}
    num_bytes = sum(map(len, written(out).values()))
    summary = result.out.strip()
    assert summary.startswith(f"5 files in {out}: 4 to 12 tokens, ")
    assert summary.endswith(f"{num_bytes} bytes; 3 not below the threshold")


def test_same_command_gives_same_bytes_whatever_the_batches(alit, photos, tmp_path, tiny_model, mixed_threshold):
    for name, batch_size in [("one", 8), ("two", 8), ("three", 1), ("four", 2)]:
        arguments = ["--threshold", mixed_threshold, "--model", tiny_model, "--batch-size", batch_size]
        assert alit("encode", photos, "-o", tmp_path / name, *arguments).code == 0
    files = written(tmp_path / "one")
    assert all(written(tmp_path / name) == files for name in ("two", "three", "four"))


def test_one_broken_of_many_is_reported_and_stops_nothing(alit, photos, tmp_path, tiny_model):
    (photos / "aa.png").write_bytes(b"no picture")
    (photos / "sub" / "half.png").write_bytes((photos / "a.png").read_bytes()[:500])
    result = alit("encode", photos, "-o", tmp_path / "out", "--num-tokens", 8, "--model", tiny_model)
    assert result.code == 1
    assert set(written(tmp_path / "out")) == set(TARGETS.values())
    assert len(result.errors) == 2
    assert result.errors[0].startswith(f"alit: error: {photos / 'aa.png'} is not a picture")
    assert result.errors[1].startswith(f"alit: error: {photos / 'sub' / 'half.png'} is truncated")
    assert result.err.rstrip().endswith("\n".join(result.errors))
    assert "5 files" in result.out


def test_picture_that_fails_in_the_model_does_not_fail_its_batch(alit, photos, tmp_path, tiny_model, monkeypatch):
    def score(reconstruction, original):
        if (original.mean(dim=(1, 2, 3)) > 0.4).any():
            raise RuntimeError("out of memory")
        return selection.l1(reconstruction, original)

    monkeypatch.setitem(selection._FACTORIES, "fails", lambda: score)
    arguments = ["--criterion", "fails", "--threshold", 9, "--model", tiny_model]
    result = alit("encode", photos, "-o", tmp_path / "out", *arguments)
    assert result.code == 1
    assert set(written(tmp_path / "out")) == set(TARGETS.values()) - {"sub/deeper/d.alit"}
    assert result.errors == [f"alit: error: {photos / 'sub/deeper/d.tif'}: out of memory"]


def test_all_failed(alit, tmp_path, tiny_model):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    result = alit("encode", tmp_path / "in", "-o", tmp_path / "out", "--model", tiny_model)
    assert (result.code, result.out, len(result.errors)) == (1, "", 1)


def test_failed_write_is_the_files_own(alit, photos, tmp_path, tiny_model):
    (tmp_path / "out" / "b.alit").mkdir(parents=True)
    result = alit("encode", photos, "-o", tmp_path / "out", "--num-tokens", 4, "--model", tiny_model)
    assert result.code == 1
    assert set(written(tmp_path / "out")) == set(TARGETS.values()) - {"b.alit"}
    assert len(result.errors) == 1
    assert str(photos / "b.webp") in result.errors[0]


def test_single_picture_reports_its_code(alit, photos, tmp_path, tiny_model, loaded):
    file = tmp_path / "new" / "x.alit"
    result = alit("encode", photos / "a.png", "-o", file, "--threshold", 5, "--model", tiny_model)
    score = encode_alone(loaded, photos / "a.png", threshold=5).score.item()
    assert result == (0, f"{file}: 4 tokens, 36 bytes, score {score:.4f}\n", "")

    result = alit("encode", photos / "a.png", "-o", file, "--num-tokens", 8, "--model", tiny_model)
    assert result == (0, f"{file}: 8 tokens, 39 bytes\n", "")
    assert (
        TokenFile.load(file).token_ids.tolist()
        == encode_alone(loaded, photos / "a.png", num_tokens=8).token_ids[0].tolist()
    )


def test_json_has_every_file_and_what_failed(alit, photos, tmp_path, tiny_model, loaded, mixed_threshold):
    (photos / "aa.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    result = alit("encode", photos, "-o", out, "--model", tiny_model, "--threshold", mixed_threshold, "--json")
    assert result.code == 1
    settings = {"threshold": pytest.approx(mixed_threshold), "num_tokens": None, "criterion": "l1", "confidence": None}
    failed = {"input": str(photos / "aa.png"), "error": result.errors[0].removeprefix("alit: error: ")}
    assert set(result.json) == {"settings", "files", "failed"}
    assert (result.json["settings"], result.json["failed"]) == (settings, [failed])
    files = {file["input"]: file for file in result.json["files"]}
    assert len(files) == len(TARGETS)
    for name, target in TARGETS.items():
        alone = encode_alone(loaded, photos / name, threshold=mixed_threshold)
        assert files[str(photos / name)] == {
            "input": str(photos / name),
            "output": str(out / target),
            "num_tokens": alone.num_tokens.item(),
            "file_bytes": (out / target).stat().st_size,
            "score": pytest.approx(alone.score.item()),
            "satisfied": alone.satisfied.item(),
        }


def test_json_of_a_fixed_length_has_no_score(alit, photos, tmp_path, tiny_model):
    arguments = ["encode", photos / "a.png", "-o", tmp_path, "--num-tokens", 4, "--model", tiny_model, "--json"]
    (file,) = alit(*arguments).json["files"]
    assert (file["num_tokens"], file["score"], file["satisfied"]) == (4, None, None)


def test_json_has_no_infinity(alit, photos, tmp_path, tiny_model, monkeypatch):
    def score(reconstruction, original):
        return torch.full((len(original),), torch.inf)

    monkeypatch.setitem(selection._FACTORIES, "perfect", lambda: score)
    arguments = ["--criterion", "perfect", "--threshold", 9, "--model", tiny_model, "--json"]
    (file,) = alit("encode", photos / "a.png", "-o", tmp_path, *arguments).json["files"]
    assert file["score"] is None


def test_json_names_are_the_files(alit, photos, tmp_path, tiny_model):
    """Whatever bytes they have."""
    strange = os.fsdecode(b"caf\xe9\x1b.png")
    (photos / "a.png").rename(photos / strange)
    result = alit("encode", photos / strange, "-o", tmp_path, "--num-tokens", 4, "--model", tiny_model, "--json")
    (file,) = result.json["files"]
    assert os.path.isfile(file["input"])
    assert os.path.isfile(file["output"])
    assert result.out.isascii()


def test_without_options_the_default_threshold_decides(alit, photos, tmp_path, tiny_model, loaded):
    result = alit("encode", photos / "a.png", "-o", tmp_path, "--model", tiny_model)
    expected = encode_alone(loaded, photos / "a.png", threshold=DEFAULT_THRESHOLD)
    assert f"score {expected.score.item():.4f}" in result.out
    assert ("not below" in result.out) == (not expected.satisfied.item())


def test_criterion_is_used(alit, photos, tmp_path, tiny_model, loaded):
    score = encode_alone(loaded, photos / "a.png", threshold=0, criterion="psnr").score.item()
    assert score > 1
    arguments = ["encode", photos / "a.png", "-o", tmp_path, "--criterion", "psnr", "--model", tiny_model]
    result = alit(*arguments, "--threshold", f"{score - 1:.3f}")
    assert result.out.startswith(f"{tmp_path / 'a.png.alit'}: 4 tokens")
    assert result.out.rstrip().endswith(f", score {score:.4f} dB")
    result = alit(*arguments, "--threshold", f"{score + 9:.3f}")
    assert "12 tokens" in result.out
    assert result.out.rstrip().endswith(" dB (not above the threshold)")
    several = ["encode", photos, "-o", tmp_path / "out", "--criterion", "psnr", "--threshold", "60"]
    assert "; 5 not above the threshold" in alit(*several, "--model", tiny_model).out


def test_original_size_is_the_upright_pictures(alit, tmp_path, tiny_model):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40), "red").save(tmp_path / "rotated.jpg", exif=exif)
    assert alit("encode", tmp_path / "rotated.jpg", "-o", tmp_path, "--model", tiny_model).code == 0
    assert TokenFile.load(tmp_path / "rotated.alit").original_size == (40, 50)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_file_from_another_dtype_can_be_decoded(alit, photos, tmp_path, tiny_model, dtype):
    arguments = ["--num-tokens", 12, "--model", tiny_model, "--dtype", dtype]
    assert alit("encode", photos, "-o", tmp_path / "out", *arguments).code == 0
    result = alit("decode", tmp_path / "out", "-o", tmp_path / "pictures", "--model", tiny_model)
    assert (result.code, result.errors) == (0, [])
    assert len(written(tmp_path / "pictures")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: -o/--output"),
        (["-o", "OUT", "--threshold", "0.1", "--num-tokens", "4"], "not allowed with argument"),
        (["-o", "OUT", "--threshold", "low"], "--threshold: it is 'low', it must be a finite number"),
        (["-o", "OUT", "--threshold", "nan"], "it must be a finite number"),
        (["-o", "OUT", "--num-tokens", "0"], "--num-tokens: it is '0', it must be a whole number from 1"),
        (["-o", "OUT", "--num-tokens", "6"], "`num_tokens` is 6, it must be a multiple of 4 between 4 and 12"),
        (["-o", "OUT", "--num-tokens", "16"], "`num_tokens` is 16, it must be a multiple of 4 between 4 and 12"),
        (["-o", "OUT", "--num-workers", "-1"], "--num-workers: it is '-1', it must be a whole number from 0"),
        (["-o", "OUT", "--batch-size", "-1"], "--batch-size: it is '-1', it must be a whole number from 1"),
        (["-o", "OUT", "--criterion", "l1", "--num-tokens", "4"], "--criterion chooses lengths together with"),
        (["-o", "OUT", "--criterion", "psnr"], "--criterion psnr needs a --threshold"),
        (
            ["-o", "OUT", "--criterion", "psnr", "--threshold", "-25"],
            "`threshold` is -25 dB, for this criterion it must",
        ),
        (["-o", "OUT", "--criterion", "psnr", "--threshold", "nan"], "it must be a finite number"),
        (["-o", "OUT", "--criterion", "beauty", "--threshold", "1"], "`criterion` is 'beauty', it must be one of"),
        (["-o", "OUT", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["-o", "OUT", "--device", "abacus"], "--device abacus cannot be used here"),
        (["-o", "OUT", "--model", "nobody/nothing"], "the model nobody/nothing is no folder, and from the Hub"),
        (["-o", "OUT", "--model", "."], "the model . holds no ALIT model"),
    ],
)
def test_wrong_use_does_nothing(alit, photos, tmp_path, tiny_model, monkeypatch, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    if "--model" not in arguments:
        arguments = [*arguments, "--model", tiny_model]
    result = alit("encode", photos, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.startswith("alit: error: ")
    assert result.err.count("\n") == 1
    assert list(empty.iterdir()) == []


def test_output_folder_that_cannot_be_made_is_wrong_use(alit, photos, tiny_model, monkeypatch):
    def makedirs(name, exist_ok):
        raise OSError(30, "Read-only file system", name)

    monkeypatch.setattr(cli.jobs.os, "makedirs", makedirs)
    result = alit("encode", photos, "-o", photos / "out", "--model", tiny_model)
    assert result.code == 2
    assert "out cannot be made: Read-only file system" in result.errors[0]


class TestUnusableModels:
    def error(self, alit, photos, model) -> str:
        result = alit("encode", photos, "-o", photos / "out", "--model", model)
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        assert not (photos / "out").exists()
        return result.err

    def test_another_kind_of_model(self, alit, photos, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        assert "holds no ALIT model but one of type bert" in self.error(alit, photos, tmp_path)

    def test_missing_weights_are_not_drawn_at_random(self, alit, photos, tmp_path, tiny_model):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        weights = load_file(folder / "model.safetensors")
        del weights["decoder.cls_token"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert "lacks decoder.cls_token" in self.error(alit, photos, folder)

    def test_truncated_weights(self, alit, photos, tmp_path, tiny_model):
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
        assert "cannot be loaded" in self.error(alit, photos, folder)

    def test_continuous_latents_have_no_ids(self, alit, photos, tmp_path):
        model = save_tiny_model(tmp_path / "model", quantize=False)
        assert "continuous latent tokens" in self.error(alit, photos, model)
