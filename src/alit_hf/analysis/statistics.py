"""Estimates with their confidence intervals, or the reason why there is none."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap, mannwhitneyu, pearsonr, rankdata

from alit_hf.evaluation.rounding import rounded


# With fewer, nothing is estimated.
_MIN_IMAGES = 10
_CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
# Resampled values in memory at once, for each sample. For more than 1000 images it also determines the order in which
# samples of different images are drawn.
_BATCH_VALUES = 2_000_000

# Values within it are equal to 6 decimals, even on either side of a rounding step.
_ALIKE = 1.5e-6


def not_enough(num_images: int) -> str | None:
    """Why there are too few images; `None` if there are enough."""
    if num_images >= _MIN_IMAGES:
        return None
    return f"not enough data: {num_images} images, at least {_MIN_IMAGES} are needed"


def estimate(
    statistic: Callable[..., np.ndarray],
    *samples: np.ndarray,
    seed: int,
    paired: bool = False,
    perfect: tuple[float, ...] = (),
) -> dict[str, float | int | str | None]:
    """
    A statistic with its bootstrap interval (percentiles of resampled images).

    Args:
        statistic (`Callable`): maps `(*samples, axis)` to the statistic along `axis`.
        *samples (`np.ndarray` of shape `(N,)`): a value for each image; all of the same N if they are `paired`.
        seed (`int`): seed of the resamples.
        paired (`bool`, *optional*, defaults to `False`): whether the samples are of the same images.
        perfect (`tuple[float, ...]`, *optional*, defaults to `()`): values that every resample may have although the
            images differ, such as that of a perfect correlation.

    Returns:
        `value`, `low` and `high`, `num_images` (of the smallest sample), and `not_enough_data`: `None`, or why the
        others are `None`: too few images, or values that hardly differ. For the latter the statistic is undefined, or
        every resample gives the same one, which would make it look certain.

    Raises:
        `ValueError`: for NaN or infinite values.
    """
    samples = tuple(np.asarray(sample, dtype=np.float64) for sample in samples)
    if not all(np.isfinite(sample).all() for sample in samples):
        raise ValueError("`samples` have NaN or infinite values, they must be finite.")
    num_images = min(len(sample) for sample in samples)
    problem = not_enough(num_images)
    if problem is None and all(_alike(sample) for sample in samples):
        problem = _too_alike(num_images)
    if problem is None:
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            value = statistic(*samples, axis=-1)
            interval = bootstrap(
                samples,
                statistic,
                n_resamples=_NUM_RESAMPLES,
                batch=max(1, min(_NUM_RESAMPLES, _BATCH_VALUES // max(map(len, samples)))),
                confidence_level=_CONFIDENCE,
                method="percentile",
                paired=paired,
                vectorized=True,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([value, *interval]).all():
            value, low, high = map(rounded, (value, *interval))
            if low < high or value in perfect:
                return _with_value(num_images, value, low, high)
        problem = _too_alike(num_images)
    return _without_value(num_images, problem)


def spearman(x: np.ndarray, y: np.ndarray, *, seed: int) -> dict:
    """Spearman's rank correlation of values `(N,)` of the same images, to 6 decimals; see `estimate`."""
    return estimate(_spearman, _to_rank(x), _to_rank(y), seed=seed, paired=True, perfect=(-1, 1))


def mean_spearman(groups: Sequence[tuple[np.ndarray, np.ndarray]], *, seed: int) -> dict:
    """
    The mean over groups of Spearman's rank correlation within each, which weighs groups alike and compares no image
    with one of another group.

    Args:
        groups (`Sequence[tuple[np.ndarray, np.ndarray]]`): the values `(N,)` of each group's images, of which N may
            differ. Groups that are too small or whose values hardly differ (see `spearman`) are left out.
        seed (`int`): seed of the resamples, which are of the images of each group.

    Returns:
        what `estimate` does, with the images of all groups that count as `num_images`; and their number, `num_groups`.
    """
    known = [group for group in groups if spearman(*group, seed=seed)["value"] is not None]
    if not known:
        return {**_without_value(0, "not enough data: no group has a correlation"), "num_groups": 0}
    ranked = [(_to_rank(x), _to_rank(y)) for x, y in known]

    def statistic(*rows: np.ndarray, axis: int) -> np.ndarray:
        drawn = (index.astype(int) for index in rows)
        return np.mean([_spearman(x[i], y[i], axis) for (x, y), i in zip(ranked, drawn, strict=True)], axis=0)

    # Rows are drawn, not values, as those of an image stay together.
    rows = [np.arange(len(x)) for x, _ in ranked]
    estimated = estimate(statistic, *rows, seed=seed, perfect=(-1, 1))
    return {**estimated, "num_images": sum(map(len, rows)), "num_groups": len(rows)}


