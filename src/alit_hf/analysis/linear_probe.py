"""Linear classification of frozen features (paper appendix A.4)."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from alit_hf.utils.progress import ProgressBar


WEIGHT_DECAYS = tuple(10.0**exponent for exponent in range(-5, 2))
"""The regularisation strengths to try."""

_VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class LinearProbe:
    """
    Multinomial logistic regression on standardised features.

    Args:
        pipeline (`sklearn.pipeline.Pipeline`): standardises features and classifies them.
        weight_decay (`float`): its regularisation strength.
    """

    pipeline: Pipeline
    weight_decay: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predicts the classes, int64 `(N,)`, of features `(N, W)`."""
        return self.pipeline.predict(features.astype(np.float64))


def stratified_split(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """
    Draws a share of each class: at least one of its rows, but not all.

    Args:
        labels (`np.ndarray` of shape `(N,)`): integers, each at least twice.
        share (`float`): between 0 and 1.
        seed (`int`)

    Returns:
        whether each row is drawn, bool `(N,)`.
    """
    random = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        drawn[rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)]] = True
    return drawn


def fit_probe(features: np.ndarray, labels: np.ndarray, weight_decay: float) -> LinearProbe:
    """
    Minimises cross-entropy plus `weight_decay / 2` times the squared norm of the weights, in float64.

    Args:
        features (`np.ndarray` of shape `(N, W)`)
        labels (`np.ndarray` of shape `(N,)`): integers of two or more classes.
        weight_decay (`float`): above 0, or there may be no minimum.
    """
    # scikit-learn sums the cross-entropies, and for two classes fits only the difference of their weights, whose
    # squared norm is twice that of both.
    strength = weight_decay * len(labels) / (2 if len(np.unique(labels)) == 2 else 1)
    # L-BFGS needs thousands of steps if the weight decay is small.
    classifier = LogisticRegression(C=1 / strength, solver="newton-cg", tol=1e-8)
    pipeline = make_pipeline(StandardScaler(), classifier).fit(features.astype(np.float64), labels)
    return LinearProbe(pipeline, weight_decay)


def choose_probe(features: np.ndarray, labels: np.ndarray, seed: int) -> LinearProbe:
    """
    Fits to all rows, with the weight decay whose probe on four fifths of them is the most accurate on the rest; the
    largest, if several are.

    Args:
        features (`np.ndarray` of shape `(N, W)`)
        labels (`np.ndarray` of shape `(N,)`): integers, each class at least twice.
        seed (`int`): seed of the split.
    """
    held_out = stratified_split(labels, _VALIDATION_SHARE, seed)

    def accuracy(weight_decay: float) -> float:
        probe = fit_probe(features[~held_out], labels[~held_out], weight_decay)
        return float((probe.predict(features[held_out]) == labels[held_out]).mean())

    weight_decays = ProgressBar(WEIGHT_DECAYS, desc="fitting", unit="probe")
    best = max(weight_decays, key=lambda weight_decay: (accuracy(weight_decay), weight_decay))
    return fit_probe(features, labels, best)


__all__ = ["WEIGHT_DECAYS", "LinearProbe", "choose_probe", "fit_probe", "stratified_split"]
