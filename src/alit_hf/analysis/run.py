"""Runs an analysis: measures the images that are not stored yet, then sums up and draws."""

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from alit_hf import __version__
from alit_hf.codes.rollout_progress import rollout_progress
from alit_hf.data.images import Images, check_columns
from alit_hf.evaluation.description import (
    check_crop,
    describe_crop,
    describe_device,
    describe_model,
    describe_versions,
)
from alit_hf.evaluation.settings import SettingsError
from alit_hf.utils.error_reason import reason
from alit_hf.utils.processes import Processes
from alit_hf.utils.progress import ProgressBar
from alit_hf.utils.public_names import public_name
from alit_hf.utils.sole_use import sole_use

from .analysis import Analysis, Context, ImageBatch
from .store import ImageStore


_LIBRARIES = (
    "torch",
    "transformers",
    "diffusers",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "pillow",
    "matplotlib",
)


def run_analysis(
    analysis: Analysis, context: Context, folder: Path, processes: Processes | None = None
) -> tuple[dict, Figure] | None:
    """
    Runs an analysis over its images. Images that `folder` has from an earlier run are not measured again.

    On one machine, the same settings give the same numbers, up to rounding if the run was interrupted or uses another
    number of processes.

    Args:
        analysis ([`Analysis`])
        context ([`Context`])
        folder (`Path`): where per-image results are stored; several processes must share it.
        processes ([`Processes`], *optional*): the processes that share the images. Defaults to this one alone.

    Returns:
        the results, in JSON's types, and the figure; `None` on all processes except the first.
        - `analysis`, `finding`: its name and what it found, in one line.
        - `model`, `data` (for each data set), `settings`: what was measured, on what and how.
        - `results`: what the analysis sums up.

    Raises:
        `SettingsError`: before any work, if model, image processor, data and options do not fit together, or if
            `folder` holds results of other ones, or another run is writing to it.
        `ValueError`: if a data set has no image that can be decoded; for a model whose pictures have NaN; and if
            `folder` lacks measured images at the end, because processes do not share it.
    """
    processes = processes or Processes()
    check_crop(context.model, context.processor)
    for images in context.data.values():
        try:
            check_columns(images, analysis.columns)
        except ValueError as error:
            raise SettingsError(str(error)) from error
    analysis.check(context)
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_use(folder, processes))
        except OSError as error:
            raise SettingsError(f"the output cannot be used: {reason(error)}") from error
        return _run(analysis, context, folder, processes)


def _run(analysis: Analysis, context: Context, folder: Path, processes: Processes) -> tuple[dict, Figure] | None:
    chosen = {name: analysis.choose(images, context.settings) for name, images in context.data.items()}
    pass_ = _Pass(analysis, context, ImageStore(folder, _identity(analysis, context)))
    all_images = [(name, index) for name, indices in chosen.items() for index in indices]
    # No process continues before all have stored their measurements, and none ends while others wait for it.
    undecodable, errors = [], []
    try:
        undecodable = pass_.measure(all_images[processes.rank :: processes.count], processes)
    except ValueError as error:
        errors = [error]
    errors = processes.gather(errors)
    undecodable = sorted(processes.gather(undecodable), key=lambda image: (image["data"], image["index"]))
    if processes.rank > 0:
        return None
    if errors:
        raise errors[0]
    table = _table(analysis, context, pass_.store.merge(), set(all_images))
    num_measured = len(all_images) - len(undecodable)
    if len(table) != num_measured:
        raise ValueError(
            f"{num_measured} images were measured, but {folder} has {len(table)} of them: all processes must share it"
        )
    for name, images in context.data.items():
        if not (table["data"] == name).any():
            raise ValueError(f"{', '.join(images.sources)}: none of {len(chosen[name])} images can be decoded")
    summary = analysis.summarize(context, table)
    figure = analysis.draw(context, table, summary)
    results = {
        "analysis": analysis.name,
        "finding": analysis.finding(summary),
        "model": describe_model(context.model),
        "data": _describe_data(context, table, undecodable),
        "settings": {
            **{name: _public(setting) for name, setting in dataclasses.asdict(analysis).items()},
            **dataclasses.asdict(context.settings),
            "processes": processes.count,
            "device": describe_device(context.model.device),
            "dtype": str(context.model.dtype).removeprefix("torch."),
            "versions": describe_versions(*_LIBRARIES),
        },
        "results": summary,
    }
    return results, figure


