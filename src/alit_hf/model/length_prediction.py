"""
Length prediction: a code's length from the first rollout alone, without decoding a picture.

A small head predicts the value of the token selection criterion at every length. Split conformal prediction makes
bounds of its predictions: on n pictures that the head was not trained on, it notes by how much each prediction was too
good at the length where it was worst. The ⌈(n + 1) · confidence⌉-th smallest of these shortfalls is added to all
predictions. For a new picture like those n, the values at all lengths are within their bounds with at least that
confidence. So the smallest length whose bound meets the threshold keeps the promise.
"""

import math

import torch
from torch import nn

from .configuration_alit import ALITConfig


# What a perfect picture counts as, whose logarithm would be infinite.
_LEAST_SCORE = 1e-12
_LEAST_LOG = math.log(_LEAST_SCORE)
_NATURAL_LOGS_PER_DB = math.log(10) / 10


class ALITLengthPredictor(nn.Module):
    """Predicts the criterion's value at every length from the first rollout."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.tokens_per_rollout = config.tokens_per_rollout
        self.layernorm = nn.LayerNorm(4 * config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.max_rollouts)

    @property
    def num_features(self) -> int:
        """Numbers that `features` gives for a picture."""
        return self.fc1.in_features

    def features(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        What the first rollout says of each picture, `(B, 4 * W)`: means and standard deviations over its image tokens
        and over its latent tokens.

        Args:
            hidden_states (`torch.Tensor` of shape `(B, 1 + N + L, W)`): output of the encoder's first rollout.
        """
        image_tokens, latent_tokens = (
            hidden_states[:, 1 : -self.tokens_per_rollout],
            hidden_states[:, -self.tokens_per_rollout :],
        )
        statistics = []
        for tokens in (image_tokens, latent_tokens):
            # Not the unbiased deviation, which a single token does not have.
            statistics += [tokens.mean(dim=1), tokens.std(dim=1, correction=0)]
        return torch.cat(statistics, dim=-1)

    def predict(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`forward` of `features`, float32."""
        return self(self.features(hidden_states)).float()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The predicted scores at every length as logs, see `to_logs`: `(B, 4 * W)` to `(B, K)`."""
        return self.fc2(nn.functional.gelu(self.fc1(self.layernorm(features))))


def to_logs(scores: torch.Tensor, higher_is_better: bool) -> torch.Tensor:
    """
    Scores of any shape on the scale of the prediction, where lower is better: their natural logarithm, or minus the
    score if higher is better, as for dB, which are logarithms already.
    """
    if higher_is_better:
        return (-scores.float() * _NATURAL_LOGS_PER_DB).clamp(min=_LEAST_LOG)
    return scores.float().clamp(min=_LEAST_SCORE).log()


def from_logs(logs: torch.Tensor, higher_is_better: bool) -> torch.Tensor:
    """The inverse of `to_logs`."""
    return -logs / _NATURAL_LOGS_PER_DB if higher_is_better else logs.exp()


def largest_shortfall(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """By how much the prediction was too good at the length where it was worst: logs `(B, K)` twice to `(B,)`."""
    return (true - predicted).amax(dim=1)


def least_calibration_size(confidence: float) -> int:
    """The number of pictures that a calibration takes to promise a confidence in (0, 1)."""
    return math.ceil(round(confidence / (1 - confidence), 9))


def bound_margin(shortfalls: list[float], confidence: float) -> float:
    """
    What to add to predicted logs, so that they are upper bounds with that confidence.

    Args:
        shortfalls (`list[float]`): of the calibration's pictures, in ascending order.
        confidence (`float`): in (0, 1), at most what so many pictures can promise, see `least_calibration_size`.
    """
    return shortfalls[math.ceil(round((len(shortfalls) + 1) * confidence, 9)) - 1]


__all__ = [
    "ALITLengthPredictor",
    "bound_margin",
    "from_logs",
    "largest_shortfall",
    "least_calibration_size",
    "to_logs",
]
