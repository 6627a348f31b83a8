"""Whether lengths chosen by the length predictor keep the promise of its calibration, and what they cost in tokens."""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from alit_hf.analysis.analysis import Analysis, Context, ImageBatch
from alit_hf.analysis.charts import new_figure, style
from alit_hf.evaluation.lengths import code_lengths, smallest_satisfying
from alit_hf.evaluation.rounding import rounded
from alit_hf.evaluation.settings import SettingsError
from alit_hf.model.length_prediction import bound_margin, from_logs, largest_shortfall, least_calibration_size, to_logs
from alit_hf.model.selection import is_higher_better, resolve_criterion, score_images
from alit_hf.utils.option_types import positive_integer


_CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Of the scores of all images at all lengths: thresholds between these quantiles give images different lengths.
_THRESHOLD_QUANTILES = np.linspace(0.05, 0.95, 10)
_LABELS = {"data": "like the calibration", "shifted_data": "of another kind"}


@dataclass(kw_only=True)
class Lengths(Analysis):
    """
    Splits the images at random into halves, calibrates the model's length predictor on one and chooses the lengths of
    the other, for several confidences and thresholds; repeats this. Images of another kind get the calibration of all
    images.

    Args:
        splits (`int`): number of random splits.
    """

    name = "lengths"
    default_limit = 500
    data_options = {
        "data": "images that neither the model nor its length predictor was trained on",
        "shifted_data": "images of another kind, for which nothing is promised",
    }
    optional_data = ("shifted_data",)

    splits: int = 20

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--splits",
            metavar="S",
            type=positive_integer,
            default=20,
            help="random splits into calibration and test (default: %(default)s)",
        )

    def check(self, context: Context) -> None:
        if context.model.length_predictor is None:
            raise SettingsError("the model has no length predictor: train one by the stage lengths")

    def measure_settings(self, context: Context) -> dict:
        return {"criterion": context.model.config.length_criterion}

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        model, criterion = context.model, resolve_criterion(context.model.config.length_criterion)
        predicted, true = None, []
        for rollout in model.rollouts(batch.pixel_values):
            if predicted is None:
                predicted = model.length_predictor.predict(rollout.last_hidden_state)
            scores = score_images(criterion, rollout.reconstruction, batch.pixel_values)
            true.append(to_logs(scores, is_higher_better(criterion)))
        true = torch.stack(true, dim=1)
        if not torch.isfinite(torch.stack([predicted, true])).all():
            raise ValueError("the model's predictions or scores are NaN or infinite")
        return [
            {"predicted": of_image, "true": scores}
            for of_image, scores in zip(predicted.tolist(), true.tolist(), strict=True)
        ]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `criterion` and `thresholds` (in its units), of which every number below is a mean unless said otherwise.
            - `sets`: for `data` and `shifted_data` the `num_images`, the mean tokens of the `exact` search, and under
              `confidences` for each confidence the share of codes that `kept` the promise (a true score that meets the
              threshold, or the full length), this share at the `worst_threshold` (mean over splits), the mean
              `tokens`, their `ratio` to the exact search's and this ratio at the `worst_ratio_threshold`.
            - `not_enough_data`: why there are no numbers, or `None`.
        """
        higher_is_better = is_higher_better(resolve_criterion(context.model.config.length_criterion))
        parts = {name: _logs(of_set) for name, of_set in table.groupby("data", sort=False)}
        predicted, true = parts["data"]
        num_calibrated = len(true) // 2
        confidences = [c for c in _CONFIDENCES if least_calibration_size(c) <= num_calibrated]
        if not confidences or max(confidences) < 0.9:
            problem = f"not enough data: {len(true)} images, at least {2 * least_calibration_size(0.9)} are needed"
            return {"criterion": context.model.config.length_criterion, "not_enough_data": problem}
        thresholds = np.quantile(true, _THRESHOLD_QUANTILES)
        random = np.random.default_rng(context.settings.seed)
        lengths = np.array(code_lengths(context.model.config))
        halves = [np.split(random.permutation(len(true)), [num_calibrated]) for _ in range(self.splits)]
        trials = {"data": [(_shortfalls(predicted[a], true[a]), predicted[b], true[b]) for a, b in halves]}
        if "shifted_data" in parts:
            trials["shifted_data"] = [(_shortfalls(predicted, true), *parts["shifted_data"])]
        return {
            "criterion": context.model.config.length_criterion,
            "not_enough_data": None,
            "thresholds": [
                rounded(value) for value in from_logs(torch.from_numpy(thresholds), higher_is_better).tolist()
            ],
            "splits": self.splits,
            "sets": {
                name: {"num_images": len(parts[name][1]), **_outcome(of_set, thresholds, confidences, lengths)}
                for name, of_set in trials.items()
            },
        }

    def finding(self, results: dict) -> str:
        if results["not_enough_data"] is not None:
            return results["not_enough_data"]
        sentences = []
        for name, of_set in results["sets"].items():
            kept = ", ".join(
                f"{numbers['kept']:.3f} at {confidence}" for confidence, numbers in of_set["confidences"].items()
            )
            ratio = of_set["confidences"]["0.9"]["ratio"]
            sentences.append(
                f"on {of_set['num_images']} images {_LABELS[name]} the promise is kept for {kept}, with {ratio:.2f} "
                "times the tokens of the exact search at 0.9"
            )
        return "; ".join(sentences)

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        figure = new_figure(8.2, 3.4)
        promise, cost = figure.subplots(1, 2)
        if results["not_enough_data"] is None:
            promise.axline((0.5, 0.5), slope=1, color="0.6", linewidth=1)
            for (name, of_set), color in zip(results["sets"].items(), ("C0", "C1"), strict=False):
                confidences = [float(confidence) for confidence in of_set["confidences"]]
                for key, line in (("kept", "o-"), ("worst_threshold", "v:")):
                    values = [numbers[key] for numbers in of_set["confidences"].values()]
                    label = _LABELS[name] + (", worst threshold" if key != "kept" else "")
                    promise.plot(confidences, values, line, color=color, markersize=4, label=label)
                ratios = [numbers["ratio"] for numbers in of_set["confidences"].values()]
                cost.plot(confidences, ratios, "o-", color=color, markersize=4, label=_LABELS[name])
            promise.legend(fontsize=8, frameon=False)
        style(promise, "confidence", "share of codes that keep the promise", "a")
        style(cost, "confidence", "tokens, as a multiple of the exact search's", "b")
        return figure


def _logs(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true logs at all lengths, each `(N, K)`."""
    return np.array(table["predicted"].tolist()), np.array(table["true"].tolist())


