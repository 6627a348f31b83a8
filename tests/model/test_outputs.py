"""Outputs hold tensors with one row an image and nothing else, as the tools that slice and gather them expect."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_config import VARIANT_NAMES, VARIANTS, tiny_images, tiny_model
from transformers import Trainer, TrainingArguments, pipeline
from transformers.utils import ModelOutput

from alit_hf import ALITImageProcessor


all_variants = pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)


@all_variants
def test_every_field_is_a_tensor_of_the_batch(base, quantize):
    model, pixel_values = tiny_model(base, quantize), tiny_images(2)
    with torch.no_grad():
        fixed = model.encode(pixel_values, num_tokens=6, return_reconstruction=True)
        outputs: list[ModelOutput] = [
            fixed,
            model.encode(pixel_values, threshold=torch.tensor([1.0, 0.0]), return_reconstruction=True),
            model.decode(latents=fixed.latents),
            *model.rollouts(pixel_values),
            model(pixel_values),
        ]
    for output in outputs:
        assert output.keys()
        for name, value in output.items():
            assert isinstance(value, torch.Tensor), name
            assert value.shape[0] == 2, name


def test_plain_numbers_are_there_for_readers():
    pixel_values = tiny_images(2, 24, 40)
    model = tiny_model()
    with torch.no_grad():
        output = model(pixel_values, num_tokens=6, interpolate_pos_encoding=True)
        code = model.encode(pixel_values, threshold=0.0, interpolate_pos_encoding=True)
    assert (output.num_tokens, output.grid_size) == (6, (6, 10))
    assert f"{output.num_tokens:4}" == "   6"
    assert code.grid_size == (6, 10)
    torch.testing.assert_close(output.base_latents, code.base_latents)


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    ALITImageProcessor(size=32, crop_size=32).save_pretrained(tmp_path)
    return tmp_path


def test_feature_extraction_pipeline_in_batches(folder):
    pictures = ALITImageProcessor().postprocess(tiny_images(3, 40, 50))
    extract = pipeline("image-feature-extraction", model=str(folder), device="cpu")
    alone, batched = extract(pictures), extract(pictures, batch_size=2)
    assert np.shape(batched) == (3, 1, 1 + 64 + 12, 32)
    np.testing.assert_allclose(batched, alone, atol=1e-5)


def test_trainer_predicts(tmp_path):
    model, pixel_values = tiny_model(), tiny_images(5)
    data = Dataset.from_dict({"pixel_values": pixel_values.tolist()}).with_format("torch")
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, report_to="none")
    predictions = Trainer(model, arguments).predict(data).predictions
    with torch.no_grad():
        expected = model(pixel_values)
    # Trainer takes the first field for a loss only where there are labels.
    for found, value in zip(predictions, expected.to_tuple(), strict=True):
        np.testing.assert_allclose(found, value.numpy(), atol=1e-5)
