"""The cost in tokens and the loss at a task of a token selection criterion, over a sweep of its thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


_NUM_BUDGETS = 5


@dataclass(frozen=True)
class Curve:
    """
    A criterion's points over a sweep, image by image, so that images can be resampled.

    Args:
        tokens (`np.ndarray` of shape `(N, P)`): tokens that each of N images spends at each of P points.
        losses (`np.ndarray` of shape `(N, P)`): each image's loss there, lower is better.
    """

    tokens: np.ndarray
    losses: np.ndarray

    @classmethod
    def of_choices(cls, lengths: np.ndarray, losses: np.ndarray, choices: Sequence[np.ndarray]) -> "Curve":
        """
        Args:
            lengths (`np.ndarray` of shape `(K,)`): tokens of a code after each rollout.
            losses (`np.ndarray` of shape `(N, K)`): each image's loss after each rollout.
            choices (`Sequence[np.ndarray]`): for each of P points, the rollout `(N,)` that each image ends with.
        """
        positions = np.stack(choices, axis=1)
        return cls(lengths[positions], np.take_along_axis(losses, positions, axis=1))

    @property
    def num_images(self) -> int:
        return len(self.tokens)

    @property
    def budgets(self) -> tuple[float, float]:
        """The fewest and the most tokens that an image spends on average at any point."""
        spent = self.tokens.mean(axis=0)
        return float(spent.min()), float(spent.max())

    def mean_at(self, budgets: np.ndarray, images: np.ndarray | None = None) -> float:
        """
        The mean loss over budgets, each interpolated between its neighbouring points.

        Args:
            budgets (`np.ndarray`): mean tokens per image.
            images (`np.ndarray` of int, *optional*): the images, with repetitions. Defaults to all.
        """
        rows = slice(None) if images is None else images
        spent, lost = self.tokens[rows].mean(axis=0), self.losses[rows].mean(axis=0)
        # The best of several points that cost the same, such as those beyond what any image needs.
        order = np.lexsort((lost, spent))
        spent, first = np.unique(spent[order], return_index=True)
        return float(np.interp(budgets, spent, lost[order][first]).mean())


def common_budgets(curves: Sequence[Curve]) -> np.ndarray | None:
    """Evenly spaced budgets that every curve covers; `None` if there are none."""
    lowest, highest = max(curve.budgets[0] for curve in curves), min(curve.budgets[1] for curve in curves)
    return np.linspace(lowest, highest, _NUM_BUDGETS) if lowest < highest else None


def advantage(images: np.ndarray, axis: int, *, own: Curve, other: Curve, budgets: np.ndarray) -> np.ndarray:
    """
    How much less a criterion loses than another at the same budgets, for `estimate`.

    Args:
        images (`np.ndarray` of shape `(..., N)`): indices of images, sampled along `axis`, the last one.
    """
    samples = images.astype(int).reshape(-1, images.shape[axis])
    values = [other.mean_at(budgets, sample) - own.mean_at(budgets, sample) for sample in samples]
    return np.array(values).reshape(images.shape[:-1])


def pareto_front(points: dict[str, list[dict]], task: str, *, higher_is_better: bool) -> list[dict]:
    """
    The points that no other point beats with as few tokens.

    Args:
        points (`dict`): the points of each criterion, each with `threshold`, `tokens_share` and the value of `task`.

    Returns:
        `criterion`, `threshold`, `tokens_share` and `value` of each, fewest tokens first.
    """
    sign = -1 if higher_is_better else 1
    everywhere = [
        {
            "criterion": criterion,
            "threshold": point["threshold"],
            "tokens_share": point["tokens_share"],
            "value": point[task],
        }
        for criterion, listed in points.items()
        for point in listed
    ]
    front = []
    for point in sorted(everywhere, key=lambda point: (point["tokens_share"], sign * point["value"])):
        if not front or sign * point["value"] < sign * front[-1]["value"]:
            front.append(point)
    return front


__all__ = ["Curve", "advantage", "common_budgets", "pareto_front"]
