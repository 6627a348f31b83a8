"""Checkpoints that exist either whole or not at all."""

import json
import os
import re
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from alit_hf.utils.error_reason import reason
from alit_hf.utils.whole_file import unfinished_files, write_text

from ..configuration import TrainingConfig, config_to_dict
from ..stages.stage import Stage
from .averaging import WeightAverage


MODEL_FOLDER = "model"
"""Folder inside a checkpoint, and inside the run's folder, that `from_pretrained` loads: the averaged weights."""

CONFIG_FILE = "config.yaml"
"""File with the run's configuration, inside a checkpoint and inside the run's folder."""

_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished-"
_PROGRESS_FILE = "progress.json"
_PART_BYTES = 2**20


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
        num_images: images in an epoch; None for a stream.
        logged: the latest value of each logged scalar, with the step at which it was logged.
    """

    steps: int = 0
    seconds: float = 0.0
    undecodable: int = 0
    num_images: int | None = None
    logged: dict[str, tuple[float, int]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

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


def damage_of(checkpoint: Path) -> str | None:
    """Why a run cannot continue from a checkpoint: a file is missing or not what was written. None if it can."""
    try:
        progress = json.loads((checkpoint / _PROGRESS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{_PROGRESS_FILE}: {reason(error)}"
    # Earlier versions wrote no checksums.
    for name, checksum in progress.get("files", {}).items():
        try:
            if _checksum(checkpoint / name) != checksum:
                return f"{name}: not what was written"
        except OSError as error:
            return f"{name}: {reason(error)}"
    return None


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32."""
    size = checksum = 0
    with open(path, "rb") as file:
        while part := file.read(_PART_BYTES):
            size += len(part)
            checksum = zlib.crc32(part, checksum)
    return [size, checksum]


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
        config: of the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        wrapped: nn.Module,
        stage: Stage,
        average: WeightAverage,
        progress: Progress,
        config: TrainingConfig,
    ):
        self.accelerator = accelerator
        self.wrapped = wrapped
        self.stage = stage
        self.average = average
        self.progress = progress
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.newest: Path | None = None
        """The checkpoint that was written or read last."""
        accelerator.register_for_checkpointing(average, progress)
        accelerator.register_save_state_pre_hook(_strip_wrapper_prefix)
        accelerator.register_load_state_pre_hook(self._load_into_unwrapped)

    def prepare_folder(self) -> None:
        """Creates the run's folder, removes what a killed run left unfinished, and writes `config.yaml`."""
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._write_config(self.output_dir)

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
        try:
            if main:
                self._remove_unfinished()
                unfinished.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.stage.gather_counts()
            self.accelerator.save_state(str(unfinished))
            self._export(unfinished / MODEL_FOLDER)
            self.accelerator.wait_for_everyone()
            if main:
                self._write_config(unfinished)
                self._write_progress(unfinished)
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
            # One of more steps, which could not be read or was passed over, does not count in place of this one.
            older = [path for path in checkpoints(self.output_dir) if steps_of(path) <= self.progress.steps]
            for old in older[: -self.config.logging.keep]:
                self._remove(old)
        self.accelerator.wait_for_everyone()
        self.newest = target
        return target

    def load(self, path: Path) -> None:
        """Restores weights, averages, optimisers and progress."""
        self.newest = path
        self.accelerator.load_state(str(path))
        self.stage.leave_counts_to_first_rank()

    def _write_config(self, folder: Path) -> None:
        write_text(folder / CONFIG_FILE, yaml.safe_dump(config_to_dict(self.config), sort_keys=False))

    def _write_progress(self, folder: Path) -> None:
        """Last of all files, with the checksums of those that a resumed run reads."""
        names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        progress = {name: getattr(self.progress, name) for name in ("steps", "seconds", "undecodable")}
        files = {name.as_posix(): _checksum(folder / name) for name in names}
        (folder / _PROGRESS_FILE).write_text(json.dumps({**progress, "files": files}) + "\n", encoding="utf-8")

    def export(self) -> Path:
        """Copies the averaged model of the last checkpoint to the run's folder, where `from_pretrained` loads it."""
        folder = self.output_dir / MODEL_FOLDER
        unfinished = folder.with_name(f"{_UNFINISHED}{folder.name}")
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self.newest / MODEL_FOLDER, unfinished)
            # Newer than the checkpoint, which tells that the run is finished; the copy has the time of the original.
            os.utime(unfinished)
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

    def _remove_unfinished(self) -> None:
        for folder in self.output_dir.glob(_UNFINISHED + "*"):
            shutil.rmtree(folder)
        for file in unfinished_files(self.output_dir):
            file.unlink()

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
