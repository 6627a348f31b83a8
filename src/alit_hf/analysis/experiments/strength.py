"""What reconstructions cost weak and strong models of one task (paper Fig. 10)."""

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
from alit_hf.analysis.charts import draw_estimates, new_figure, style
from alit_hf.analysis.image_models import Classifier, finite_logits, load_classifier
from alit_hf.analysis.statistics import in_words, share, share_difference
from alit_hf.evaluation.lengths import code_lengths
from alit_hf.evaluation.settings import SettingsError
from alit_hf.networks.efficientnet_lite import EFFICIENTNET_NAMES
from alit_hf.utils.public_names import public_name


@dataclass(kw_only=True)
class Strength(Analysis):
    """
    Classifies images and their reconstructions at every length with several models.

    Args:
        models (`tuple[str, ...]`): classifiers, weakest first; see `load_classifier`.
        label_column (`str`, *optional*): column of the true classes by name, for accuracies; values may be missing.
    """

    name = "strength"
    default_limit = 200

    models: tuple[str, ...] = EFFICIENTNET_NAMES
    label_column: str | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--models",
            metavar="NAME",
            nargs="+",
            default=EFFICIENTNET_NAMES,
            help="classifiers, the weakest first: efficientnet-lite0, efficientnet-lite2, Hub ids or folders "
            f"(default: {' '.join(EFFICIENTNET_NAMES)})",
        )
        parser.add_argument(
            "--label-column",
            metavar="COLUMN",
            help="has the true classes by name; images that a classifier has no class for do not count for its "
            "accuracy",
        )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "Strength":
        return cls(models=tuple(arguments.models), label_column=arguments.label_column)

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.label_column is None else (self.label_column,)

    @property
    def _names(self) -> list[str]:
        return [public_name(model) for model in self.models]

    @functools.cached_property
    def _classifiers(self) -> dict[str, Classifier]:
        return {}

    def check(self, context: Context) -> None:
        """Loads the classifiers."""
        if len(set(self._names)) < len(self.models):
            raise SettingsError(f"the models are {', '.join(self.models)}, no name may occur twice")
        for name, model in zip(self._names, self.models, strict=True):
            self._classifiers[name] = load_classifier(model, context.model.device)

    def measure_settings(self, context: Context) -> dict:
        return {"models": {name: classifier.fingerprint for name, classifier in self._classifiers.items()}}

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        """For each model, the class of the original and those after each rollout."""
        generator = torch.Generator(context.model.device).manual_seed(0)
        rollouts = context.model.rollouts(batch.pixel_values, generator=generator)
        pictures = [batch.pixel_values, *(rollout.reconstruction for rollout in rollouts)]
        classes = {
            _classes_column(name): torch.stack(
                [finite_logits(classifier, picture).argmax(dim=1) for picture in pictures], dim=1
            )
            for name, classifier in self._classifiers.items()
        }
        return [{name: values[row].tolist() for name, values in classes.items()} for row in range(len(batch.indices))]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `models`: for each, weakest first, `agreement` by length (share of images that keep the original's class)
              and, if there are labels that it knows, `accuracy` on the `original` and by length, and `drop`, the
              originals' accuracy minus that of reconstructions.
            - `strong_minus_weak`: with several models, `agreement` of the strongest minus that of the weakest by
              length, paired by image.
        """
        lengths = [str(length) for length in code_lengths(context.model.config)]

        def by_length(estimate: Callable[..., dict], *values: np.ndarray) -> dict[str, dict]:
            columns = zip(*(of_images.T for of_images in values), strict=True)
            return {length: estimate(*column) for length, column in zip(lengths, columns, strict=True)}

        kept = {name: _kept_classes(table, name) for name in self._names}
        models = {}
        for name in self._names:
            models[name] = {"agreement": by_length(share, kept[name])}
            if self.label_column is not None:
                correct = self._correct(table, name)
                models[name]["accuracy"] = {"original": share(correct[:, 0]), **by_length(share, correct[:, 1:])}
                models[name]["drop"] = {
                    length: share_difference(column, correct[:, 0])
                    for length, column in zip(lengths, correct[:, 1:].T, strict=True)
                }
        weak, strong = self._names[0], self._names[-1]
        difference = None
        if strong != weak:
            difference = by_length(share_difference, kept[weak], kept[strong])
        return {"num_images": len(table), "models": models, "strong_minus_weak": difference}

    def _correct(self, table: pd.DataFrame, name: str) -> np.ndarray:
        """Whether originals and reconstructions get their class, float `(N, 1 + K)`, for images of known classes."""
        class_names = np.array(self._classifiers[name].class_names)
        labels = table[self.label_column]
        known = labels.isin(class_names).to_numpy()
        predicted = _classes(table, name)[known]
        # Names rather than numbers, as ImageNet has two classes for some names.
        return (class_names[predicted] == labels[known].to_numpy(dtype=object)[:, None]).astype(float)

    def finding(self, results: dict) -> str:
        lengths = list(next(iter(results["models"].values()))["agreement"])
        parts = []
        for length in (lengths[0], lengths[-1]):
            agreements = ", ".join(
                f"{name} in {in_words(numbers['agreement'][length])}" for name, numbers in results["models"].items()
            )
            parts.append(f"with {length} tokens reconstructions keep the original's class for {agreements}")
        if results["strong_minus_weak"] is None:
            return "; ".join(parts) + "; one model alone says nothing of strength"
        parts.append(
            f"the strongest model's share minus the weakest's is {in_words(results['strong_minus_weak'][lengths[0]])} "
            f"and {in_words(results['strong_minus_weak'][lengths[-1]])}"
        )
        if self.label_column is not None:
            drops = ", ".join(
                f"{name} {in_words(numbers['drop'][lengths[-1]])}" for name, numbers in results["models"].items()
            )
            parts.append(f"accuracy drops with {lengths[-1]} tokens by: {drops}")
        return "; ".join(parts)

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        measures = {"agreement": "share that keeps the original's class"}
        accuracies = [numbers["accuracy"] for numbers in results["models"].values() if "accuracy" in numbers]
        if any(accuracy["original"]["not_enough_data"] is None for accuracy in accuracies):
            measures["accuracy"] = "top-1 accuracy"
        figure = new_figure(4.2 * len(measures), 3.4)
        for place, (measure, label) in enumerate(measures.items(), start=1):
            axes = figure.add_subplot(1, len(measures), place)
            for number, (name, numbers) in enumerate(results["models"].items()):
                values = dict(numbers[measure])
                original = values.pop("original", None)
                draw_estimates(axes, values, name, f"C{number}")
                if original is not None and original["value"] is not None:
                    axes.axhline(original["value"], color=f"C{number}", linestyle=":", linewidth=1)
            axes.set_ylim(bottom=0)
            style(axes, "latent tokens", label)
        for text in figure.axes[0].legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
        return figure


def _classes_column(name: str) -> str:
    return f"classes by {name}"


def _classes(table: pd.DataFrame, name: str) -> np.ndarray:
    """Classes of the original and after each rollout, int `(N, 1 + K)`."""
    stored = table[_classes_column(name)].tolist()
    return np.array(stored, dtype=int).reshape(len(stored), -1)


def _kept_classes(table: pd.DataFrame, name: str) -> np.ndarray:
    """Whether each rollout's picture has its original's class, float `(N, K)`."""
    classes = _classes(table, name)
    return (classes[:, 1:] == classes[:, :1]).astype(float)


ANALYSIS = Strength
