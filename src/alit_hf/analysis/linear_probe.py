"""Linear classification of frozen features (paper appendix A.4)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


WEIGHT_DECAYS = tuple(10.0**exponent for exponent in range(-5, 2))
"""The strengths of regularisation that are tried."""

_VALIDATION_SHARE = 0.2
_MAX_STEPS = 500


@dataclass(frozen=True)
class LinearProbe:
    """
    Multinomial logistic regression on features that are standardised.

    Args:
        mean, std (`torch.Tensor` of shape `(W,)`): of the features that it was fitted to.
        weight (`torch.Tensor` of shape `(C, W)`), bias (`torch.Tensor` of shape `(C,)`)
        weight_decay (`float`): the strength of its regularisation.
    """

    mean: torch.Tensor
    std: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    weight_decay: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Classes, int64 `(N,)`, of features `(N, W)`."""
        standardised = (torch.from_numpy(features).double() - self.mean) / self.std
        return F.linear(standardised, self.weight, self.bias).argmax(dim=1).numpy()


def stratified_split(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """
    Draws a share of each class, at least one and not all of its rows.

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
    Minimises cross-entropy plus `weight_decay / 2` times the squared norm of the weights, by L-BFGS in float64.

    Args:
        features (`np.ndarray` of shape `(N, W)`)
        labels (`np.ndarray` of shape `(N,)`): integers from 0, each class at least once.
        weight_decay (`float`): above 0, or there may be no minimum.
    """
    inputs, targets = torch.from_numpy(features).double(), torch.from_numpy(labels)
    mean, std = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
    # A feature that never changes tells nothing.
    std = torch.where(std > 0, std, 1.0)
    inputs = (inputs - mean) / std
    num_classes = int(labels.max()) + 1
    weight = torch.zeros(num_classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), targets) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearProbe(mean, std, weight.detach(), bias.detach(), weight_decay)


def choose_probe(features: np.ndarray, labels: np.ndarray, seed: int) -> LinearProbe:
    """
    Fits to all rows, with the weight decay whose probe of four fifths of them is the most accurate on the rest, of
    several the largest.

    Args:
        features (`np.ndarray` of shape `(N, W)`)
        labels (`np.ndarray` of shape `(N,)`): integers from 0, each class at least twice.
        seed (`int`): draws the rest.
    """
    held_out = stratified_split(labels, _VALIDATION_SHARE, seed)

    def accuracy(weight_decay: float) -> float:
        probe = fit_probe(features[~held_out], labels[~held_out], weight_decay)
        return float((probe.predict(features[held_out]) == labels[held_out]).mean())

    best = max(WEIGHT_DECAYS, key=lambda weight_decay: (accuracy(weight_decay), weight_decay))
    return fit_probe(features, labels, best)


__all__ = ["WEIGHT_DECAYS", "LinearProbe", "choose_probe", "fit_probe", "stratified_split"]
