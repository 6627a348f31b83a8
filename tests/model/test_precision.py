"""Weights in fewer bits, by others' tools and by dtype: nothing of ours reads what such a layer keeps in `weight`."""

import pytest
import torch
from tiny_config import VARIANT_NAMES, VARIANTS, tiny_config, tiny_images, tiny_model
from torch import nn
from transformers import BitsAndBytesConfig

from alit_hf import ALITForImageClassification, ALITModel


all_variants = pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)


def assert_close_to(model: ALITModel, expected: ALITModel) -> None:
    """Both ways through the model, against the one in float32."""
    pixel_values = tiny_images(2)
    with torch.no_grad():
        code, expected_code = (one.encode(pixel_values, num_tokens=6) for one in (model, expected))
        pixels, expected_pixels = (
            one.decode(latents=expected_code.latents).pixel_values.float() for one in (model, expected)
        )
        features, expected_features = (one(pixel_values).last_hidden_state.float() for one in (model, expected))
    assert code.latents.shape == expected_code.latents.shape
    assert (features - expected_features).abs().mean() < 0.1 * expected_features.abs().mean()
    assert (pixels - expected_pixels).abs().mean() < 0.2 * expected_pixels.std()


@all_variants
def test_dynamic_quantization(base, quantize):
    model = tiny_model(base, quantize)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    assert_close_to(quantized, model)


@all_variants
def test_8_bit_weights(tmp_path, base, quantize):
    model = tiny_model(base, quantize)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    loaded = ALITModel.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    assert loaded.decoder.latent_projection.weight.dtype == torch.int8
    assert_close_to(loaded, model)


def test_8_bit_classifier(tmp_path):
    model = ALITForImageClassification(tiny_config(num_labels=5)).eval()
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    loaded = ALITForImageClassification.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    with torch.no_grad():
        logits, expected = loaded(tiny_images(2)).logits, model(tiny_images(2)).logits
    torch.testing.assert_close(logits, expected, atol=0.2 * expected.std().item(), rtol=0)


def quantized_embedding(embedding: nn.Embedding) -> nn.Module:
    embedding = nn.Embedding(*embedding.weight.shape, _weight=embedding.weight.detach())
    embedding.qconfig = torch.ao.quantization.float_qparams_weight_only_qconfig
    return torch.ao.nn.quantized.Embedding.from_float(embedding)


def test_codebooks_that_are_quantised_themselves():
    model, quantized = tiny_model(), tiny_model()
    quantized.quantizer.codebook = quantized_embedding(quantized.quantizer.codebook)
    quantize = quantized.base_tokenizer.model.quantize
    quantize.embedding = quantized_embedding(quantize.embedding)
    assert_close_to(quantized, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_chooses_codes_stays_in_float32(tmp_path, dtype):
    tiny_model().save_pretrained(tmp_path)
    for model_class in (ALITModel, ALITForImageClassification):
        model = model_class.from_pretrained(tmp_path, dtype=dtype)
        kept = [name for name, weight in model.named_parameters() if weight.dtype == torch.float32]
        assert [name.removeprefix("alit.") for name in kept] == ["quantizer.codebook.weight"]
