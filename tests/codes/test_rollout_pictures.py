"""A picture at every length agrees with what `encode` and `decode` make of it."""

import numpy as np
import pytest
import torch
from tiny_model import tiny_config

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.codes.rollout_pictures import payload_bytes, pick_rollout, rollout_pictures


@pytest.fixture
def model():
    return ALITModel(tiny_config()).eval()


@pytest.fixture
def processor():
    return ALITImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def pixel_values():
    return torch.rand(1, 3, 32, 32)


def test_every_length_is_what_encode_and_decode_give(model, processor, pixel_values):
    pictures = rollout_pictures(model, processor, pixel_values)
    assert [picture.num_tokens for picture in pictures] == [4, 8, 12]
    assert [picture.payload_bytes for picture in pictures] == [3, 6, 9]
    for picture in pictures:
        with torch.no_grad():
            code = model.encode(pixel_values, num_tokens=picture.num_tokens)
            pixels = model.decode(token_ids=code.token_ids).pixel_values
        assert torch.equal(picture.token_ids, code.token_ids[0])
        difference = pixels - pixel_values
        assert picture.l1 == pytest.approx(difference.abs().mean().item(), abs=1e-6)
        assert picture.psnr == pytest.approx(-10 * difference.square().mean().log10().item(), abs=1e-4)
        expected = processor.postprocess(pixels)[0]
        assert np.abs(np.subtract(picture.picture, expected, dtype=np.int16)).max() <= 1


def test_picked_length_is_the_one_that_encode_picks(model, processor, pixel_values):
    pictures = rollout_pictures(model, processor, pixel_values)
    scores = sorted(picture.l1 for picture in pictures)
    for threshold in (scores[0], *[score + 1e-7 for score in scores], 0, 10):
        with torch.no_grad():
            code = model.encode(pixel_values, threshold=threshold)
        assert pick_rollout(pictures, threshold).num_tokens == code.num_tokens.item()


def test_score_on_the_threshold_is_not_below_it(model, processor, pixel_values):
    pictures = rollout_pictures(model, processor, pixel_values)
    assert pick_rollout(pictures, min(picture.l1 for picture in pictures)) is pictures[-1]


@pytest.mark.parametrize(("codebook_size", "num_bytes"), [(2, 1), (64, 3), (65, 4), (4096, 6), (65536, 8)])
def test_payload_is_whole_bytes_of_packed_ids(codebook_size, num_bytes):
    assert payload_bytes(tiny_config(codebook_size=codebook_size), 4) == num_bytes


def test_continuous_latents_have_no_ids_and_no_bytes(processor, pixel_values):
    model = ALITModel(tiny_config(quantize=False)).eval()
    for picture in rollout_pictures(model, processor, pixel_values):
        assert picture.token_ids is None
        assert picture.payload_bytes is None


def test_more_than_one_image_is_refused(model, processor):
    with pytest.raises(ValueError, match=r"`pixel_values` has shape \(2, 3, 32, 32\), it must be one image"):
        rollout_pictures(model, processor, torch.rand(2, 3, 32, 32))
