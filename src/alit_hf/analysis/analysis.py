"""The base class of analyses, and what it is given."""

import argparse
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from alit_hf.data.images import Images
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """
    Which images to use, and how many at once.

    Args:
        limit (`int`): maximum number of images from each data set; a larger limit includes the images of a smaller
            one.
        seed (`int`): seed of the image sample and of everything else that an analysis draws.
        batch_size (`int`): images at a time.
    """

    limit: int
    seed: int = 0
    batch_size: int = 8


@dataclass(frozen=True)
class Context:
    """
    What an analysis runs on.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        processor ([`ALITImageProcessor`]): brings images to the model's size.
        data (`Mapping[str, Images]`): the images for each of the analysis's `data_options`.
        settings ([`RunSettings`])
    """

    model: ALITModel
    processor: ALITImageProcessor
    data: Mapping[str, Images]
    settings: RunSettings


@dataclass(frozen=True)
class ImageBatch:
    """
    Images of one data set.

    Args:
        data (`str`): which of `data_options` they belong to.
        indices (`Sequence[int]`): their B indices in it.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1] as the model sees them, on its device.
        columns (`Mapping[str, Sequence]`): B values for each of the analysis's `columns`.
    """

    data: str
    indices: Sequence[int]
    pixel_values: torch.Tensor
    columns: Mapping[str, Sequence[Any]]


class Analysis(ABC):
    """One experiment of the paper. Subclasses are keyword-only dataclasses, see the package's docstring."""

    name: ClassVar[str]
    default_limit: ClassVar[int]
    columns: ClassVar[tuple[str, ...]] = ()
    data_options: ClassVar[dict[str, str]] = {"data": "the images"}
    """A description of each data set, for the help, by its option: `data`, or a name that ends in `_data`."""
    optional_data: ClassVar[tuple[str, ...]] = ()
    """The `data_options` that may be omitted, also from `Context.data`."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the analysis's own options, with a `dest` for each field."""
        return

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "Analysis":
        return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})

    def check(self, context: Context) -> None:
        """
        Raises:
            `SettingsError`: if model, data and options do not fit together.
        """
        return

    def choose(self, images: Images, settings: RunSettings) -> list[int]:
        """The indices of at most `settings.limit` images, ascending: here a random sample."""
        order = np.random.default_rng(settings.seed).permutation(len(images))
        return sorted(order[: settings.limit].tolist())

    def measure_settings(self, context: Context) -> dict:
        """What `measure` depends on besides the model and the image, in JSON's types."""
        return {}

    @abstractmethod
    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        """
        What is stored for each image, under the same names for all of them; called in inference mode.

        Raises:
            `ValueError`: if the model gives NaN.
        """

    @abstractmethod
    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        The results.

        Args:
            context ([`Context`])
            table (`pandas.DataFrame`): a row for each image that could be decoded, at least one from each data set,
                ordered by data set and `index`.
        """

    @abstractmethod
    def finding(self, results: dict) -> str:
        """What `summarize` found, in one line."""

    @abstractmethod
    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        """The figure."""


__all__ = ["Analysis", "Context", "ImageBatch", "RunSettings"]
