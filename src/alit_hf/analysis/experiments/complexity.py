"""Whether images that people find complex have larger errors and need more tokens (paper section 3, Figs. 4-5)."""

import argparse
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alit_hf.analysis.analysis import Analysis, Context, ImageBatch, RunSettings
from alit_hf.analysis.charts import new_figure, style
from alit_hf.analysis.errors import describe_errors, error_matrix, errors_by_length
from alit_hf.analysis.statistics import in_words, mean_spearman, spearman
from alit_hf.codes.length_choice import DEFAULT_THRESHOLD, add_threshold_argument
from alit_hf.data.images import Images
from alit_hf.evaluation.lengths import code_lengths, smallest_satisfying
from alit_hf.evaluation.settings import SettingsError


@dataclass(kw_only=True)
class Complexity(Analysis):
    """
    Correlates human scores of complexity with the error at each length and with the length that a threshold chooses,
    in each category, in the mean over categories, and over all images. Savoias scores run from 0 to 100 within each
    category, so those of different categories are hardly comparable.

    Args:
        threshold (`float`): L1 below which an image has enough tokens; images that never reach it count with the full
            length.
    """

    name = "complexity"
    default_limit = 280
    columns = ("complexity", "category")
    data_options = {"data": "images with human scores in a column `complexity` and a column `category`"}

    threshold: float = DEFAULT_THRESHOLD

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_threshold_argument(parser)

    def check(self, context: Context) -> None:
        for index, score in enumerate(context.data["data"].column("complexity")):
            if score is not None and not isinstance(score, (int, float)):
                raise SettingsError(
                    f"the column `complexity` has {score!r} in row {index}, it must have numbers, or nothing "
                    "if there is none"
                )
        for index, category in enumerate(context.data["data"].column("category")):
            if not isinstance(category, Hashable):
                raise SettingsError(
                    f"the column `category` has {category!r} in row {index}, it must have names or numbers, or "
                    "nothing if there is none"
                )

    def choose(self, images: Images, settings: RunSettings) -> list[int]:
        """A random sample, as even over categories as they are large enough for."""
        order = np.random.default_rng(settings.seed).permutation(len(images))
        categories = pd.Series(list(images.column("category")), dtype=object).iloc[order]
        # How many images of its category come before an image; images without one are a category, too.
        turns = categories.groupby(categories, dropna=False, sort=False).cumcount()
        # Stable, so that the order within a turn stays random.
        return sorted(turns.sort_values(kind="stable").index[: settings.limit].tolist())

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        return [{"l1": errors} for errors in errors_by_length(context.model, batch.pixel_values)]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `all`, and `categories` by name: what `describe_errors` returns, and Spearman's correlation of complexity
              with L1 at each length (`spearman_l1`) and with the chosen length (`spearman_length`).
            - `mean_over_categories`: these correlations in the mean over the categories.
            - `without_score`, `without_category`: number of images whose value is missing or NaN. Those without a
              score are left out.
        """
        lengths, seed = code_lengths(context.model.config), context.settings.seed
        scores = table["complexity"].to_numpy(dtype=np.float64, na_value=math.nan)
        has_score = np.isfinite(scores)
        errors, categories = error_matrix(table), _categories(table)
        chosen_lengths = np.array(lengths)[smallest_satisfying(errors, self.threshold)[0]]
        groups = {
            name: has_score & (categories == name)
            for name in sorted({name for name in categories if name is not None})
        }

        def group(rows: np.ndarray) -> dict:
            return {
                **describe_errors(errors[rows], lengths, self.threshold),
                "spearman_l1": {
                    str(length): spearman(scores[rows], errors[rows, position], seed=seed)
                    for position, length in enumerate(lengths)
                },
                "spearman_length": spearman(scores[rows], chosen_lengths[rows], seed=seed),
            }

        def mean_over_groups(values: np.ndarray) -> dict:
            return mean_spearman([(scores[rows], values[rows]) for rows in groups.values()], seed=seed)

        return {
            "without_score": int((~has_score).sum()),
            "without_category": sum(name is None for name in categories),
            "all": group(has_score),
            "categories": {name: group(rows) for name, rows in groups.items()},
            "mean_over_categories": {
                "spearman_l1": {
                    str(length): mean_over_groups(errors[:, position]) for position, length in enumerate(lengths)
                },
                "spearman_length": mean_over_groups(chosen_lengths),
            },
        }

    def finding(self, results: dict) -> str:
        of_all, over_categories = results["all"], results["mean_over_categories"]
        shortest = next(iter(of_all["spearman_l1"]))
        by_category = ", ".join(
            f"{name} ({group['num_images']}) {in_words(group['spearman_l1'][shortest])}"
            for name, group in results["categories"].items()
        )
        left_out = results["without_score"]
        return (
            f"Spearman between human complexity and the length chosen below {self.threshold:g} in the mean over "
            f"{over_categories['spearman_length']['num_groups']} categories "
            f"{in_words(over_categories['spearman_length'])}, over all {of_all['num_images']} images "
            f"{in_words(of_all['spearman_length'])}; between complexity and L1 at {shortest} tokens in the mean over "
            f"categories {in_words(over_categories['spearman_l1'][shortest])}, over all images "
            f"{in_words(of_all['spearman_l1'][shortest])}"
            + (f"; {by_category}" if by_category else "; no image has a category")
            + (f"; {left_out} images without a score left out" if left_out else "")
        )

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        figure = new_figure(11.5, 3.9)
        scatter, by_category, by_length = figure.subplots(1, 3)
        names = list(results["categories"])
        colors = dict(zip(names, colormaps["tab10"](np.arange(len(names)) % 10), strict=True))
        shortest = next(iter(results["all"]["spearman_l1"]))

        errors, categories = error_matrix(table)[:, 0], _categories(table)
        for name, color in {None: "0.6", **colors}.items():
            rows = categories == name
            scatter.scatter(
                table["complexity"][rows], errors[rows], s=9, color=color, alpha=0.75, linewidths=0, label=name
            )
        style(scatter, "human complexity", f"L1 at {shortest} tokens (pixels in [0, 1])", "a")

        # A category may be called "all", too.
        groups = [
            *((name, group, colors[name], 1) for name, group in results["categories"].items()),
            ("all", results["all"], "black", 2.2),
        ]
        for shift, label, color, pick in (
            (-0.14, f"L1 at {shortest} tokens", "C0", lambda group: group["spearman_l1"][shortest]),
            (0.14, f"length chosen below {self.threshold:g}", "C1", lambda group: group["spearman_length"]),
        ):
            places = np.arange(len(groups)) + shift
            _draw_intervals(by_category, [pick(group) for _, group, _, _ in groups], places, color, label)
        by_category.set_yticks(range(len(groups)), [name for name, *_ in groups], parse_math=False)
        by_category.invert_yaxis()
        by_category.axvline(0, color="0.6", linewidth=0.8)
        style(by_category, "Spearman with complexity", "", "b")
        by_category.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))

        for name, group, color, width in groups:
            known = {int(length): e["value"] for length, e in group["spearman_l1"].items() if e["value"] is not None}
            by_length.plot(
                list(known), list(known.values()), "o-", color=color, linewidth=width, markersize=3, label=name
            )
        by_length.set_xticks([int(length) for length in results["all"]["spearman_l1"]])
        by_length.axhline(0, color="0.6", linewidth=0.8)
        style(by_length, "tokens", "Spearman between complexity and L1", "c")
        legend = by_length.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
        return figure


def _categories(table: pd.DataFrame) -> np.ndarray:
    """The name of each image's category, or `None`, object `(N,)`."""
    return np.array([None if pd.isna(name) else str(name) for name in table["category"]], dtype=object)


def _draw_intervals(axes: Axes, estimates: list[dict], places: np.ndarray, color: str, label: str) -> None:
    """Horizontal intervals, each at its place; places of estimates without a value stay empty."""
    known = [(place, e) for place, e in zip(places, estimates, strict=True) if e["value"] is not None]
    below = [estimated["value"] - estimated["low"] for _, estimated in known]
    above = [estimated["high"] - estimated["value"] for _, estimated in known]
    axes.errorbar(
        [estimated["value"] for _, estimated in known],
        [place for place, _ in known],
        xerr=[below, above],
        fmt="o",
        color=color,
        label=label,
        markersize=4,
        linewidth=1.2,
    )


ANALYSIS = Complexity
