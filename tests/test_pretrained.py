"""The checkpoint inside the package: what anyone who installs it gets."""

import pytest
import torch
from PIL import Image
from skimage import data

from alit_hf import ALITConfig, ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.codes.rollout_pictures import payload_bytes
from alit_hf.evaluation.pixels import to_pixels
from alit_hf.evaluation.yardsticks import thumbnail, thumbnail_size


@pytest.fixture(scope="module")
def scores():
    """L1 at every length of photos that no training saw, `(photos, lengths)`, and the ids at the full length."""
    model = ALITModel.from_pretrained(pretrained_path(), dtype=torch.float32).eval()
    processor = ALITImageProcessor.from_pretrained(pretrained_path())
    photos = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "cat", "coffee", "rocket")]
    pixel_values = processor(photos, return_tensors="pt").pixel_values
    with torch.no_grad():
        rollouts = list(model.rollouts(pixel_values))
    errors = [(one.reconstruction - pixel_values).abs().flatten(1).mean(dim=1) for one in rollouts]
    return torch.stack(errors, dim=1), rollouts[-1].token_ids, pixel_values


def test_thumbnails_of_as_many_bytes_are_worse_on_average(scores):
    errors, _, pixel_values = scores
    pictures = ALITImageProcessor.from_pretrained(pretrained_path()).postprocess(pixel_values)
    config = ALITConfig.from_pretrained(pretrained_path())
    of_thumbnails = []
    for rollout in range(1, errors.shape[1] + 1):
        size = thumbnail_size(*pictures[0].size, payload_bytes(config, rollout * config.tokens_per_rollout))
        thumbnails = to_pixels([thumbnail(picture, size) for picture in pictures])
        of_thumbnails.append((thumbnails - pixel_values).abs().mean())
    assert errors.mean() < torch.stack(of_thumbnails).mean()


def test_more_tokens_lower_the_error(scores):
    # Over 500 photos it falls at every step (tests/tools/test_checkpoint_card.py); four are too few for the last ones.
    errors, _, _ = scores
    assert errors.shape == (4, 8)
    means = errors.mean(dim=0)
    assert (means.diff()[:5] < 0).all(), means
    assert (means[-3:] < 0.75 * means[0]).all(), means


def test_pictures_are_better_than_one_colour(scores):
    errors, _, pixel_values = scores
    one_colour = (
        (pixel_values - pixel_values.flatten(2).median(dim=2).values[..., None, None]).abs().flatten(1).mean(1)
    )
    assert errors[:, 0].mean() < 0.9 * one_colour.mean()
    assert (errors[:, -1] < one_colour).all()


def test_photos_have_codes_of_their_own(scores):
    _, token_ids, _ = scores
    assert len(token_ids.unique()) > 256
    shared = (token_ids[0] == token_ids[1]).float().mean()
    assert shared < 0.1
