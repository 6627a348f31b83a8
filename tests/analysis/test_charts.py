"""Estimates as curves, and what is said where there are none."""

import numpy as np
import pytest

from alit_hf.analysis.charts import draw_estimates, new_figure
from alit_hf.analysis.statistics import mean


LENGTHS = ("3", "6", "9")


def drawn(*num_images: int):
    """Axes with a curve over `LENGTHS` for each number of images that estimates are from."""
    axes = new_figure(2, 2).subplots()
    values = np.random.default_rng(0).random(20)
    for count in num_images:
        draw_estimates(axes, {length: mean(values[:count], seed=0) for length in LENGTHS}, "error", "C0")
    return axes


def test_a_curve_is_drawn_with_nothing_said():
    axes = drawn(20)
    (curve,) = axes.lines
    assert list(curve.get_xdata()) == [3, 6, 9]
    assert curve.get_ydata() == pytest.approx(np.random.default_rng(0).random(20).mean(), abs=1e-6)
    assert not axes.texts


@pytest.mark.parametrize("num_curves", [1, 2])
def test_curves_without_a_value_say_so_once(num_curves):
    (text,) = drawn(*[2] * num_curves).texts
    assert text.get_text() == "not enough data"
