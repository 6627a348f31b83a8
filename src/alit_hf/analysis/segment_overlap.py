"""Overlap of thresholded maps with the segments that people see in an image (paper section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats.contingency import crosstab


SHARES = tuple(percent / 100 for percent in range(5, 100, 5))
"""Shares of an image's positions that masks keep."""


@dataclass(frozen=True)
class Segments:
    """
    The segments of one image from all its annotators.

    Args:
        areas (`torch.Tensor` of shape `(S, N)`): pixels of each segment at each grid position, float32.
        weights (`torch.Tensor` of shape `(S,)`): each segment's weight in the mean over annotators of the means over
            their segments; they sum to 1.
        pixels_per_position (`int`): pixels per grid position.
    """

    areas: torch.Tensor
    weights: torch.Tensor
    pixels_per_position: int


def segments_of_label_maps(label_maps: Sequence[np.ndarray], grid_size: tuple[int, int]) -> Segments:
    """
    The segments that label maps describe. Label 0 is not a segment; segments smaller than a grid position, which no
    map can show, are left out.

    Args:
        label_maps (`Sequence[np.ndarray]`): one `(H, W)` for each annotator, all of the same size, cropped as the
            model sees the image.
        grid_size (`tuple[int, int]`): rows and columns of the grid, which divide H and W.

    Raises:
        `ValueError`: if no segment is left.
    """
    rows, columns = grid_size
    positions = np.arange(rows * columns).reshape(grid_size)
    areas, weights = [], []
    for label_map in label_maps:
        patch = (label_map.shape[0] // rows, label_map.shape[1] // columns)
        (labels, _), counts = crosstab(label_map, np.kron(positions, np.ones(patch, dtype=int)))
        counts = counts[(labels != 0) & (counts.sum(axis=1) >= patch[0] * patch[1])]
        if len(counts):
            areas.append(torch.from_numpy(counts).float())
            weights.append(torch.full((len(counts),), 1 / len(counts)))
    if not areas:
        raise ValueError("the label maps have no segment as large as a grid position")
    return Segments(torch.cat(areas), torch.cat(weights) / len(areas), patch[0] * patch[1])


def overlaps(maps: torch.Tensor, segments: Segments) -> torch.Tensor:
    """
    Mean intersection over union of an image's segments with the thresholded map that fits each best.

    A map is thresholded by keeping the share of positions with the highest values, with all their pixels. So all masks
    of a share have the same area, whatever the map, and differ only in their place.

    Args:
        maps (`torch.Tensor` of shape `(T, rows, columns)`): any values.
        segments ([`Segments`])

    Returns:
        for each of `SHARES` the mean over annotators and segments, `(len(SHARES),)` in [0, 1].
    """
    maps = maps.flatten(1).cpu()
    ranks = maps.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    segment_pixels = segments.areas.sum(dim=1, keepdim=True)
    means = []
    for share in SHARES:
        num_kept = max(1, round(share * maps.shape[1]))
        shared = segments.areas @ (ranks < num_kept).float().T
        united = segment_pixels + num_kept * segments.pixels_per_position - shared
        means.append(segments.weights @ (shared / united).amax(dim=1))
    return torch.stack(means)


__all__ = ["SHARES", "Segments", "overlaps", "segments_of_label_maps"]