def auroc(negatives: np.ndarray, positives: np.ndarray, *, seed: int) -> dict:
    """
    The probability that a positive image has a higher value than a negative one, to 6 decimals, ties counted half: the
    area under the ROC curve; see `estimate`. If the values of each kind are all equal, nothing is known about how they
    vary. If every positive image is on the same side of every negative one, resampling would make that look certain,
    so the interval is Wilson's, for the largest number of pairs without a common image.
    """
    estimated = estimate(_auroc, _to_rank(negatives), _to_rank(positives), seed=seed, perfect=(0, 1))
    if estimated["not_enough_data"] is None and estimated["low"] == estimated["high"]:
        return share(np.full(estimated["num_images"], estimated["value"]))
    return estimated


def mean(values: np.ndarray, *, seed: int) -> dict:
    """The mean of values `(N,)`; see `estimate`."""
    return estimate(np.mean, values, seed=seed)


def mean_difference(first: np.ndarray, second: np.ndarray, *, seed: int) -> dict:
    """The mean of the second values minus that of the first, of different images; see `estimate`."""
    return estimate(lambda a, b, axis: b.mean(axis=axis) - a.mean(axis=axis), first, second, seed=seed)


def share(successes: np.ndarray) -> dict:
    """
    The share of ones among zeros and ones `(N,)`, as `estimate` describes it, with Wilson's interval, as resampling
    would make the share look certain if all are alike.
    """
    problem = not_enough(len(successes))
    if problem is not None:
        return _without_value(len(successes), problem)
    return _with_value(len(successes), np.mean(successes), *_wilson(successes))


def share_difference(first: np.ndarray, second: np.ndarray) -> dict:
    """
    The share of ones in the second zeros and ones `(N,)` minus that in the first, of the same images, as `estimate`
    describes it. The interval is Newcombe's for paired shares, from Wilson's for each and their correlation
    (Statistics in Medicine 17, 1998, method 10), as resampling would make a difference of 0 look certain if no image
    differs.

    Raises:
        `ValueError`: for samples of different numbers of images.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(first) != len(second):
        raise ValueError(f"`first` has {len(first)} images and `second` {len(second)}, they must be of the same ones.")
    num_images = len(first)
    problem = not_enough(num_images)
    if problem is not None:
        return _without_value(num_images, problem)
    shares = first.mean(), second.mean()
    (below_first, above_first), (below_second, above_second) = (
        (value - low, high - value)
        for value, (low, high) in zip(shares, (_wilson(first), _wilson(second)), strict=True)
    )
    correlation = _correlation_of_shares(first, second)

    def reach(one: float, other: float) -> float:
        return np.sqrt(one**2 - 2 * correlation * one * other + other**2)

    value = shares[1] - shares[0]
    low, high = value - reach(below_second, above_first), value + reach(above_second, below_first)
    return _with_value(num_images, value, low, high)


def in_words(estimated: dict) -> str:
    """Value and interval of an estimate, or why there is none."""
    if estimated["not_enough_data"] is not None:
        return f"({estimated['not_enough_data']})"
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**estimated)


def _wilson(successes: np.ndarray) -> tuple[float, float]:
    """Wilson's interval for the share of ones."""
    interval = binomtest(int(np.sum(successes)), len(successes)).proportion_ci(_CONFIDENCE, method="wilson")
    return interval.low, interval.high


def _correlation_of_shares(first: np.ndarray, second: np.ndarray) -> float:
    """Newcombe's correlation of zeros and ones `(N,)` of the same images, 0 if either are all alike."""
    num_images, ones, others = len(first), first.sum(), second.sum()
    scale = np.sqrt(ones * (num_images - ones) * others * (num_images - others))
    if scale == 0:
        return 0.0
    dependence = num_images * (first * second).sum() - ones * others
    if dependence > 0:
        # Continuity correction: without it, the interval for equal shares of a half would have no width.
        dependence = max(dependence - num_images / 2, 0)
    return dependence / scale


def _alike(values: np.ndarray) -> bool:
    return np.ptp(values) < _ALIKE


def _to_rank(values: np.ndarray) -> np.ndarray:
    """Values without the digits that change with the batch size, as ranks would amplify them."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) > 0 and _alike(values):
        return np.full_like(values, values[0])
    return values.round(6)


def _too_alike(num_images: int) -> str:
    return f"not enough data: the values of {num_images} images hardly differ"


def _with_value(num_images: int, value: float, low: float, high: float) -> dict:
    value, low, high = map(rounded, (value, low, high))
    return {"value": value, "low": low, "high": high, "num_images": num_images, "not_enough_data": None}


def _without_value(num_images: int, problem: str) -> dict:
    return {"value": None, "low": None, "high": None, "num_images": num_images, "not_enough_data": problem}


def _spearman(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    return pearsonr(rankdata(x, axis=axis), rankdata(y, axis=axis), axis=axis).statistic


def _auroc(negatives: np.ndarray, positives: np.ndarray, axis: int) -> np.ndarray:
    # Any other method would spend time on p-values.
    pairs_won = mannwhitneyu(positives, negatives, axis=axis, method="asymptotic").statistic
    return pairs_won / (negatives.shape[axis] * positives.shape[axis])


__all__ = [
    "auroc",
    "estimate",
    "in_words",
    "mean",
    "mean_difference",
    "mean_spearman",
    "not_enough",
    "share",
    "share_difference",
    "spearman",
]
