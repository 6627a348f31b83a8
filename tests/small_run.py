"""Analyses of a tiny model on a few pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tiny_config import tiny_model

from alit_hf import ALITImageProcessor
from alit_hf.analysis.analysis import Analysis, Context, RunSettings
from alit_hf.analysis.run import run_analysis
from alit_hf.data.images import open_images


def tiny_photo(seed: int) -> Image.Image:
    """A smooth picture of 48 x 40 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)


def tiny_photos(folder: Path, count: int) -> list[str]:
    """Writes pictures; gives what `open_images` takes."""
    for seed in range(count):
        tiny_photo(seed).save(folder / f"{seed:02d}.png")
    return [str(folder)]


def context_of(sources: Sequence[str], seed: int = 0, **fields) -> Context:
    """All images of these sources and the model of `tiny_model`."""
    model = tiny_model(**fields)
    data = {"data": open_images(sources)}
    processor = ALITImageProcessor.for_config(model.config)
    return Context(model, processor, data, RunSettings(limit=100, seed=seed, batch_size=5))


def run(analysis: Analysis, context: Context, folder: Path) -> tuple[dict, Figure]:
    return run_analysis(analysis, context, folder)
