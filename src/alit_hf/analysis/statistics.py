"""Numbers with the interval that they are known to, or the reason why there is none."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap, rankdata

from alit_hf.evaluation.rounding import rounded


MIN_IMAGES = 10
"""Images below which nothing is estimated."""

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000


def not_enough(num_images: int) -> str | None:
    """Why so few images say nothing; `None` where they do."""
    if num_images >= MIN_IMAGES:
        return None
    return f"not enough data: {num_images} images, at least {MIN_IMAGES} are needed"


def estimate(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray, seed: int, paired: bool = False
) -> dict[str, float | int | str | None]:
    """
    A statistic with its bootstrap interval (percentiles of resampled images).

    Args:
        statistic (`Callable`): `(*samples, axis)` to the statistic along `axis`.
        *samples (`np.ndarray` of shape `(N,)`): a value for each image; several of one N if they are `paired`.
        seed (`int`): of the resamples.
        paired (`bool`, *optional*, defaults to `False`): whether samples are of the same images.

    Returns:
        `value`, `low` and `high`, `num_images` (of the smallest sample), and `not_enough_data`: `None`, or why the
        others are `None`: too few images, or values that hardly differ, for which the statistic is not defined.

    Raises:
        `ValueError`: for NaN or infinite values.
    """
    samples = tuple(np.asarray(sample, dtype=np.float64) for sample in samples)
    if not all(np.isfinite(sample).all() for sample in samples):
        raise ValueError("`samples` have NaN or infinite values, they must be finite.")
    num_images = min(len(sample) for sample in samples)
    problem = not_enough(num_images)
    if problem is None:
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            value = statistic(*samples, axis=-1)
            interval = bootstrap(
                samples,
                statistic,
                n_resamples=_NUM_RESAMPLES,
                confidence_level=CONFIDENCE,
                method="percentile",
                paired=paired,
                vectorized=True,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([value, *interval]).all():
            low, high = interval
            return {
                "value": rounded(value),
                "low": rounded(low),
                "high": rounded(high),
                "num_images": num_images,
                "not_enough_data": None,
            }
        problem = _too_alike(num_images)
    return _without_value(num_images, problem)


def spearman(x: np.ndarray, y: np.ndarray, *, seed: int) -> dict:
    """Spearman's rank correlation of values `(N,)` of the same images; see `estimate`."""
    return estimate(_spearman, x, y, seed=seed, paired=True)


def auroc(negatives: np.ndarray, positives: np.ndarray, *, seed: int) -> dict:
    """
    The probability that a positive image has a higher value than a negative one, ties counted half: the area under
    the ROC curve; see `estimate`. Where all values are equal there is nothing to tell images apart by.
    """
    num_images = min(len(negatives), len(positives))
    if num_images >= MIN_IMAGES and np.ptp(np.concatenate([negatives, positives])) == 0:
        return _without_value(num_images, _too_alike(num_images))
    return estimate(_auroc, negatives, positives, seed=seed)


def mean(values: np.ndarray, *, seed: int) -> dict:
    """The mean of values `(N,)`; see `estimate`."""
    return estimate(np.mean, values, seed=seed)


def mean_difference(first: np.ndarray, second: np.ndarray, *, seed: int) -> dict:
    """The mean of the second values minus that of the first, of different images; see `estimate`."""
    return estimate(lambda a, b, axis: b.mean(axis=axis) - a.mean(axis=axis), first, second, seed=seed)


def share(successes: np.ndarray) -> dict:
    """
    The share of ones among zeros and ones `(N,)`, as `estimate` describes it, with Wilson's interval: resampling would
    make the share certain where all are alike.
    """
    problem = not_enough(len(successes))
    value = low = high = None
    if problem is None:
        interval = binomtest(int(np.sum(successes)), len(successes)).proportion_ci(CONFIDENCE, method="wilson")
        value, low, high = map(rounded, (np.mean(successes), interval.low, interval.high))
    return {"value": value, "low": low, "high": high, "num_images": len(successes), "not_enough_data": problem}


def in_words(estimated: dict) -> str:
    """Value and interval of an estimate, or why there is none."""
    if estimated["not_enough_data"] is not None:
        return f"({estimated['not_enough_data']})"
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**estimated)


def _too_alike(num_images: int) -> str:
    return f"not enough data: the values of {num_images} images hardly differ"


def _without_value(num_images: int, problem: str) -> dict:
    return {"value": None, "low": None, "high": None, "num_images": num_images, "not_enough_data": problem}


def _spearman(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    x, y = (rankdata(values, axis=axis) for values in (x, y))
    x, y = (ranks - ranks.mean(axis=axis, keepdims=True) for ranks in (x, y))
    return (x * y).sum(axis=axis) / np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))


def _auroc(negatives: np.ndarray, positives: np.ndarray, axis: int) -> np.ndarray:
    num_negatives, num_positives = negatives.shape[axis], positives.shape[axis]
    ranks = rankdata(np.concatenate([negatives, positives], axis=axis), axis=axis)
    rank_sum = np.take(ranks, range(num_negatives, num_negatives + num_positives), axis=axis).sum(axis=axis)
    return (rank_sum - num_positives * (num_positives + 1) / 2) / (num_negatives * num_positives)


__all__ = [
    "CONFIDENCE",
    "MIN_IMAGES",
    "auroc",
    "estimate",
    "in_words",
    "mean",
    "mean_difference",
    "not_enough",
    "share",
    "spearman",
]
