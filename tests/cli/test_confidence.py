"""`--confidence`: lengths of the length predictor, in files and in token data sets."""

import json
import shutil

import datasets
import pytest
import torch

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.codes.token_file import TokenFile
from alit_hf.model.image_io import open_image
from alit_hf.model.length_prediction import bound_margin


@pytest.fixture(scope="module")
def predicting(tiny_model, tmp_path_factory) -> str:
    """The model with a random predictor that tells pictures apart."""
    folder = tmp_path_factory.mktemp("models") / "predicting"
    shutil.copytree(tiny_model, folder)
    model = ALITModel.from_pretrained(tiny_model)
    model.set_length_criterion("l1")
    model.config.length_shortfalls = [number / 100 - 1 for number in range(99)]
    with torch.no_grad():
        model.length_predictor.fc1.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.length_predictor.fc2.weight.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def expected(predicting, photos) -> tuple[float, dict[str, int]]:
    """A threshold between the bounds of the photos at the shortest length, and the length that each photo gets."""
    model, processor = ALITModel.from_pretrained(predicting).eval(), ALITImageProcessor.from_pretrained(predicting)
    pixels = {
        str(path.relative_to(photos)): processor(open_image(path), return_tensors="pt").pixel_values
        for path in sorted(photos.rglob("*.*"))
    }
    with torch.no_grad():
        first = torch.stack([next(iter(model.rollouts(one))).last_hidden_state[0] for one in pixels.values()])
        bounds = model.length_predictor.predict(first)[:, 0] + bound_margin(model.config.length_shortfalls, 0.9)
        threshold = bounds.median().exp().item() * 1.001
        lengths = {
            name: model.encode(one, threshold=threshold, confidence=0.9).num_tokens.item()
            for name, one in pixels.items()
        }
    assert len(set(lengths.values())) > 1
    return threshold, lengths


def test_encode(alit, photos, tmp_path, predicting, expected):
    out = tmp_path / "out"
    threshold, lengths = expected
    arguments = ("--model", predicting, "--threshold", threshold, "--confidence", 0.9)
    result = alit("encode", photos, "-o", out, *arguments)
    assert result.code == 0, result.err
    found = sorted(TokenFile.load(path).num_tokens for path in out.rglob("*.alit"))
    assert found == sorted(lengths.values())
    result = alit("encode", photos / "b.webp", "-o", tmp_path / "b.alit", *arguments)
    assert "score at most " in result.out


def test_tokenize(alit, photos, tmp_path, predicting, expected):
    out = tmp_path / "tokens"
    threshold, lengths = expected
    arguments = ("tokenize", photos, "-o", out, "--model", predicting, "--threshold", threshold)
    result = alit(*arguments, "--confidence", 0.9)
    assert result.code == 0, result.err
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["file_name"]: row["num_tokens"] for row in rows} == lengths
    info = json.loads((out / "tokenization.json").read_text())
    assert info["confidence"] == 0.9
    assert len(info["length_predictor"]) == 16
    card = (out / "README.md").read_text()
    assert "share of 0.9" in card
    assert "a bound on `l1`" in card
    # Codes of another confidence, or of an exact search, are of another length.
    for others in (("--confidence", 0.8), ()):
        result = alit(*arguments, *others)
        assert result.code == 2
        assert "confidence was 0.9 and is now" in result.err


def test_another_calibration_is_another_run(alit, photos, tmp_path, predicting):
    model = tmp_path / "model"
    shutil.copytree(predicting, model)
    arguments = ("tokenize", photos, "-o", tmp_path / "tokens", "--model", model, "--confidence", 0.9)
    assert alit(*arguments).code == 0
    config = json.loads((model / "config.json").read_text())
    config["length_shortfalls"][-1] += 1
    (model / "config.json").write_text(json.dumps(config))
    result = alit(*arguments)
    assert result.code == 2
    assert "length_predictor was" in result.err


def test_codes_do_not_depend_on_the_predictor(alit, photos, tmp_path, tiny_model, predicting):
    """A model decodes what it encoded before it had one."""
    code, picture = tmp_path / "a.alit", tmp_path / "a.png"
    assert alit("encode", photos / "a.jpg", "-o", code, "--model", tiny_model, "--num-tokens", 4).code == 0
    result = alit("decode", code, "-o", picture, "--model", predicting)
    assert result.code == 0, result.err


@pytest.mark.parametrize("command", ["encode", "tokenize"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--confidence", "0.999"), "calibrated on 99 pictures"),
        (("--confidence", "2"), "`confidence` is 2.0"),
        (("--confidence", "x"), "--confidence"),
        (("--confidence", "0.9", "--num-tokens", "4"), "--confidence chooses lengths together with --threshold"),
        (("--confidence", "0.9", "--threshold", "0.1", "--criterion", "l2"), "trained for 'l1'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(alit, photos, tmp_path, predicting, command, options, message):
    out = tmp_path / "out"
    result = alit(command, photos, "-o", out, "--model", predicting, *options)
    assert result.code == 2
    assert message in result.err
    assert not out.exists()


def test_models_without_predictor_say_what_to_run(alit, photos, tmp_path, tiny_model):
    result = alit("encode", photos, "-o", tmp_path / "out", "--model", tiny_model, "--confidence", 0.9)
    assert result.code == 2
    assert "has no length predictor: train one by the stage `lengths`" in result.err
