"""Overlap of maps with segments, on label maps whose overlap is known."""

import numpy as np
import pytest
import torch

from alit_hf.analysis.segment_overlap import SHARES, overlaps, segments_of_label_maps


def overlap_at(share: float, maps: torch.Tensor, segments) -> float:
    return overlaps(maps, segments)[SHARES.index(share)].item()


def halves(size: int = 8) -> np.ndarray:
    """Label 1 on the left half, 2 on the right."""
    return np.repeat([[1, 2]], size // 2, axis=1).repeat(size, axis=0)


def left_to_right(rows: int = 4, columns: int = 4) -> torch.Tensor:
    return -torch.arange(float(columns)).expand(1, rows, columns)


def test_the_best_map_of_each_segment_counts():
    segments = segments_of_label_maps([halves()], (4, 4))
    left = left_to_right()
    assert overlap_at(0.5, torch.cat([left, -left]), segments) == pytest.approx(1)
    # The left map alone: all of one half, nothing of the other.
    assert overlap_at(0.5, left, segments) == pytest.approx(0.5)
    # Three quarters of the image: a union of three quarters with the left half, of the whole image with the right one.
    assert overlap_at(0.75, left, segments) == pytest.approx((2 / 3 + 1 / 4) / 2)


def test_overlap_counts_pixels_and_not_positions():
    """A segment border that runs through positions of 2 x 2 pixels."""
    label_map = np.ones((8, 8), int)
    label_map[:, 3:] = 2
    segments = segments_of_label_maps([label_map], (4, 4))
    # The left half, 32 pixels: 24 of the first segment's 24, 8 of the second's 40.
    assert overlap_at(0.5, left_to_right(), segments) == pytest.approx((24 / 32 + 8 / 64) / 2)


def test_annotators_count_alike_however_many_segments_they_drew():
    quarters = halves() + 2 * halves().T
    left = left_to_right()
    of_quarters = overlap_at(0.5, left, segments_of_label_maps([quarters], (4, 4)))
    of_halves = overlap_at(0.5, left, segments_of_label_maps([halves()], (4, 4)))
    assert of_quarters == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)
    both = segments_of_label_maps([quarters, halves()], (4, 4))
    assert overlap_at(0.5, left, both) == pytest.approx((of_quarters + of_halves) / 2)


def test_grids_that_are_not_square_keep_rows_and_columns_apart():
    label_map = np.ones((4, 8), int)
    label_map[:, 6:] = 2
    maps = torch.zeros(1, 2, 4)
    maps[..., 3] = 1
    segments = segments_of_label_maps([label_map], (2, 4))
    assert overlap_at(0.25, maps, segments) == pytest.approx(0.5)


def test_labels_without_a_segment_or_too_small_for_a_position_are_left_out():
    label_map = halves()
    label_map[:, 4:] = 0
    label_map[0, 4:7] = 3
    segments = segments_of_label_maps([label_map], (4, 4))
    assert segments.areas.sum(dim=1).tolist() == [32]
    with pytest.raises(ValueError, match="no segment as large as a grid position"):
        segments_of_label_maps([np.zeros((8, 8), int)], (4, 4))


def test_overlap_is_that_of_masks_enlarged_to_pixels():
    random = np.random.default_rng(0)
    label_maps = [np.kron(random.integers(1, 5, (4, 6)), np.ones((3, 4), int)) for _ in range(2)]
    maps = torch.rand(5, 3, 4)
    found = overlaps(maps, segments_of_label_maps(label_maps, (3, 4)))
    for share, value in zip(SHARES, found.tolist(), strict=True):
        lowest_kept = maps.flatten(1).sort(dim=1, descending=True).values[:, max(1, round(share * 12)) - 1]
        masks = [np.kron(mask, np.ones((4, 6))) > 0 for mask in (maps >= lowest_kept[:, None, None]).numpy()]
        of_annotators = []
        for label_map in label_maps:
            segments = [label_map == label for label in np.unique(label_map)]
            segments = [segment for segment in segments if segment.sum() >= 24]
            best = [max((mask & segment).sum() / (mask | segment).sum() for mask in masks) for segment in segments]
            of_annotators.append(np.mean(best))
        assert value == pytest.approx(np.mean(of_annotators), abs=1e-6)
