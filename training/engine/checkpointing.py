"""Checkpoints that exist either whole or not at all."""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from ..stages.stage import Stage
from .averaging import WeightAverage


MODEL_FOLDER = "model"
"""Folder inside a checkpoint, and inside the run's folder, that `from_pretrained` loads: the averaged weights."""

_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished-"
_PROGRESS_FILE = "progress.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are untouched."""


@dataclass(kw_only=True)
class Progress:
    """
    How far a run has come. Together with the configuration, `steps` also determines the position in the data.

    Args:
        steps: optimiser steps taken.
        seconds: training time, including earlier runs that it resumed.
        undecodable: images that were skipped.
    """

    steps: int = 0
    seconds: float = 0.0
    undecodable: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=steps_of)


def steps_of(checkpoint: Path) -> int:
    """The number of optimiser steps in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def find_checkpoint(resume: str, output_dir: Path) -> Path | None:
    """
    The checkpoint to continue from; None if the run starts from scratch.

    Args:
        resume: `""`, `"latest"` or the folder of a checkpoint.
        output_dir: the run's folder.

    Raises:
        `ValueError`: for a folder that is not a checkpoint, or if `resume` is empty but `output_dir` has checkpoints,
            which the new run would overwrite one by one.
    """
    existing = checkpoints(output_dir)
    if resume == "latest":
        return existing[-1] if existing else None
    if resume:
        if not (Path(resume) / _PROGRESS_FILE).is_file():
            raise ValueError(f"`resume` is {resume!r}, it must be 'latest' or the folder of a checkpoint.")
        return Path(resume)
    if existing:
        raise ValueError(
            f"`output_dir` is {str(output_dir)!r}, which has checkpoints of another run: continue it by `--resume "
            "latest`, or take another folder."
        )
    return None


class Checkpointer:
    """
    Writes and reads a run's checkpoints. Create it on all ranks, after `accelerator.prepare`; all ranks must call all
    methods.

    Args:
        accelerator: has prepared `wrapped`.
        wrapped: the prepared stage.
        stage: the stage itself.
        average: its averaged weights.
        progress: saved by `save` and set by `load`.
        output_dir: the run's folder.
        keep: number of checkpoints to keep.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        wrapped: nn.Module,
        stage: Stage,
        average: WeightAverage,
        progress: Progress,
        output_dir: Path,
        keep: int,
    ):
        self.accelerator = accelerator
        self.wrapped = wrapped
        self.stage = stage
        self.average = average
        self.progress = progress
        self.output_dir = output_dir
        self.keep = keep
        self.newest: Path | None = None
        """The checkpoint that was written or read last."""
        accelerator.register_for_checkpointing(average, progress)
        accelerator.register_save_state_pre_hook(_strip_wrapper_prefix)
        accelerator.register_load_state_pre_hook(self._load_into_unwrapped)

    def save(self) -> Path:
        """
        Writes `checkpoint-STEPS` under a temporary name, renames it once it is on the disk, and removes all but the
        newest `keep`.

        Raises:
            `CheckpointError`: if it cannot be written, for example on a full disk.
        """
        target = self.output_dir / f"checkpoint-{self.progress.steps}"
        unfinished = self.output_dir / f"{_UNFINISHED}{target.name}"
        main = self.accelerator.is_main_process
        if main:
            for stale in self.output_dir.glob(_UNFINISHED + "*"):
                shutil.rmtree(stale)
        try:
            if main:
                unfinished.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(unfinished))
            self._export(unfinished / MODEL_FOLDER)
            if main:
                text = json.dumps(self.progress.state_dict()) + "\n"
                (unfinished / _PROGRESS_FILE).write_text(text, encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if main:
                _sync(unfinished)
                self._remove(target)
                unfinished.rename(target)
                _sync_folder(self.output_dir)
        except (OSError, SafetensorError, RuntimeError) as error:
            # torch and safetensors report a full disk with errors of their own.
            if main:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"The checkpoint of step {self.progress.steps} could not be written to {self.output_dir}: {error}. "
                "Older checkpoints are untouched."
            ) from error
        if main:
            for old in checkpoints(self.output_dir)[: -self.keep]:
                self._remove(old)
        self.accelerator.wait_for_everyone()
        self.newest = target
        return target

    def load(self, path: Path) -> None:
        """Restores weights, averages, optimisers and progress."""
        self.newest = path
        self.accelerator.load_state(str(path))

    def export(self) -> Path:
        """Copies the averaged model of the last checkpoint to the run's folder, where `from_pretrained` loads it."""
        folder = self.output_dir / MODEL_FOLDER
        unfinished = folder.with_name(f"{_UNFINISHED}{folder.name}")
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self.newest / MODEL_FOLDER, unfinished)
            _sync(unfinished)
            self._remove(folder)
            unfinished.rename(folder)
        self.accelerator.wait_for_everyone()
        return folder

    def _export(self, folder: Path) -> None:
        with self.average.applied():
            state = self.accelerator.get_state_dict(self.wrapped)
            if self.accelerator.is_main_process:
                weights = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
                self.stage.save_pretrained(str(folder), weights)

    def _remove(self, path: Path) -> None:
        """Removes a folder so that a kill on the way never leaves half of it under its name."""
        if path.exists():
            shutil.rmtree(path.rename(path.with_name(f"{_UNFINISHED}removal-of-{path.name}")))

    def _load_into_unwrapped(self, models: list[nn.Module], input_dir: str) -> None:
        # In place: Accelerate goes on using this list.
        models[:] = [self.accelerator.unwrap_model(model) for model in models]


def _strip_wrapper_prefix(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], output_dir: str) -> None:
    """Makes checkpoints from several processes loadable in one: DDP's names differ from the module's."""
    for state in weights:
        for name in [name for name in state if name.startswith("module.")]:
            state[name.removeprefix("module.")] = state.pop(name)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
