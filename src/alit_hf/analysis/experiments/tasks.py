"""Token selection criteria against tasks of interest (paper appendix A.2, Figs. 6-9)."""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from alit_hf.analysis.analysis import Analysis, Context, ImageBatch
from alit_hf.analysis.charts import new_figure, style
from alit_hf.analysis.errors import error_matrix
from alit_hf.analysis.image_models import finite_logits, load_classifier, load_depth_model, relative_depth_error
from alit_hf.analysis.statistics import estimate, in_words, not_enough
from alit_hf.analysis.trade_off import Curve, advantage, common_budgets, pareto_front
from alit_hf.evaluation.frechet import MIN_IMAGES as MIN_FRECHET_IMAGES
from alit_hf.evaluation.frechet import result_name
from alit_hf.evaluation.lengths import code_lengths, smallest_satisfying
from alit_hf.evaluation.rounding import rounded
from alit_hf.evaluation.settings import SettingsError
from alit_hf.evaluation.tally import FrechetDistances
from alit_hf.model.selection import l1, score_images
from alit_hf.networks.efficientnet_lite import EfficientNetLite
from alit_hf.utils.public_names import public_name


# The tasks of interest, each with the column that its criterion compares; the Fréchet distance has no criterion.
_TASKS = {"reconstruction": "l1", "classification": "rank", "depth": "depth_error"}
_TASK_LABELS = {
    "reconstruction": "L1 (pixels in [0, 1])",
    "classification": "share that keeps the class",
    "depth": "relative depth error",
    "frechet": "Fréchet distance",
}
_CRITERION_LABELS = {"reconstruction": "L1", "classification": "top-X", "depth": "depth", "fixed": "fixed length"}

# Values of X for the criterion that needs the original's class among the X likeliest.
_TOP_X = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
# Thresholds of the other criteria, as shares of all errors that are below them.
_QUANTILES = tuple(twentieths / 20 for twentieths in range(1, 20, 2))


