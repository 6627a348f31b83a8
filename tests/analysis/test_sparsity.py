"""Sparsity of maps whose spread is known."""

import math

import pytest
import torch

from alit_hf.analysis.sparsity import entropy, top_decile_share


def test_uniform_maps_and_points():
    uniform, point = torch.full((1, 4, 5), 1 / 20), torch.zeros(1, 4, 5)
    point[0, 2, 3] = 1
    maps = torch.stack([uniform, point])
    assert entropy(maps).flatten().tolist() == pytest.approx([1, 0])
    assert top_decile_share(maps).flatten().tolist() == pytest.approx([0.1, 1])


def test_entropy_is_the_logarithm_of_the_places_in_use():
    maps = torch.zeros(4, 4)
    maps[0] = 0.25
    assert entropy(maps).item() == pytest.approx(math.log(4) / math.log(16))


def test_the_last_position_of_a_tenth_counts_in_part():
    maps = torch.zeros(3, 5)
    maps[0, 1], maps[1, 0], maps[2, 4] = 0.5, 0.3, 0.2
    # A tenth of 15 positions is one and a half.
    assert top_decile_share(maps).item() == pytest.approx(0.5 + 0.3 / 2)
