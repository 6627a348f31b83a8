"""The figure of attention over rollouts: maps over pictures, and the sparsity of maps below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure, SubFigure

from .charts import draw_estimates, new_figure, style


_PANEL = 1.05  # inches
_CHARTS_HEIGHT = 2.5
MAP_COLORS = "inferno"
MAP_OPACITY = 0.65
_FONT_SIZE = 8


@dataclass(frozen=True)
class MapRow:
    """
    One latent token over one picture.

    Args:
        pixels (`np.ndarray` of shape `(H, W, 3)`): the picture, in [0, 1].
        label (`str`): name of the token.
        maps (`np.ndarray` of shape `(K, rows, columns)`): the token's map after each rollout.
    """

    pixels: np.ndarray
    label: str
    maps: np.ndarray


def draw_attention(rows: Sequence[MapRow], lengths: Sequence[int], sparsity: dict) -> Figure:
    """
    Draws a picture and a token's maps over it in each row, and the sparsity of maps at each length below.

    Args:
        rows (`Sequence[MapRow]`): each with a map for each length.
        lengths (`Sequence[int]`): latent tokens after each rollout.
        sparsity (`dict`): an item of `layers` in the results of the analysis `attention`.
    """
    heights = (_PANEL * len(rows) + 0.3, _CHARTS_HEIGHT)
    figure = new_figure(_PANEL * (1 + len(lengths)) + 0.3, sum(heights))
    pictures, charts = figure.subfigures(2, 1, height_ratios=heights)
    _draw_rows(pictures, rows, lengths)
    of_entropy, of_top_decile = charts.subplots(1, 2)
    for measure, axes, label in (
        ("entropy", of_entropy, "entropy of maps (1: uniform)"),
        ("top_decile_share", of_top_decile, "mass in top decile (0.1: uniform)"),
    ):
        for tokens, color, whose in (("all", "C3", "all tokens"), ("first", "C0", f"first {lengths[0]} tokens")):
            draw_estimates(axes, sparsity[tokens][measure]["by_length"], whose, color)
        axes.set_xticks(lengths)
        style(axes, "latent tokens", label)
    of_entropy.legend(fontsize=_FONT_SIZE, frameon=False)
    return figure


def _draw_rows(figure: SubFigure, rows: Sequence[MapRow], lengths: Sequence[int]) -> None:
    grid = figure.subplots(len(rows), 1 + len(lengths), squeeze=False)
    titles = ["picture", *(f"{length} tokens" for length in lengths)]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=_FONT_SIZE)
    for row, (first, *others) in zip(rows, grid, strict=True):
        height, width, _ = row.pixels.shape
        first.imshow(row.pixels)
        first.set_ylabel(row.label, fontsize=_FONT_SIZE)
        # One scale per token, so that a map that sharpens becomes brighter at its peak.
        for axes, map_ in zip(others, row.maps, strict=True):
            axes.imshow(row.pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1)
            axes.imshow(
                map_,
                cmap=MAP_COLORS,
                vmin=0,
                vmax=row.maps.max(),
                alpha=MAP_OPACITY,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear",
            )
        for axes in (first, *others):
            axes.set_xticks([])
            axes.set_yticks([])


__all__ = ["MAP_COLORS", "MAP_OPACITY", "MapRow", "draw_attention"]
