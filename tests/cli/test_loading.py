"""Models that `--model` refuses, the same for every command: weights that are not numbers, sizes beyond all bounds."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file


COMMANDS = {
    "encode": ["encode", "PHOTOS", "-o", "OUT"],
    "decode": ["decode", "CODE", "-o", "OUT"],
    "explore": ["explore", "PHOTO", "-o", "OUT.png"],
    "info": ["info"],
    "tokenize": ["tokenize", "PHOTOS", "-o", "OUT"],
    "evaluate": ["evaluate", "--data", "PHOTOS", "--lpips", "none", "--output", "OUT.json"],
    "analyze": ["analyze", "thresholds", "--data", "PHOTOS", "--output", "OUT"],
    "demo": ["demo"],
}


@pytest.fixture
def model(tmp_path, tiny_model) -> Path:
    """A copy of `tiny_model`, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_weights(folder: Path, **changes: float | None) -> None:
    """Puts one value into each weight, or leaves the weight out."""
    weights = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        if value is None:
            del weights[name]
        else:
            weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def refusal(alit, tmp_path, model: Path, command: str, *options: str) -> str:
    """The one line that a command says of a model, having made nothing."""
    photo = tmp_path / "photos" / "a.png"
    places = {"PHOTOS": photo.parent, "PHOTO": photo, "CODE": tmp_path / "a.alit", "OUT": tmp_path / "out"}
    places |= {f"OUT{suffix}": tmp_path / f"out{suffix}" for suffix in (".png", ".json")}
    arguments = [places.get(argument, argument) for argument in COMMANDS[command]]
    before = set(tmp_path.iterdir())
    result = alit(*arguments, *([model] if command == "info" else ["--model", model]), *options)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert set(tmp_path.iterdir()) == before
    return result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_that_are_not_numbers(alit, photos, tmp_path, model, command):
    (tmp_path / "a.alit").write_bytes(b"read later than the model")
    change_weights(model, **{"decoder.cls_token": float("nan")})
    message = refusal(alit, tmp_path, model, command)
    assert f"the model {model} has NaN or infinite values in float32: in its decoder.cls_token" in message


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    "weight",
    ["base_tokenizer.model.decoder.conv_out.bias", "quantizer.codebook.weight", "encoder.layernorm_post.weight"],
)
def test_one_value_of_any_weight(alit, photos, tmp_path, model, weight, value):
    change_weights(model, **{weight: value})
    assert f"values in float32: in its {weight}" in refusal(alit, tmp_path, model, "encode")


def test_weights_that_overflow_in_the_dtype_asked_for(alit, photos, tmp_path, model):
    change_weights(model, **{"decoder.cls_token": 1e5})
    message = refusal(alit, tmp_path, model, "encode", "--dtype", "float16")
    assert "NaN or infinite values in float16: in its decoder.cls_token" in message


def test_weights_that_are_missing_or_of_another_shape(alit, photos, tmp_path, model):
    change_config(model, hidden_size=16)
    assert "has shape (1, 1, 32), its configuration makes it (1, 1, 16)" in refusal(alit, tmp_path, model, "encode")
    change_config(model, hidden_size=32)
    change_weights(model, **{"decoder.cls_token": None})
    assert "cannot be loaded: it lacks decoder.cls_token" in refusal(alit, tmp_path, model, "encode")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_configuration_of_absurd_sizes(alit, photos, tmp_path, model, command):
    (tmp_path / "a.alit").write_bytes(b"read later than the model")
    change_config(model, hidden_size=10**6)
    assert "more than 4294967296 parameters, which is the limit: `hidden_size` is 1000000" in refusal(
        alit, tmp_path, model, command
    )


def test_a_configuration_that_declares_more_than_its_files_hold_takes_no_memory(alit, photos, tmp_path, model):
    # 1.2 GB within the limits.
    change_config(model, hidden_size=1024, num_encoder_layers=24)
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "it lacks encoder.layers.1." in refusal(alit, tmp_path, model, "encode")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 400_000
