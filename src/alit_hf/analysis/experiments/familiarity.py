"""Whether images unlike those of training can be told by their errors and the tokens they need (paper A.2)."""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alit_hf.analysis.analysis import Analysis, Context, ImageBatch
from alit_hf.analysis.charts import new_figure, style
from alit_hf.analysis.errors import describe_errors, error_matrix, errors_by_length
from alit_hf.analysis.statistics import auroc, in_words, mean, mean_difference
from alit_hf.codes.length_choice import DEFAULT_THRESHOLD, add_threshold_argument
from alit_hf.evaluation.lengths import code_lengths, smallest_satisfying
from alit_hf.evaluation.settings import SettingsError


_LABELS = {"data": "in-distribution", "unfamiliar_data": "unfamiliar"}


@dataclass(kw_only=True)
class Familiarity(Analysis):
    """
    Compares images like those of training with others: by the gap, the L1 of the shortest code minus that of the
    longest, and by how well the chosen length, the gap and the error tell them apart.

    Args:
        threshold (`float`): L1 below which an image has enough tokens; images that never reach it count with the full
            length.
    """

    name = "familiarity"
    default_limit = 150
    data_options = {"data": "images like those of training", "unfamiliar_data": "images of another kind"}

    threshold: float = DEFAULT_THRESHOLD

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_threshold_argument(parser)

    def check(self, context: Context) -> None:
        if context.model.config.max_rollouts < 2:
            raise SettingsError("the model has one rollout, few and many tokens can be compared from two on")

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        return [{"l1": errors} for errors in errors_by_length(context.model, batch.pixel_values)]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `sets`: for `data` and `unfamiliar_data`, what `describe_errors` returns, and the mean `gap`.
            - `gap_difference` and `token_difference`: the gap and the chosen length of the unfamiliar images minus
              those of the others, in the mean.
            - `auroc`: the probability that the unfamiliar one of two images has the larger value, ties counted half,
              for the `chosen_length`, the `gap`, and the `l1` at each length.
        """
        lengths, seed = code_lengths(context.model.config), context.settings.seed
        errors = {name: error_matrix(table[table["data"] == name]) for name in self.data_options}
        gaps = {name: of_set[:, 0] - of_set[:, -1] for name, of_set in errors.items()}
        chosen = [np.array(lengths)[smallest_satisfying(of_set, self.threshold)[0]] for of_set in errors.values()]
        return {
            "sets": {
                name: {**describe_errors(of_set, lengths, self.threshold), "gap": mean(gaps[name], seed=seed)}
                for name, of_set in errors.items()
            },
            "gap_difference": mean_difference(*gaps.values(), seed=seed),
            "token_difference": mean_difference(*chosen, seed=seed),
            "auroc": {
                "chosen_length": auroc(*chosen, seed=seed),
                "gap": auroc(*gaps.values(), seed=seed),
                "l1": {
                    str(length): auroc(*(of_set[:, position] for of_set in errors.values()), seed=seed)
                    for position, length in enumerate(lengths)
                },
            },
        }

    def finding(self, results: dict) -> str:
        familiar, unfamiliar = results["sets"].values()
        of_errors = results["auroc"]["l1"]
        shortest, *_, longest = of_errors
        return (
            f"below an L1 of {self.threshold:g}, {unfamiliar['num_images']} unfamiliar images need "
            f"{unfamiliar['mean_tokens']:.1f} tokens in the mean and {familiar['num_images']} others "
            f"{familiar['mean_tokens']:.1f}, difference {in_words(results['token_difference'])}; the gap in L1 "
            f"between {shortest} and {longest} tokens is {in_words(unfamiliar['gap'])} for unfamiliar images and "
            f"{in_words(familiar['gap'])} for others, difference {in_words(results['gap_difference'])}; AUROC of "
            f"telling them apart by the chosen length {in_words(results['auroc']['chosen_length'])}, by L1 at "
            f"{shortest} tokens {in_words(of_errors[shortest])}, at {longest} {in_words(of_errors[longest])}"
        )

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        lengths = code_lengths(context.model.config)
        figure = new_figure(10.5, 3.4)
        by_length, gaps, chosen = figure.subplots(1, 3)
        errors = {name: error_matrix(table[table["data"] == name]) for name in self.data_options}
        for (name, of_set), color in zip(errors.items(), ("C0", "C1"), strict=True):
            by_length.plot(lengths, of_set.mean(axis=0), "o-", color=color, markersize=4, label=_LABELS[name])
            by_length.fill_between(
                lengths, *np.percentile(of_set, (25, 75), axis=0), color=color, alpha=0.15, linewidth=0
            )
        by_length.set_ylim(bottom=0)
        by_length.set_xticks(lengths)
        by_length.legend(fontsize=8, frameon=False)
        style(by_length, "tokens", "L1 (mean, middle half)", "a")

        parts = gaps.boxplot(
            [of_set[:, 0] - of_set[:, -1] for of_set in errors.values()], widths=0.5, patch_artist=True
        )
        for box, line, color in zip(parts["boxes"], parts["medians"], ("C0", "C1"), strict=True):
            box.set_facecolor(color)
            box.set_alpha(0.6)
            line.set_color("black")
        gaps.set_xticks((1, 2), _LABELS.values())
        style(gaps, "", f"L1 at {lengths[0]} minus L1 at {lengths[-1]} tokens", "b")

        for shift, (name, of_set) in zip((-0.2, 0.2), errors.items(), strict=True):
            positions, _ = smallest_satisfying(of_set, self.threshold)
            shares = np.bincount(positions, minlength=len(lengths)) / len(of_set)
            color = "C0" if name == "data" else "C1"
            chosen.bar(np.arange(len(lengths)) + shift, shares, 0.38, color=color, alpha=0.85, label=_LABELS[name])
        chosen.set_xticks(range(len(lengths)), lengths)
        style(chosen, f"tokens chosen for an L1 below {self.threshold:g}", "share of images", "c")
        return figure


ANALYSIS = Familiarity
