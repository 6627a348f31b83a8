"""Data-parallel training waits for a gradient of every parameter that requires one."""

import copy

import pytest
import torch
from tiny_config import VARIANT_NAMES, VARIANTS, tiny_config, tiny_images, tiny_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alit_hf import ALITForImageClassification


all_variants = pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def train_under_ddp(model: nn.Module, loss) -> None:
    """A step that leaves a parameter out is refused by the step after it."""
    wrapped = DistributedDataParallel(model.train())
    for _ in range(2):
        loss(wrapped).backward()
    silent = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    assert not silent


def classification_loss(model: nn.Module) -> torch.Tensor:
    return model(tiny_images(2), labels=torch.tensor([0, 1])).loss


def feature_loss(model: nn.Module) -> torch.Tensor:
    output = model(tiny_images(2), return_reconstruction=False, return_decoder_output=False)
    return output.last_hidden_state.square().mean()


@pytest.mark.parametrize("fields", [{}, {"max_rollouts": 1}, {"halting_threshold": 0.02}], ids=str)
@all_variants
def test_classifier(process_group, tmp_path, base, quantize, fields):
    model = ALITForImageClassification(tiny_config(base, quantize, num_labels=2, **fields))
    model.save_pretrained(tmp_path / "model")
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for one in (model, checkpointed, ALITForImageClassification.from_pretrained(tmp_path / "model")):
        train_under_ddp(one, classification_loss)


@all_variants
def test_features(process_group, base, quantize):
    model = tiny_model(base, quantize)
    model.freeze_for_features()
    train_under_ddp(model, feature_loss)


def test_loading_says_what_it_loaded_and_freezes_all_the_same(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, report = ALITForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"]
    frozen = {name.split(".")[1] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"base_tokenizer", "embeddings", "encoder", "latent_projection", "quantizer", "decoder"}
    assert all(weight.requires_grad for weight in model.alit.encoder.layers.parameters())
