"""How many images each length satisfies, over a sweep of L1 thresholds (paper Fig. 2, right)."""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import entropy

from alit_hf.analysis.analysis import Analysis, Context, ImageBatch
from alit_hf.analysis.charts import length_colors, new_figure, style
from alit_hf.analysis.errors import error_matrix, errors_by_length
from alit_hf.analysis.statistics import in_words, not_enough, share
from alit_hf.evaluation.lengths import code_lengths, smallest_satisfying
from alit_hf.evaluation.rounding import rounded
from alit_hf.utils.option_types import distinct_numbers


_DEFAULT_SWEEP = tuple(hundredths / 100 for hundredths in range(2, 21))


@dataclass(kw_only=True)
class Thresholds(Analysis):
    """
    Counts, for each length, the images for which it is the smallest with an L1 below a threshold.

    Args:
        thresholds (`tuple[float, ...]`): L1 thresholds of the sweep, for pixels in [0, 1].
    """

    name = "thresholds"
    default_limit = 250

    thresholds: tuple[float, ...] = _DEFAULT_SWEEP

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--thresholds",
            metavar="T,T",
            type=distinct_numbers,
            default=_DEFAULT_SWEEP,
            help="L1 below which a picture has enough tokens (default: 0.02 to 0.2 in steps of 0.01)",
        )

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        return [{"l1": errors} for errors in errors_by_length(context.model, batch.pixel_values)]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `num_images`, and `not_enough_data` with the reason if they are too few for shares.
            - `sweep`: for each `threshold`, ascending, `images_by_length` (by their smallest satisfying length),
              `unsatisfied` (images that no length satisfies), `mean_tokens` (unsatisfied images take all), and the
              shares of images that the shortest code satisfies (`satisfied_by_shortest`) and that any does
              (`satisfied`).
        """
        errors, lengths = error_matrix(table), code_lengths(context.model.config)
        sweep = []
        for threshold in sorted(self.thresholds):
            chosen, satisfied = smallest_satisfying(errors, threshold)
            counts = np.bincount(chosen[satisfied], minlength=len(lengths))
            sweep.append(
                {
                    "threshold": threshold,
                    "images_by_length": {
                        str(length): int(count) for length, count in zip(lengths, counts, strict=True)
                    },
                    "unsatisfied": int((~satisfied).sum()),
                    "mean_tokens": rounded(np.mean(np.array(lengths)[chosen])),
                    "satisfied_by_shortest": share(satisfied & (chosen == 0)),
                    "satisfied": share(satisfied),
                }
            )
        return {"num_images": len(table), "not_enough_data": not_enough(len(table)), "sweep": sweep}

    def finding(self, results: dict) -> str:
        if results["not_enough_data"] is not None:
            return results["not_enough_data"]
        numbers = max(results["sweep"], key=_spread)
        lengths = list(numbers["images_by_length"])
        low, high = results["sweep"][0], results["sweep"][-1]
        return (
            f"an L1 below {numbers['threshold']:g}, where lengths differ most, is reached with {lengths[0]} tokens by "
            f"{in_words(numbers['satisfied_by_shortest'])} of {results['num_images']} images and with {lengths[-1]} "
            f"or fewer by {in_words(numbers['satisfied'])}; the mean length is {low['mean_tokens']:.1f} tokens at "
            f"{low['threshold']:g} and {high['mean_tokens']:.1f} at "
            f"{high['threshold']:g}"
        )

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        sweep = results["sweep"]
        names = list(sweep[0]["images_by_length"])
        places = range(len(sweep))
        figure = new_figure(6.4, 3.8)
        axes = figure.add_subplot()
        below = np.zeros(len(sweep))
        for name, color in zip(names, length_colors(len(names)), strict=True):
            counts = np.array([numbers["images_by_length"][name] for numbers in sweep])
            axes.bar(places, counts, 0.85, bottom=below, color=color, label=f"{name} tokens")
            below += counts
        unsatisfied = [numbers["unsatisfied"] for numbers in sweep]
        axes.bar(places, unsatisfied, 0.85, bottom=below, color="0.88", label="no length")
        axes.set_xticks(places, [f"{numbers['threshold']:g}" for numbers in sweep], rotation=60)
        style(axes, "L1 threshold (pixels in [0, 1])", f"images (of {results['num_images']})")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1],
            labels[::-1],
            title="smallest satisfying length",
            fontsize=8,
            title_fontsize=8,
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
        return figure


def _spread(numbers: dict) -> float:
    """How evenly a threshold spreads the images over the lengths."""
    return float(entropy([*numbers["images_by_length"].values(), numbers["unsatisfied"]]))


ANALYSIS = Thresholds
