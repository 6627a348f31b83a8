"""Checkpoints that wrappers and other classes have saved."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from same_weights import assert_same_weights
from tiny_config import tiny_config, tiny_model
from torch import nn
from transformers.utils import logging

from alit_hf import ALITForImageClassification, ALITModel


PREFIXES = ["_orig_mod.", "module.", "module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_of_wrappers_are_taken_by_load_state_dict(prefix):
    for make in (tiny_model, lambda seed: ALITForImageClassification(tiny_config(num_labels=seed + 2))):
        saved, model = make(seed=1), make(seed=1)
        nn.init.zeros_(model.base_model.embeddings.cls_token)
        model.load_state_dict({prefix + name: weight for name, weight in saved.state_dict().items()})
        assert_same_weights(model, saved)


def test_a_compiled_part_is_taken_too():
    saved, model = tiny_model(seed=1), tiny_model(seed=2)
    saved.encoder = torch.compile(saved.encoder)
    assert "encoder._orig_mod.layernorm_pre.weight" in saved.state_dict()
    model.load_state_dict(saved.state_dict())
    assert torch.equal(model.encoder.layernorm_pre.weight, saved.encoder.layernorm_pre.weight)
    assert torch.equal(model.encoder.layers[0].mlp.fc1.weight, saved.encoder.layers[0].mlp.fc1.weight)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("model_class", [ALITModel, ALITForImageClassification])
def test_from_pretrained_refuses_them_and_says_what_to_do(tmp_path, model_class, prefix):
    model_class(tiny_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + name: weight for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"names such as .*wrapper of `torch.compile`.*load_state_dict"):
        model_class.from_pretrained(tmp_path)


def test_a_classifier_loads_as_a_model_in_silence(tmp_path, capfd):
    classifier = ALITForImageClassification(tiny_config(num_labels=3))
    classifier.save_pretrained(tmp_path)
    logging.set_verbosity_warning()
    capfd.readouterr()
    model, report = ALITModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
    assert_same_weights(model, classifier.alit)
