"""Estimates agree with other libraries, and what cannot be told is not told."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from alit_hf.analysis.statistics import auroc, in_words, mean, mean_difference, spearman


def sample(size: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, size)


def test_spearman_is_scipys_with_ties_and_has_an_interval_around_it():
    x = sample(60).round(1)
    y = (x + sample(60, 1)).round(1)
    got = spearman(x, y, seed=0)
    assert got["value"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-6)
    # Fisher's approximation of the interval.
    low, high = np.tanh(np.arctanh(got["value"]) + np.array([-1, 1]) * 1.96 / np.sqrt(57))
    assert (got["low"], got["high"]) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))
    assert (got["num_images"], got["not_enough_data"]) == (60, None)
    assert spearman(x, -y, seed=0)["value"] == -got["value"]
    # The images are resampled together: a perfect correlation stays perfect.
    assert spearman(x, x**3, seed=0)["low"] == 1


def test_auroc_is_the_share_of_pairs():
    negatives, positives = sample(30).round(1), sample(45, 1, shift=1).round(1)
    got = auroc(negatives, positives, seed=0)
    expected = mannwhitneyu(positives, negatives).statistic / (30 * 45)
    assert got["value"] == pytest.approx(expected, abs=1e-6)
    assert got["low"] < expected < got["high"]
    assert auroc(positives, negatives, seed=0)["value"] == pytest.approx(1 - expected, abs=1e-6)
    assert auroc(np.zeros(10), np.ones(10), seed=0)["value"] == 1


def test_means_have_the_interval_of_their_standard_error():
    first, second = sample(100), sample(80, 1, shift=2)
    got = mean(first, seed=0)
    error = 1.96 * first.std() / 10
    assert got["value"] == pytest.approx(first.mean(), abs=1e-6)
    assert got["high"] - got["low"] == pytest.approx(2 * error, rel=0.1)
    difference = mean_difference(first, second, seed=0)
    assert difference["value"] == pytest.approx(second.mean() - first.mean(), abs=1e-6)
    error = 1.96 * np.sqrt(first.var() / 100 + second.var() / 80)
    assert difference["high"] - difference["low"] == pytest.approx(2 * error, rel=0.1)


def test_the_seed_decides_the_interval():
    x, y = sample(30), sample(30, 1)
    assert spearman(x, y, seed=3) == spearman(x, y, seed=3)
    one, other = spearman(x, y, seed=3), spearman(x, y, seed=4)
    assert one["value"] == other["value"]
    assert one["low"] != other["low"]


@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (lambda: spearman(sample(2), sample(2), seed=0), "2 images, at least 10 are needed"),
        (lambda: spearman(sample(0), sample(0), seed=0), "0 images, at least 10 are needed"),
        (lambda: spearman(sample(50), np.ones(50), seed=0), "the values of 50 images hardly differ"),
        (lambda: spearman(sample(50), np.eye(50)[0], seed=0), "the values of 50 images hardly differ"),
        (lambda: auroc(sample(50), sample(9), seed=0), "9 images, at least 10 are needed"),
        (lambda: auroc(np.ones(50), np.ones(40), seed=0), "the values of 40 images hardly differ"),
        (lambda: mean(sample(9), seed=0), "9 images, at least 10 are needed"),
    ],
)
def test_not_enough_data_gives_no_number(estimate, reason):
    got = estimate()
    assert (got["value"], got["low"], got["high"]) == (None, None, None)
    assert got["not_enough_data"] == f"not enough data: {reason}"
    assert in_words(got) == f"(not enough data: {reason})"


def test_nan_is_refused():
    with pytest.raises(ValueError, match="`samples` have NaN"):
        spearman(sample(20), np.where(np.arange(20) == 3, np.nan, 1.0), seed=0)


def test_words():
    assert in_words(spearman(np.arange(20), np.arange(20), seed=0)) == "1.000 [1.000, 1.000]"
