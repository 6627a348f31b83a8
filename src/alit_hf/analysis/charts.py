"""Shared parts of the figures of analyses."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


_FONT_SIZE = 9


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, with sizes in inches, whose panels arrange themselves."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style(axes: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Labels a drawn panel and removes clutter."""
    axes.set_xlabel(xlabel, fontsize=_FONT_SIZE, parse_math=False)
    axes.set_ylabel(ylabel, fontsize=_FONT_SIZE, parse_math=False)
    axes.set_title(title, fontsize=_FONT_SIZE + 1, loc="left", parse_math=False)
    axes.tick_params(labelsize=_FONT_SIZE - 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def length_colors(count: int) -> list[tuple[float, float, float, float]]:
    """A colour for each length, dark for few tokens and light for many."""
    colors = matplotlib.colormaps["viridis"]
    return [colors(0.95 * position / max(count - 1, 1)) for position in range(count)]


def draw_estimates(axes: Axes, estimates: dict[str, dict], label: str, color: str) -> None:
    """
    Draws estimates of `statistics.py` over lengths, with their intervals. Those without a value leave a gap; if no
    curve has one, the panel says so.
    """
    values, lows, highs = (
        [np.nan if estimate[name] is None else estimate[name] for estimate in estimates.values()]
        for name in ("value", "low", "high")
    )
    lengths = [int(length) for length in estimates]
    axes.plot(lengths, values, "o-", color=color, label=label, markersize=3)
    axes.fill_between(lengths, lows, highs, color=color, alpha=0.2, linewidth=0)
    if np.isnan(values).all() and not axes.texts:
        axes.text(0.5, 0.5, "not enough data", transform=axes.transAxes, ha="center", fontsize=_FONT_SIZE)


__all__ = ["draw_estimates", "length_colors", "new_figure", "style"]
