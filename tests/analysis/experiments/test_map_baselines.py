"""Maps that need no image are of the shape that they claim, and the same again under a seed."""

import numpy as np
import pytest
import torch

from alit_hf.analysis.experiments.segmentation import center_map, disc_maps, scattered_maps
from alit_hf.analysis.segment_overlap import SHARES, overlaps, segments_of_label_maps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [scattered_maps, disc_maps])
def test_random_maps_are_those_of_their_seed(make):
    maps = make(5, (4, 6), generator())
    assert maps.shape == (5, 4, 6)
    assert torch.equal(maps, make(5, (4, 6), generator()))
    assert not torch.equal(maps, make(5, (4, 6), generator(1)))
    assert len(maps.unique(dim=0)) == 5


def test_the_centre_map_is_highest_in_the_middle():
    (center,) = center_map((4, 6))
    assert center.max() == center[1:3, 2:4].min()
    assert center.argmin() in (0, 5, 18, 23)
    assert torch.equal(center, center.flip(0, 1))


def test_random_discs_are_discs_around_places_everywhere():
    maps = disc_maps(400, (6, 9), generator())
    peaks = maps.flatten(1).argmax(dim=1)
    assert len(peaks.unique()) == 54
    for peak, map_ in zip(peaks.tolist(), maps, strict=True):
        row, column = divmod(peak, 9)
        distance = (torch.arange(6)[:, None] - row) ** 2 + (torch.arange(9) - column) ** 2
        assert np.corrcoef(distance.flatten(), -map_.flatten())[0, 1] > 0.9


def test_scattered_masks_overlap_as_chance_says():
    """Half of the image against a half: a third."""
    label_map = np.repeat([[1, 2]], 32, axis=1).repeat(64, axis=0)
    found = overlaps(scattered_maps(1, (64, 64), generator()), segments_of_label_maps([label_map], (64, 64)))
    assert found[SHARES.index(0.5)].item() == pytest.approx(1 / 3, abs=0.01)
