"""Estimates agree with other libraries, and what cannot be told is not told."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from alit_hf.analysis import statistics
from alit_hf.analysis.statistics import (
    auroc,
    estimate,
    in_words,
    mean,
    mean_difference,
    mean_spearman,
    share_difference,
    spearman,
)


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


def test_mean_spearman_weighs_groups_alike_and_leaves_out_those_without_a_value():
    x, noise = sample(60), sample(60, 1)
    alone = spearman(x, x + noise, seed=0)
    one = mean_spearman([(x, x + noise)], seed=0)
    assert (one["value"], one["num_groups"], one["num_images"]) == (alone["value"], 1, 60)
    # Drawn with the same seed, but in another way.
    assert (one["low"], one["high"]) == (pytest.approx(alone["low"], abs=0.03), pytest.approx(alone["high"], abs=0.03))
    groups = [(x, x + noise), (x[:12], -x[:12]), (x[:5], x[:5]), (x, np.ones(60))]
    both = mean_spearman(groups, seed=0)
    assert both["value"] == pytest.approx((alone["value"] - 1) / 2, abs=1e-6)
    assert (both["num_groups"], both["num_images"]) == (2, 72)
    # The second is -1 in every resample: half of the first's interval.
    assert both["high"] - both["low"] == pytest.approx((alone["high"] - alone["low"]) / 2, abs=0.02)
    # Ranks of different groups are not compared: values of one far above the other change nothing.
    shifted = [(x, x + noise), (x[:12] + 1000, -x[:12] - 1000)]
    assert mean_spearman(shifted, seed=0)["value"] == both["value"]
    nothing = mean_spearman([(x[:5], x[:5])], seed=0)
    assert nothing["value"] is None
    assert nothing["not_enough_data"] == "not enough data: no group has a correlation"


def test_auroc_is_the_share_of_pairs():
    negatives, positives = sample(30).round(1), sample(45, 1, shift=1).round(1)
    got = auroc(negatives, positives, seed=0)
    expected = mannwhitneyu(positives, negatives).statistic / (30 * 45)
    assert got["value"] == pytest.approx(expected, abs=1e-6)
    assert got["low"] < expected < got["high"]
    assert auroc(positives, negatives, seed=0)["value"] == pytest.approx(1 - expected, abs=1e-6)


def test_a_perfect_auroc_is_not_certain():
    got = auroc(sample(20), sample(12, 1, shift=20), seed=0)
    # Wilson's interval of 12 out of 12.
    assert (got["value"], got["low"], got["high"]) == (1, pytest.approx(12 / (12 + 1.95996**2), abs=1e-5), 1)
    assert got["num_images"] == 12
    assert auroc(sample(12, 1, shift=20), sample(20), seed=0)["high"] == pytest.approx(1 - got["low"], abs=1e-6)


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


def paired(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_first, only_second, neither)
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def test_a_difference_of_shares_has_newcombes_interval():
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014: -0.286 [-0.507, -0.026].
    got = share_difference(*paired(1, 1, 7, 12)[::-1])
    assert (got["value"], got["low"], got["high"]) == (
        pytest.approx(-6 / 21, abs=1e-6),
        pytest.approx(-0.507, abs=5e-4),
        pytest.approx(-0.026, abs=5e-4),
    )
    other = share_difference(*paired(1, 1, 7, 12))
    assert (other["value"], other["low"], other["high"]) == (-got["value"], -got["high"], -got["low"])
    assert (got["num_images"], got["not_enough_data"]) == (21, None)


@pytest.mark.parametrize("counts", [(200, 0, 0, 0), (0, 0, 0, 200), (100, 0, 0, 100), (150, 0, 0, 50)])
def test_equal_shares_are_not_certain(counts):
    got = share_difference(*paired(*counts))
    assert got["value"] == 0
    assert -0.05 < got["low"] < -0.005
    assert 0.005 < got["high"] < 0.05


@pytest.mark.parametrize("chances", [(0.7, 0.05, 0.1, 0.15), (0.9, 0.02, 0.06, 0.02), (0.3, 0.2, 0.2, 0.3)])
def test_the_interval_of_a_difference_of_shares_holds_it_19_times_in_20(chances):
    counts = np.random.default_rng(0).multinomial(60, chances, size=1500)
    found = [share_difference(*paired(*of_sample)) for of_sample in counts]
    covered = np.mean([got["low"] <= chances[2] - chances[1] <= got["high"] for got in found])
    assert 0.93 < covered < 0.99


def test_differences_of_shares_are_of_the_same_images():
    assert share_difference(np.ones(9), np.ones(9))["not_enough_data"] == (
        "not enough data: 9 images, at least 10 are needed"
    )
    with pytest.raises(ValueError, match="`first` has 12 images and `second` 13, they must be of the same ones"):
        share_difference(np.ones(12), np.ones(13))


def test_the_seed_decides_the_interval():
    x, y = sample(30), sample(30, 1)
    assert spearman(x, y, seed=3) == spearman(x, y, seed=3)
    one, other = spearman(x, y, seed=3), spearman(x, y, seed=4)
    assert one["value"] == other["value"]
    assert one["low"] != other["low"]


@pytest.mark.parametrize("num_images", [900, 2500])
def test_many_images_are_resampled_in_parts_with_the_same_result(num_images, monkeypatch):
    x, y = sample(num_images), sample(num_images, 1) + sample(num_images)
    sizes = []

    def mean_of(values: np.ndarray, axis: int) -> np.ndarray:
        sizes.append(values.size)
        return values.mean(axis=axis)

    in_parts = estimate(mean_of, x, seed=0), spearman(x, y, seed=0)
    assert max(sizes) <= 2_000_000
    monkeypatch.setattr(statistics, "_BATCH_VALUES", 10**9)
    assert (estimate(mean_of, x, seed=0), spearman(x, y, seed=0)) == in_parts
    assert max(sizes) == 2000 * num_images


@pytest.mark.parametrize(
    ("estimate", "reason"),
    [
        (lambda: spearman(sample(2), sample(2), seed=0), "2 images, at least 10 are needed"),
        (lambda: spearman(sample(0), sample(0), seed=0), "0 images, at least 10 are needed"),
        (lambda: spearman(sample(50), np.ones(50), seed=0), "the values of 50 images hardly differ"),
        (lambda: spearman(sample(50), np.eye(50)[0], seed=0), "the values of 50 images hardly differ"),
        (lambda: auroc(sample(50), sample(9), seed=0), "9 images, at least 10 are needed"),
        (lambda: auroc(np.ones(50), np.ones(40), seed=0), "the values of 40 images hardly differ"),
        (
            lambda: spearman(sample(50), 0.1234565 + 1e-8 * sample(50, 1), seed=0),
            "the values of 50 images hardly differ",
        ),
        (
            lambda: auroc(0.5 + 1e-8 * sample(50), 0.5 + 1e-8 * sample(40, 1), seed=0),
            "the values of 40 images hardly differ",
        ),
        (lambda: auroc(np.zeros(12), np.ones(15), seed=0), "the values of 12 images hardly differ"),
        (lambda: mean(np.full(50, -0.115), seed=0), "the values of 50 images hardly differ"),
        (lambda: mean(0.3 + 1e-7 * sample(50), seed=0), "the values of 50 images hardly differ"),
        (lambda: mean(0.1234565 + 1e-9 * sample(50), seed=0), "the values of 50 images hardly differ"),
        (lambda: mean_difference(np.zeros(20), np.ones(15), seed=0), "the values of 15 images hardly differ"),
        # Every resample gives the same.
        (
            lambda: estimate(lambda x, axis: 0 * x.sum(axis), sample(50), seed=0),
            "the values of 50 images hardly differ",
        ),
        (lambda: mean(sample(9), seed=0), "9 images, at least 10 are needed"),
    ],
)
def test_not_enough_data_gives_no_number(estimate, reason):
    got = estimate()
    assert (got["value"], got["low"], got["high"]) == (None, None, None)
    assert got["not_enough_data"] == f"not enough data: {reason}"
    assert in_words(got) == f"(not enough data: {reason})"


def test_what_batches_change_does_not_count():
    """Values that would be equal or in another order with other batches."""
    x, noise = np.repeat(np.arange(3.0), 20), 1e-8 * sample(60)
    y = np.tile([0.25, 0.5, 0.75, 1], 15)
    assert spearman(x, y + noise, seed=0) == spearman(x, y, seed=0)
    assert spearman(x + noise, y, seed=0) == spearman(x, y, seed=0)
    assert auroc(y, y + noise, seed=0) == auroc(y, y, seed=0)
    assert auroc(y, y + noise, seed=0)["value"] == 0.5


def test_nan_is_refused():
    with pytest.raises(ValueError, match="`samples` have NaN"):
        spearman(sample(20), np.where(np.arange(20) == 3, np.nan, 1.0), seed=0)


def test_words():
    assert in_words(spearman(np.arange(20), np.arange(20), seed=0)) == "1.000 [1.000, 1.000]"
