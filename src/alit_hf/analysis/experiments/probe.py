"""What a linear classifier can read from frozen features (paper appendix A.4)."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alit_hf.analysis.analysis import Analysis, Context, ImageBatch, RunSettings
from alit_hf.analysis.charts import draw_estimates, new_figure, style
from alit_hf.analysis.linear_probe import choose_probe, stratified_split
from alit_hf.analysis.statistics import in_words, not_enough, share, share_difference
from alit_hf.analysis.untrained_model import untrained_copy
from alit_hf.data.images import Images
from alit_hf.evaluation.lengths import code_lengths
from alit_hf.evaluation.rounding import rounded
from alit_hf.evaluation.settings import SettingsError
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.utils.image_count import image_count


_TEST_SHARE = 0.25

MIN_CLASS_IMAGES = 8
"""Fewest images of a class, which is split into training, validation and test; smaller classes are left out."""

_KINDS = {
    "tokens_and_latents": "image tokens and latents after each rollout",
    "latents": "first latents after all rollouts",
}

_UNTRAINED = {kind: f"untrained_{kind}" for kind in _KINDS}
"""The columns of the same features of a model with random weights, with all tokens."""

_MEASURED = ("picture", "base_latents", *_KINDS, *_UNTRAINED.values())

# Other columns of the table, which a label column of the same name would replace.
_OTHER_COLUMNS = ("data", "index", "digest", "image", *_MEASURED)


@dataclass(kw_only=True)
class Probe(Analysis):
    """
    Fits linear classifiers to the features of one part of the images and tests them on the other, beside those of a
    model of the same configuration with random weights, base tokenizer included. Of images that are
    the same picture to the model, only the first counts, as a probe that has seen a test image knows its class.

    Args:
        label_column (`str`): column of each image's class; images without one are left out.
    """

    name = "probe"
    default_limit = 600
    data_options: ClassVar = {"data": "labelled images", "test_data": "labelled images to test on"}
    optional_data = ("test_data",)

    label_column: str = "label"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--label-column",
            metavar="COLUMN",
            default=cls.label_column,
            help="has the class of each image, or nothing (default: %(default)s)",
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.label_column,)

    def choose(self, images: Images, settings: RunSettings) -> list[int]:
        """A random sample of the images that have a class."""
        labels = images.column(self.label_column)
        order = np.random.default_rng(settings.seed).permutation(len(images)).tolist()
        return sorted([index for index in order if labels[index] is not None][: settings.limit])

    def check(self, context: Context) -> None:
        """
        Raises:
            `SettingsError`: for a model of one rollout, a label column whose name is taken, labels that are not all
                names or all integers, fewer than two classes, or test data without any of them.
        """
        if context.model.config.max_rollouts < 2:
            raise SettingsError("the model has one rollout, features can be compared over rollouts from two on")
        if self.label_column in _OTHER_COLUMNS:
            raise SettingsError(
                f"the label column is `{self.label_column}`, it must not be one of {', '.join(_OTHER_COLUMNS)}, which "
                "the stored results have themselves: rename it"
            )
        labels = {name: self._chosen_labels(images, context.settings) for name, images in context.data.items()}
        self._check_kinds(labels)
        problem = self._too_little(labels)
        if problem is not None:
            raise SettingsError(problem)
        self._untrained = untrained_copy(context.model, context.settings.seed % 2**64)

    def _too_little(self, labels: Mapping[str, list], that: str = "") -> str | None:
        """Why there are too few images (`that` says which ones are left) in a data set; `None` if there are enough."""
        classes = _large_classes(labels["data"])
        if len(classes) < 2:
            return (
                f"not enough data: of {len(labels['data'])} images with a `{self.label_column}`{that}, {len(classes)} "
                f"classes have {MIN_CLASS_IMAGES} or more, at least 2 are needed"
            )
        if "test_data" in labels and not set(labels["test_data"]) & set(classes):
            return (
                f"not enough data: of {len(labels['test_data'])} images of `test_data` with a "
                f"`{self.label_column}`{that}, none is of a class that `data` has {MIN_CLASS_IMAGES} or more of: "
                f"{', '.join(map(str, classes))}"
            )
        return None

    def _chosen_labels(self, images: Images, settings: RunSettings) -> list:
        labels = images.column(self.label_column)
        return [labels[index] for index in self.choose(images, settings)]

    def _check_kinds(self, labels: Mapping[str, list]) -> None:
        """Labels are counted, sorted and compared across data sets, so all must be of one kind."""
        first = None
        for name, of_data in labels.items():
            for label in of_data:
                if not isinstance(label, (str, int)):
                    raise SettingsError(
                        f"the column `{self.label_column}` of `{name}` has {label!r}, it must have names or integers, "
                        "or nothing"
                    )
                first = label if first is None else first
                if isinstance(label, str) != isinstance(first, str):
                    raise SettingsError(
                        f"the column `{self.label_column}` of `{name}` has {label!r}, but {first!r} comes before it: "
                        "all labels must be names, or all integers"
                    )

    def measure_settings(self, context: Context) -> dict:
        """What is stored, as an earlier run may have stored less, and the seed of the untrained model."""
        return {"measured": list(_MEASURED), "seed": context.settings.seed}

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        """
        For each image, `picture`, a hash of the pixels that the model sees; and float32 vectors: what `mean_features`
        gives of the model, and of the untrained one with all tokens.
        """
        features = mean_features(context.model, batch.pixel_values)
        untrained = mean_features(self._untrained, batch.pixel_values)
        features |= {column: untrained[kind][:, -1] for kind, column in _UNTRAINED.items()}
        return [
            {
                "picture": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
                **{name: values[row].cpu().numpy().tobytes() for name, values in features.items()},
            }
            for row, pixels in enumerate(batch.pixel_values.cpu())
        ]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `classes`: for each, the number of images to `train` and to `test` on; `left_out`: the number of images
              for each class with too few; `repeated`: how many images were left out first because an earlier one is
              the same picture, with training images coming before test images.
            - `chance` (one over the number of classes) and `majority`, the accuracy of always predicting the most
              frequent class of training; `majority` is `None` if there are too few test images.
            - `base_latents`, by length `tokens_and_latents` and `latents` (see `mean_features`), and `untrained`, the
              latter two with all tokens of the model with random weights: `accuracy` and `balanced_accuracy` (the
              mean over classes, `None` if there are too few images) on the test images, and the chosen
              `weight_decay`.
            - `differences` of accuracy, paired by image: `last_minus_first_rollout`, `all_minus_first_latents`,
              `last_rollout_minus_base_latents`, `last_rollout_minus_untrained` and `all_latents_minus_untrained`.

        Raises:
            `ValueError`: if the distinct pictures that could be decoded leave fewer than two classes, or no test
                images.
        """
        # The table is in the order of data sets, `data` first.
        is_repeated = table["picture"].duplicated()
        table = table[~is_repeated]
        labels, is_test, classes, left_out = self._split(context, table)
        table = table[labels >= 0]
        is_test, labels = is_test[labels >= 0], labels[labels >= 0]
        config, seed = context.model.config, context.settings.seed
        lengths = [str(length) for length in code_lengths(config)]
        too_few = not_enough(int(is_test.sum()))
        correct = {}

        def probe(features: np.ndarray, key: tuple[str, ...]) -> dict:
            fitted = choose_probe(features[~is_test], labels[~is_test], seed)
            hits = (fitted.predict(features[is_test]) == labels[is_test]).astype(float)
            correct[key] = hits
            recalls = [hits[labels[is_test] == label].mean() for label in np.unique(labels[is_test])]
            return {
                "accuracy": share(hits),
                "balanced_accuracy": rounded(np.mean(recalls)) if too_few is None else None,
                "weight_decay": fitted.weight_decay,
            }

        results = {"base_latents": probe(_features(table["base_latents"], 1)[:, 0], ("base_latents",))}
        for kind in _KINDS:
            features = _features(table[kind], len(lengths))
            results[kind] = {length: probe(features[:, place], (kind, length)) for place, length in enumerate(lengths)}
        results["untrained"] = {
            kind: probe(_features(table[column], 1)[:, 0], (column,)) for kind, column in _UNTRAINED.items()
        }
        majority = np.bincount(labels[~is_test]).argmax()
        first, last = lengths[0], lengths[-1]
        pairs = {
            "last_minus_first_rollout": (("tokens_and_latents", last), ("tokens_and_latents", first)),
            "all_minus_first_latents": (("latents", last), ("latents", first)),
            "last_rollout_minus_base_latents": (("tokens_and_latents", last), ("base_latents",)),
            "last_rollout_minus_untrained": (("tokens_and_latents", last), (_UNTRAINED["tokens_and_latents"],)),
            "all_latents_minus_untrained": (("latents", last), (_UNTRAINED["latents"],)),
        }
        return {
            "classes": {
                str(name): {
                    "train": int((labels[~is_test] == number).sum()),
                    "test": int((labels[is_test] == number).sum()),
                }
                for number, name in enumerate(classes)
            },
            "left_out": left_out,
            "repeated": int(is_repeated.sum()),
            "chance": rounded(1 / len(classes)),
            "majority": rounded((labels[is_test] == majority).mean()) if too_few is None else None,
            **results,
            "differences": {
                name: share_difference(correct[less], correct[more]) for name, (more, less) in pairs.items()
            },
        }

    def _split(self, context: Context, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list, dict[str, int]]:
        """The class of each row, −1 without one; whether it is a test image; the classes; and those left out."""
        names = table[self.label_column].tolist()
        in_test_data = (table["data"] == "test_data").to_numpy()
        by_data = {name: table[self.label_column][table["data"] == name].tolist() for name in context.data}
        problem = self._too_little(by_data, " that can be decoded and repeat no other")
        if problem is not None:
            raise ValueError(problem)
        classes = _large_classes(by_data["data"])
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers.get(name, -1) for name in names])
        left_out = {str(name): count for name, count in sorted(Counter(names).items()) if name not in numbers}
        if "test_data" in context.data:
            return labels, in_test_data, classes, left_out
        is_test = np.zeros(len(labels), dtype=bool)
        is_test[labels >= 0] = stratified_split(labels[labels >= 0], _TEST_SHARE, context.settings.seed)
        return labels, is_test, classes, left_out

    def finding(self, results: dict) -> str:
        first, *_, last = results["tokens_and_latents"]
        difference = in_words(results["differences"]["last_minus_first_rollout"])
        base = in_words(results["base_latents"]["accuracy"])
        # From the same images as every accuracy.
        majority = base if results["majority"] is None else f"{results['majority']:.3f}"
        repeated = f"; {image_count(results['repeated'])} equal to others left out" if results["repeated"] else ""

        def accuracy(kind: str, length: str) -> str:
            return in_words(results[kind][length]["accuracy"])

        return (
            f"a linear probe of {len(results['classes'])} classes is right for "
            f"{accuracy('tokens_and_latents', first)} of test images after one rollout and "
            f"{accuracy('tokens_and_latents', last)} after all (difference {difference}), from the first {first} "
            f"latents for {accuracy('latents', first)}, from all {last} for {accuracy('latents', last)}, from the "
            f"base tokenizer's latents for {base}; from a model with random weights for "
            f"{in_words(results['untrained']['tokens_and_latents']['accuracy'])} after all rollouts and "
            f"{in_words(results['untrained']['latents']['accuracy'])} from all {last} latents; "
            f"chance {results['chance']:.3f}, the most frequent class "
            f"{majority}{repeated}"
        )

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        figure = new_figure(7.6, 3.6)
        axes = figure.add_subplot()
        for number, (kind, label) in enumerate(_KINDS.items()):
            accuracies = {length: numbers["accuracy"] for length, numbers in results[kind].items()}
            draw_estimates(axes, accuracies, label, f"C{number}")
        _draw_level(axes, results["base_latents"]["accuracy"]["value"], "base tokenizer's latents", "-.")
        for number, (kind, probed) in enumerate(results["untrained"].items()):
            label = f"{_KINDS[kind].partition(' after ')[0]}, random weights"
            _draw_level(axes, probed["accuracy"]["value"], label, ":", f"C{number}")
        _draw_level(axes, results["majority"], "most frequent class", "--")
        _draw_level(axes, results["chance"], "chance", ":")
        axes.set_ylim(0, 1)
        style(axes, "latent tokens", "accuracy on test images")
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def mean_features(model: ALITModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    What the probes are fitted to.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1] on the model's device.

    Returns:
        float32: `base_latents`, the mean over the grid of the base tokenizer's latents `(B, E)`; `tokens_and_latents`,
        the mean of processed image tokens and latent tokens after each rollout `(B, K, W)`; `latents`, the mean of the
        first L, 2L, … of all latent tokens `(B, K, W)`.

    Raises:
        `ValueError`: for NaN or infinite features.
    """
    config = model.config
    base_latents = model.base_tokenizer.encode(pixel_values.to(model.dtype))
    tokens_and_latents = []
    for rollout in model.rollouts(
        pixel_values,
        return_reconstruction=False,
        return_decoder_output=False,
        generator=torch.Generator(model.device).manual_seed(0),
        base_latents=base_latents,
    ):
        tokens = rollout.last_hidden_state.float()
        # All except the class token.
        tokens_and_latents.append(tokens[:, 1:].mean(dim=1))
    latents = tokens[:, 1 + config.num_positions :]
    features = {
        "base_latents": base_latents.float().mean(dim=(2, 3)),
        "tokens_and_latents": torch.stack(tokens_and_latents, dim=1),
        "latents": torch.stack([latents[:, :length].mean(dim=1) for length in code_lengths(config)], dim=1),
    }
    if not all(torch.isfinite(values).all() for values in features.values()):
        raise ValueError("the model's features have NaN or infinite values")
    return features


def _large_classes(labels: Sequence) -> list:
    """The classes with at least `MIN_CLASS_IMAGES` images, sorted."""
    return sorted(label for label, count in Counter(labels).items() if count >= MIN_CLASS_IMAGES)


def _draw_level(axes: Axes, value: float | None, label: str, linestyle: str, color: str = "0.4") -> None:
    if value is not None:
        axes.axhline(value, color=color, linestyle=linestyle, linewidth=1, label=label)


def _features(stored: Sequence[bytes], count: int) -> np.ndarray:
    """The vectors of N images, `count` for each, float32 `(N, count, W)`."""
    return np.stack([np.frombuffer(vectors, dtype=np.float32) for vectors in stored]).reshape(len(stored), count, -1)


ANALYSIS = Probe