class _Pass:
    """The measurements of one process."""

    def __init__(self, analysis: Analysis, context: Context, store: ImageStore):
        self.analysis = analysis
        self.context = context
        self.store = store
        self.columns = {
            name: {column: images.column(column) for column in analysis.columns}
            for name, images in context.data.items()
        }

    def measure(self, own: list[tuple[str, int]], processes: Processes) -> list[dict]:
        """Measures and stores these images; returns those that cannot be decoded."""
        stored = [image for image in own if image in self.store.digests]
        for image in ProgressBar(stored, desc="checking what is stored"):
            self._check_stored(*image)
        label = self.analysis.name + ("" if processes.count == 1 else f", process 0 of {processes.count}")
        undecodable = []
        with ProgressBar(total=len(own), initial=len(stored), desc=label) as progress:
            for name, indices in self._batches([image for image in own if image not in self.store.digests]):
                pictures = {}
                for index in indices:
                    try:
                        pictures[index] = self.context.data[name].read(index)
                    except (OSError, ValueError) as error:
                        undecodable.append({"data": name, **self.context.data[name].describe_failure(index, error)})
                if pictures:
                    with rollout_progress(self.context.model, progress, len(indices)):
                        self._measure_batch(name, pictures)
                progress.update(len(indices))
        return undecodable

    def _batches(self, todo: list[tuple[str, int]]) -> Iterator[tuple[str, list[int]]]:
        size = self.context.settings.batch_size
        for name in self.context.data:
            indices = [index for data, index in todo if data == name]
            for start in range(0, len(indices), size):
                yield name, indices[start : start + size]

    @torch.inference_mode()
    def _measure_batch(self, name: str, pictures: dict[int, Image.Image]) -> None:
        indices = list(pictures)
        pixel_values = self.context.processor(list(pictures.values()), return_tensors="pt").pixel_values
        columns = {column: [values[index] for index in indices] for column, values in self.columns[name].items()}
        batch = ImageBatch(name, indices, pixel_values.to(self.context.model.device), columns)
        # The fastest algorithms of cuDNN are neither repeatable nor exact.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            measured = self.analysis.measure(self.context, batch)
        self.store.add(
            [
                {"data": name, "index": index, "digest": self._digest(name, index, picture), **values}
                for (index, picture), values in zip(pictures.items(), measured, strict=True)
            ]
        )

    def _check_stored(self, name: str, index: int) -> None:
        images = self.context.data[name]
        if self._digest(name, index, images.read(index)) != self.store.digests[name, index]:
            raise SettingsError(f"{images.name(index)} has changed since it was measured, choose another folder")

    def _digest(self, name: str, index: int, picture: Image.Image) -> str:
        """A hash of everything that an analysis gets of an image."""
        digest = hashlib.sha256(repr((picture.size, {c: v[index] for c, v in self.columns[name].items()})).encode())
        digest.update(picture.tobytes())
        return digest.hexdigest()


def _identity(analysis: Analysis, context: Context) -> dict:
    return {
        "analysis": analysis.name,
        "version": __version__,
        "columns": list(analysis.columns),
        "model": describe_model(context.model)["fingerprint"],
        # Not part of the fingerprint, as it does not affect decoding.
        "halting_threshold": context.model.config.halting_threshold,
        "dtype": str(context.model.dtype).removeprefix("torch."),
        "crop": describe_crop(context.model, context.processor),
        **{name: _source(images) for name, images in context.data.items()},
        "settings": analysis.measure_settings(context),
    }


def _source(images: Images) -> dict:
    names = [public_name(source) for source in images.sources]
    return {"sources": names, "config_name": images.config_name, "split": images.split}


def _public(setting: Any) -> Any:
    """A setting without this machine's folders."""
    if isinstance(setting, tuple):
        return [_public(item) for item in setting]
    return public_name(setting) if isinstance(setting, str) else setting


def _table(analysis: Analysis, context: Context, stored: pd.DataFrame, chosen: set[tuple[str, int]]) -> pd.DataFrame:
    is_chosen = [image in chosen for image in zip(stored["data"], stored["index"], strict=True)]
    table = stored[np.array(is_chosen, dtype=bool)].reset_index(drop=True)
    places = list(zip(table["data"], table["index"], strict=True))
    table["image"] = [context.data[name].name(index) for name, index in places]
    for column in analysis.columns:
        values = {name: images.column(column) for name, images in context.data.items()}
        table[column] = [values[name][index] for name, index in places]
    return table


def _describe_data(context: Context, table: pd.DataFrame, undecodable: list[dict]) -> dict:
    described = {}
    for name, images in context.data.items():
        rows = table[table["data"] == name]
        described[name] = {
            **_source(images),
            "available": len(images),
            "num_images": len(rows),
            "undecodable": [
                {key: image[key] for key in ("index", "image", "reason")}
                for image in undecodable
                if image["data"] == name
            ],
            "damage": images.damage,
            "crop": describe_crop(context.model, context.processor),
            "sha256": hashlib.sha256("".join(rows["digest"]).encode()).hexdigest(),
        }
    return described


__all__ = ["run_analysis"]