@dataclass(kw_only=True)
class Tasks(Analysis):
    """
    Chooses lengths by L1, by classification and by depth, and measures all three tasks for each choice.

    Args:
        classifier (`str`): see `load_classifier`.
        depth (`str`, *optional*): see `load_depth_model`; without it, depth is neither a criterion nor a task.
    """

    name = "tasks"
    default_limit = MIN_FRECHET_IMAGES

    classifier: str = "efficientnet-lite0"
    depth: str | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--classifier",
            metavar="NAME",
            default=cls.classifier,
            help="efficientnet-lite0, efficientnet-lite2, a Hub id or a folder (default: %(default)s)",
        )
        parser.add_argument(
            "--depth",
            metavar="NAME",
            help="a depth model, a Hub id or a folder; without one depth is left out",
        )

    @functools.cached_property
    def _networks(self) -> dict[str, Any]:
        return {}

    def check(self, context: Context) -> None:
        """Loads the networks."""
        device = context.model.device
        try:
            self._networks["features"] = EfficientNetLite().to(device)
        except (OSError, ValueError) as error:
            raise SettingsError(str(error)) from error
        if self.classifier != self._networks["features"].name:
            self._networks["classifier"] = load_classifier(self.classifier, device)
        if self.depth is not None:
            self._networks["depth"] = load_depth_model(self.depth, device)

    def measure_settings(self, context: Context) -> dict:
        loaded = {name: network for name, network in self._networks.items() if name != "features"}
        return {
            "classifier": public_name(self.classifier),
            "depth": self.depth and public_name(self.depth),
            "fingerprints": {name: network.fingerprint for name, network in loaded.items()},
        }

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        """
        For each image, `l1`, `rank` (of the original's class among the reconstruction's, from 1) and `depth_error`
        after each rollout, and the float32 `features` of the original and after each rollout.
        """
        original = batch.pixel_values
        generator = torch.Generator(context.model.device).manual_seed(0)
        pictures = [rollout.reconstruction for rollout in context.model.rollouts(original, generator=generator)]
        features = [self._networks["features"](picture.float().clamp(0, 1)) for picture in (original, *pictures)]
        original_logits, *logits = self._logits([original, *pictures], features)
        classes = original_logits.argmax(dim=1)
        columns = {
            "l1": torch.stack([score_images(l1, picture, original) for picture in pictures], dim=1),
            "rank": torch.stack([_rank(values, classes) for values in logits], dim=1),
        }
        if self.depth is not None:
            original_depth, *depths = (self._networks["depth"].depth(picture) for picture in (original, *pictures))
            errors = [relative_depth_error(depth, original_depth) for depth in depths]
            columns["depth_error"] = torch.stack(errors, dim=1)
        if not torch.isfinite(columns["l1"]).all():
            raise ValueError("the model's pictures have NaN or infinite errors")
        stored = torch.stack(features, dim=1).cpu().numpy()
        return [
            {name: values[row].tolist() for name, values in columns.items()} | {"features": stored[row].tobytes()}
            for row in range(len(original))
        ]

    def _logits(self, pictures: list[torch.Tensor], features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The classifier's logits `(B, C)` for each batch of pictures."""
        if "classifier" in self._networks:
            return [finite_logits(self._networks["classifier"], picture) for picture in pictures]
        # The feature network is the classifier.
        return [self._networks["features"].classify(values) for values in features]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `num_images`; `left_out`: why a criterion or task is missing, by name; `not_enough_data`: `None`, or why
              criteria cannot be compared; `frechet_network`.
            - `criteria`: for each criterion, named after its task (`reconstruction`: L1 below a threshold;
              `classification`: the original's class among the X likeliest; `depth`: relative error below a threshold),
              and for `fixed` lengths, its points: `threshold` (or X), `tokens_share` (of the tokens that all images
              could spend), and each task's value: `reconstruction` (L1), `classification` (share of images that keep
              the original's class), `depth` (relative error), `frechet`.
            - `pareto`: for each task, the points that no other point beats with as few tokens.
            - `comparison`: for each task, `by_criterion`, its mean over `budgets` (shares of tokens that every
              criterion can spend, interpolated between points), the `best` criterion (`None` if several are), and the
              `advantage` of the task's own criterion over each other one, above 0 if it is better.
        """
        lengths = np.array(code_lengths(context.model.config))
        matrices = {task: error_matrix(table, column) for task, column in _TASKS.items() if column in table.columns}
        losses = {**matrices, "classification": (matrices["classification"] > 1).astype(float)}
        thresholds = {task: _sweep(task, matrix) for task, matrix in matrices.items()}
        chosen = {
            task: [_choose(task, matrices[task], threshold) for threshold in values]
            for task, values in thresholds.items()
        }
        thresholds["fixed"] = [None] * len(lengths)
        chosen["fixed"] = [np.full(len(table), position) for position in range(len(lengths))]
        frechet = self._frechet(context, table, chosen)

        criteria = {
            criterion: [
                {
                    "threshold": threshold,
                    "tokens_share": rounded(lengths[positions].mean() / lengths[-1]),
                    **{task: _task_value(task, loss, positions) for task, loss in losses.items()},
                    **({"frechet": frechet[criterion][place]} if frechet else {}),
                }
                for place, (threshold, positions) in enumerate(
                    zip(thresholds[criterion], chosen[criterion], strict=True)
                )
            ]
            for criterion in chosen
        }
        left_out = {}
        if "depth" not in matrices:
            left_out["depth"] = "no depth model was given"
        if not frechet:
            left_out["frechet"] = f"{len(table)} images, at least {MIN_FRECHET_IMAGES} are needed"
        curves = {
            task: {
                criterion: Curve.of_choices(lengths / lengths[-1], loss, chosen[criterion]) for criterion in matrices
            }
            for task, loss in losses.items()
        }
        comparison, problem = _compare(curves, context.settings.seed)
        return {
            "num_images": len(table),
            "left_out": left_out,
            "not_enough_data": problem,
            "frechet_network": result_name(self._networks["features"]) if frechet else None,
            "criteria": criteria,
            "pareto": {
                task: pareto_front(criteria, task, higher_is_better=task == "classification")
                for task in (*losses, *(["frechet"] if frechet else []))
            },
            "comparison": comparison,
        }

    def _frechet(self, context: Context, table: pd.DataFrame, chosen: dict[str, list[np.ndarray]]) -> dict:
        """The distance at each point of each criterion; empty for too few images."""
        if len(table) < MIN_FRECHET_IMAGES:
            return {}
        num_features = self._networks["features"].num_features
        stored = np.stack([np.frombuffer(row, dtype=np.float32) for row in table["features"]])
        # On the CPU, as the covariances of features are in float64.
        features = torch.from_numpy(stored.reshape(len(table), -1, num_features))
        images = torch.arange(len(table))

        def distance(positions: np.ndarray) -> float:
            distances = FrechetDistances(num_features, ["chosen"], features.device)
            distances.add("chosen", features[:, 0], features[images, 1 + torch.from_numpy(positions)])
            return rounded(distances.compute()["chosen"])

        return {criterion: [distance(positions) for positions in points] for criterion, points in chosen.items()}

    def finding(self, results: dict) -> str:
        if results["not_enough_data"] is not None:
            return results["not_enough_data"]
        compared = results["comparison"]
        advantages = {task: list(numbers["advantage"].values()) for task, numbers in compared.items()}
        lost = [
            task
            for task in compared
            if any(value["value"] is not None and value["value"] < 0 for value in advantages[task])
        ]
        # Criteria that are equally good, or do not differ enough to say.
        unknown = [
            task for task in compared if task not in lost and any(not value["value"] for value in advantages[task])
        ]
        surely = all(value["low"] > 0 for task in compared if task not in unknown for value in advantages[task])
        if lost:
            verdict = "performance does not always peak"
        elif len(unknown) == len(compared):
            verdict = "it cannot be told whether performance peaks"
        else:
            verdict = "performance " + ("peaks" if surely else "seems to peak, but not surely,")
        exceptions = f" (for {' and '.join(unknown)} it cannot be told)" if 0 < len(unknown) < len(compared) else ""
        gains = "; ".join(
            f"at {task} {_CRITERION_LABELS[task]} gains {in_words(value)} over {_CRITERION_LABELS[other]}"
            for task, numbers in compared.items()
            for other, value in numbers["advantage"].items()
        )
        text = f"at equal shares of tokens {verdict} where criterion and task agree{exceptions}: {gains}"
        return text + "".join(f"; {what} left out: {why}" for what, why in results["left_out"].items())

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        tasks = list(results["pareto"])
        figure = new_figure(3.7 * len(tasks), 3.4)
        for place, task in enumerate(tasks, start=1):
            axes = figure.add_subplot(1, len(tasks), place)
            for criterion, points in results["criteria"].items():
                ordered = sorted(points, key=lambda point: point["tokens_share"])
                axes.plot(
                    [point["tokens_share"] for point in ordered],
                    [point[task] for point in ordered],
                    "x--" if criterion == "fixed" else "o-",
                    color="0.5" if criterion == "fixed" else None,
                    markersize=4,
                    label=_CRITERION_LABELS[criterion],
                )
            style(axes, "share of tokens spent", _TASK_LABELS[task], task)
        figure.axes[0].legend(fontsize=8, frameon=False, title="lengths chosen by", title_fontsize=8)
        return figure


def _rank(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The rank, from 1, of each image's class `(B,)` among the logits `(B, C)`, int64 `(B,)`."""
    return 1 + (logits > logits.gather(1, classes.unsqueeze(1))).sum(dim=1)


def _sweep(task: str, matrix: np.ndarray) -> list[float]:
    """The thresholds to try for a task's criterion, from errors `(N, K)`."""
    if task == "classification":
        return list(_TOP_X)
    return sorted({rounded(value) for value in np.quantile(matrix, _QUANTILES)})


def _choose(task: str, matrix: np.ndarray, threshold: float) -> np.ndarray:
    """The rollout `(N,)` that each image ends with."""
    # A rank may equal X.
    return smallest_satisfying(matrix, threshold + 1 if task == "classification" else threshold)[0]


def _task_value(task: str, loss: np.ndarray, positions: np.ndarray) -> float:
    mean = np.take_along_axis(loss, positions[:, None], axis=1).mean()
    return rounded(1 - mean if task == "classification" else mean)


def _compare(curves: dict[str, dict[str, Curve]], seed: int) -> tuple[dict, str | None]:
    """`comparison` and `not_enough_data` of `Tasks.summarize`."""
    one_task = next(iter(curves.values()))
    problem = not_enough(next(iter(one_task.values())).num_images)
    if problem is not None:
        return {}, problem
    budgets = common_budgets(list(one_task.values()))
    if budgets is None:
        return {}, "not enough data: the criteria have no share of tokens in common"
    comparison = {}
    for task, by_criterion in curves.items():
        # For losses, lower is better.
        means = {criterion: curve.mean_at(budgets) for criterion, curve in by_criterion.items()}
        lowest = min(rounded(value) for value in means.values())
        best = [criterion for criterion, value in means.items() if rounded(value) == lowest]
        comparison[task] = {
            "budgets": [rounded(budget) for budget in budgets],
            "by_criterion": {
                criterion: rounded(1 - value if task == "classification" else value)
                for criterion, value in means.items()
            },
            "best": best[0] if len(best) == 1 else None,
            "advantage": {
                other: _advantage(by_criterion[task], curve, budgets, seed)
                for other, curve in by_criterion.items()
                if other != task
            },
        }
    return comparison, None


def _advantage(own: Curve, other: Curve, budgets: np.ndarray, seed: int) -> dict:
    statistic: Callable[..., np.ndarray] = functools.partial(advantage, own=own, other=other, budgets=budgets)
    return estimate(statistic, np.arange(own.num_images), seed=seed)


ANALYSIS = Tasks
