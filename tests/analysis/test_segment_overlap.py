"""Overlap of maps with segments, on label maps whose overlap is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from alit_hf import ALITImageProcessor
from alit_hf.analysis.segment_overlap import SHARES, crop_label_map, overlaps, segments_of_label_maps


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


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (90, 37), (20, 700)])
def test_labels_are_cropped_as_the_pixels_are(size):
    """Blocks of flat colour: away from their borders each pixel of the crop names its block, as its label does."""
    processor = ALITImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    height, width = size
    label_map = (np.arange(height) // 10)[:, None] * 1000 + np.arange(width) // 10 * 3 + 1
    cropped = crop_label_map(label_map, processor)
    assert set(np.unique(cropped)) <= set(np.unique(label_map))
    # One picture a label bit, through the processor's own resampling.
    for label in np.unique(cropped):
        picture = Image.fromarray(((label_map == label) * 255).astype(np.uint8))
        pixels = processor(picture, return_tensors="np").pixel_values[0, 0]
        assert (pixels[cropped == label] > 0.3).all()
        assert (pixels[cropped != label] < 0.7).all()


def test_large_labels_survive():
    processor = ALITImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    label_map = halves() * 40_000
    assert np.array_equal(crop_label_map(label_map, processor), label_map)