def _shortfalls(predicted: np.ndarray, true: np.ndarray) -> list[float]:
    return sorted(largest_shortfall(torch.from_numpy(predicted), torch.from_numpy(true)).tolist())


def _outcome(
    trials: list[tuple[list[float], np.ndarray, np.ndarray]],
    thresholds: np.ndarray,
    confidences: list[float],
    lengths: np.ndarray,
) -> dict:
    """What lengths by prediction keep and cost in each trial: shortfalls, and logs of the images to encode."""
    exact = np.array([[lengths[smallest_satisfying(true, t)[0]].mean() for t in thresholds] for _, _, true in trials])
    found = {}
    for confidence in confidences:
        kept, tokens = np.zeros_like(exact), np.zeros_like(exact)
        for trial, (shortfalls, predicted, true) in enumerate(trials):
            bounds = predicted + bound_margin(shortfalls, confidence)
            for place, threshold in enumerate(thresholds):
                chosen, _ = smallest_satisfying(bounds, threshold)
                is_kept = (true[np.arange(len(true)), chosen] < threshold) | (chosen == len(lengths) - 1)
                kept[trial, place], tokens[trial, place] = is_kept.mean(), lengths[chosen].mean()
        ratios = tokens.mean(axis=0) / exact.mean(axis=0)
        found[str(confidence)] = {
            "kept": rounded(kept.mean()),
            "worst_threshold": rounded(kept.mean(axis=0).min()),
            "tokens": rounded(tokens.mean()),
            "ratio": rounded(tokens.mean() / exact.mean()),
            "worst_ratio_threshold": rounded(ratios.max()),
        }
    return {"exact": rounded(exact.mean()), "confidences": found}


ANALYSIS = Lengths
