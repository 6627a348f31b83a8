"""Weights that are elsewhere until their module runs, as accelerate and `device_map` leave them."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tiny_config import VARIANT_NAMES, VARIANTS, tiny_config, tiny_images, tiny_model

from alit_hf import ALITForImageClassification, ALITModel


all_variants = pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)
# Halting on, so that what only halting uses runs too. Every position is explained by chance or by its error.
FIELDS = {"vqgan": {"halting_threshold": 0.02}, "kl": {"halting_threshold": 0.9}}


@torch.no_grad()
def results(model: ALITModel) -> dict[str, torch.Tensor]:
    """Tensors of all methods."""
    pixel_values = tiny_images(2)
    generator = torch.Generator()
    output = model(pixel_values, generator=generator.manual_seed(0))
    adaptive = model.encode(
        pixel_values, threshold=0.2, return_reconstruction=True, generator=generator.manual_seed(0)
    )
    fixed = model.encode(pixel_values, num_tokens=6, generator=generator.manual_seed(0))
    codes = {"token_ids": fixed.token_ids} if model.config.quantize else {"latents": fixed.latents}
    steps = list(model.rollouts(pixel_values, generator=generator.manual_seed(0)))
    found = {f"forward {name}": value for name, value in output.items()}
    found |= {f"encode {name}": value for name, value in adaptive.items()}
    return found | {"decode": model.decode(**codes).pixel_values, "rollout": steps[-1].reconstruction}


def assert_same_results(model: ALITModel, expected: dict[str, torch.Tensor]) -> None:
    assert any(weight.device.type == "meta" for weight in model.parameters())
    assert model.device.type == "cpu"
    found = results(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@all_variants
def test_cpu_and_disk_offload(tmp_path, base, quantize):
    model = tiny_model(base, quantize, **FIELDS[base])
    expected = results(model)
    assert_same_results(cpu_offload(copy.deepcopy(model), execution_device="cpu"), expected)
    disk_offload(model, tmp_path, execution_device="cpu")
    assert_same_results(model, expected)


@pytest.mark.parametrize("offloaded", ["base_tokenizer", "embeddings", "encoder", "quantizer", "decoder"])
def test_device_map_of_two_parts(tmp_path, offloaded):
    model = tiny_model(**FIELDS["vqgan"])
    model.save_pretrained(tmp_path / "model")
    device_map = dict.fromkeys([name for name, _ in model.named_children()], "cpu") | {offloaded: "disk"}
    loaded = ALITModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert_same_results(loaded, results(model))


def test_offloaded_classifier():
    model = ALITForImageClassification(tiny_config(num_labels=3)).eval()
    with torch.no_grad():
        expected = model(tiny_images(2)).logits
        torch.testing.assert_close(cpu_offload(model, execution_device="cpu")(tiny_images(2)).logits, expected)
