"""A saved folder carries its code: it loads with `trust_remote_code=True` where alit_hf is not installed."""

import json
from pathlib import Path

import pytest
import torch
from elsewhere import run_elsewhere
from tiny_config import tiny_images, tiny_model
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from alit_hf import ALITConfig, ALITForImageClassification, ALITImageProcessor, ALITModel


# Saves what it loads, loads that again, and writes down what it found.
SCRIPT = """
import json, sys
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

folder, resaved, picture, results = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
from_config = AutoModel.from_config(config, trust_remote_code=True)
assert from_config.state_dict().keys() == model.state_dict().keys()
pixel_values = processor(picture, return_tensors="pt").pixel_values
with torch.no_grad():
    code = model.encode(pixel_values, threshold=0.0)
    pixels = model.decode(token_ids=code.token_ids, num_tokens=code.num_tokens).pixel_values
processor.postprocess(pixels)
model.save_pretrained(resaved)
processor.save_pretrained(resaved)
again = AutoModel.from_pretrained(resaved, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again.encode(pixel_values, threshold=0.0).token_ids, code.token_ids)
with open(results, "w") as file:
    json.dump({
        "classes": [type(part).__module__ for part in (config, processor, model)],
        "token_ids": code.token_ids.tolist(),
        "pixels": pixels.flatten().tolist(),
    }, file)
"""


def run_script(tmp_path: Path, folder: Path, picture: Path, *, installed: bool) -> dict:
    """What `SCRIPT` found."""
    results = tmp_path / "results.json"
    run_elsewhere(tmp_path, SCRIPT, folder, tmp_path / "resaved", picture, results, installed=installed)
    return json.loads(results.read_text())


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    ALITImageProcessor().postprocess(tiny_images(1, 40, 50))[0].save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a user gets who saves model and processor, and nothing more."""
    tiny_model().save_pretrained(tmp_path / "model")
    ALITImageProcessor(size=32, crop_size=32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def expected_results(folder: Path, picture: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model, processor = ALITModel.from_pretrained(folder), ALITImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        code = model.encode(**processor(picture, return_tensors="pt"), threshold=0.0)
        return code.token_ids, model.decode(token_ids=code.token_ids, num_tokens=code.num_tokens).pixel_values


def test_the_folder_names_and_holds_its_code(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_alit.ALITConfig",
        "AutoModel": "modeling_alit.ALITModel",
        "AutoModelForImageClassification": "modeling_alit_classification.ALITForImageClassification",
        "AutoImageProcessor": "image_processing_alit.ALITImageProcessor",
    }
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_alit.ALITImageProcessor"}
    files = {path.name for path in folder.glob("*.py")}
    assert files >= {f"{name.partition('.')[0]}.py" for name in config["auto_map"].values()}


def test_loads_and_runs_without_alit_hf(tmp_path, folder, picture):
    results = run_script(tmp_path, folder, picture, installed=False)
    assert all(module.startswith("transformers_modules.") for module in results["classes"])
    token_ids, pixels = expected_results(folder, picture)
    assert results["token_ids"] == token_ids.tolist()
    torch.testing.assert_close(torch.tensor(results["pixels"]), pixels.flatten(), rtol=0, atol=1e-6)

    # What was saved there loads here.
    resaved = ALITModel.from_pretrained(tmp_path / "resaved")
    assert resaved.config.to_dict().keys() == ALITConfig.from_pretrained(folder).to_dict().keys()
    assert expected_results(tmp_path / "resaved", picture)[0].tolist() == results["token_ids"]
    # Of the code, what was loaded there.
    config = json.loads((tmp_path / "resaved" / "config.json").read_text())
    assert config["auto_map"].keys() >= {"AutoConfig", "AutoModel"}


def test_loads_with_trusted_code_where_alit_hf_is_installed(tmp_path, folder, picture):
    results = run_script(tmp_path, folder, picture, installed=True)
    assert results["token_ids"] == expected_results(folder, picture)[0].tolist()


OTHER_CLASS = """
import sys
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True, num_labels=3)
assert type(model).__module__.startswith("transformers_modules.")
assert model.classifier.out_features == 3
"""


def test_a_model_becomes_a_classifier_without_alit_hf(tmp_path, folder):
    run_elsewhere(tmp_path, OTHER_CLASS, folder, installed=False)


def test_nothing_is_asked_where_the_code_is_installed(folder, monkeypatch):
    def ask(*arguments):
        raise AssertionError("a question about remote code")

    monkeypatch.setattr("builtins.input", ask)
    assert type(AutoModelForImageClassification.from_pretrained(folder)) is ALITForImageClassification
    assert type(AutoImageProcessor.from_pretrained(folder)) is ALITImageProcessor


def test_the_installed_code_is_used_where_remote_code_is_not_trusted(folder):
    assert type(AutoConfig.from_pretrained(folder)) is ALITConfig
    assert type(AutoModel.from_pretrained(folder)) is ALITModel
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=False)) is ALITModel
    assert type(AutoImageProcessor.from_pretrained(folder)) is ALITImageProcessor
