"""What the frozen part of a stage gives for fixed crops, computed once and kept on disk."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset

from alit_hf.utils.error_reason import reason
from alit_hf.utils.progress import ProgressBar
from alit_hf.utils.sole_use import sole_use

from ..configuration import DataConfig, TrainingConfig
from ..stages.sharding import let_go, whole
from ..stages.stage import Stage
from .batches import TrainingImages, check_undecodable


FOLDER = "frozen-outputs"
"""Folder inside the run's, used if `data.cache_dir` is empty."""

# Part of the fingerprint: raise it when what is computed or how it is written changes.
_VERSION = 2
_OUTPUTS_FILE, _INDEX_FILE = "outputs.bin", "index.json"
_UNFINISHED = ".unfinished-"
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


class FrozenCache:
    """
    The outputs in a folder filled by `cached_outputs`, read one crop at a time.

    Args:
        folder: has `outputs.bin`, those of all images' crops in sequence without a header, and `index.json`,
            which describes them.
    """

    def __init__(self, folder: Path):
        self.path = folder / _OUTPUTS_FILE
        index = json.loads((folder / _INDEX_FILE).read_text(encoding="utf-8"))
        self.crops, self.shape = index["crops"], tuple(index["shape"])
        self.dtype = _DTYPES[index["mixed_precision"]]
        self.undecodable = frozenset(index["undecodable"])

    def __call__(self, image: int, crop: int) -> torch.Tensor:
        """
        Outputs `(…)` for one of an image's fixed crops.

        Raises:
            `ValueError`: for an image that could not be decoded when they were computed.
        """
        if image in self.undecodable:
            raise ValueError("it could not be decoded when the outputs were computed")
        size = math.prod(self.shape) * self.dtype.itemsize
        # Not a memory map, which would be pickled whole for workers that are not forked.
        content = np.fromfile(self.path, np.uint8, count=size, offset=(image * self.crops + crop) * size)
        return torch.from_numpy(content).view(self.dtype).view(self.shape)


def cached_outputs(
    config: TrainingConfig,
    accelerator: Accelerator,
    wrapped: nn.Module,
    stage: Stage,
    images: TrainingImages,
    batch_size: int,
) -> FrozenCache:
    """
    The outputs of the stage's frozen part for all images' fixed crops: from the disk if they have been computed
    before, otherwise computed now, each rank its part. All ranks must call it.

    They are in a folder named by a fingerprint of everything that they depend on, so that those of other weights,
    images or crops are never used instead.

    Args:
        config: with `data.cached_crops`.
        accelerator: has prepared `wrapped`.
        wrapped, stage: the prepared stage and the stage itself, with the frozen weights already loaded.
        images: the training images.
        batch_size: crops that a rank computes at once.

    Raises:
        `ValueError`: if the disk has no room for them, or is not shared by all ranks, and if another run is computing
            the same ones.
        `UndecodableImagesError`: for more undecodable images than `data.max_undecodable` allows.
    """
    folder = Path(config.data.cache_dir or Path(config.output_dir) / FOLDER) / _fingerprint(config, stage, images)
    if not _is_there(folder):
        with ExitStack() as stack:
            if accelerator.is_main_process:
                _enter(stack, folder)
            # Unless another run has just computed them.
            if not _is_there(folder):
                _compute(folder, config, accelerator, wrapped, stage, images, batch_size)
    return FrozenCache(folder)


def _is_there(folder: Path) -> bool:
    """What the first process sees, as all must see the same."""
    return broadcast_object_list([folder.is_dir()])[0]


def _enter(stack: ExitStack, folder: Path) -> None:
    try:
        stack.enter_context(sole_use(folder.parent, lock_file=f".{folder.name}.lock"))
    except OSError as error:
        raise ValueError(f"`data.cache_dir` is {str(folder.parent)!r}, it cannot be used: {reason(error)}.") from error


def _fingerprint(config: TrainingConfig, stage: Stage, images: TrainingImages) -> str:
    """A name for everything that the outputs depend on. All ranks must call it."""
    weights = hashlib.sha256()
    for name, tensor in sorted(stage.frozen_weights().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(whole(tensor).cpu().flatten().view(torch.uint8).numpy())
    data = config.data
    source = {
        "version": _VERSION,
        "frozen": [stage.frozen_settings(), weights.hexdigest()],
        "mixed_precision": config.optimization.mixed_precision,
        "images": [images.images.fingerprint, data.image_column, len(images), data.in_memory],
        "crops": [data.cached_crops, data.image_size, data.crop_scale, data.flip, config.seed],
    }
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]


def _compute(
    folder: Path,
    config: TrainingConfig,
    accelerator: Accelerator,
    wrapped: nn.Module,
    stage: Stage,
    images: TrainingImages,
    batch_size: int,
) -> None:
    """Fills the folder under a temporary name and renames it."""
    crops, mixed_precision = config.data.cached_crops, config.optimization.mixed_precision
    shape = stage.frozen_shape
    image_bytes = crops * math.prod(shape) * _DTYPES[mixed_precision].itemsize
    unfinished = folder.with_name(_UNFINISHED + folder.name)
    if accelerator.is_main_process:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        _check_space(folder.parent, len(images) * image_bytes, config.data)
        unfinished.mkdir()
        (unfinished / _OUTPUTS_FILE).touch()
    accelerator.wait_for_everyone()
    if not unfinished.is_dir():
        raise ValueError(f"`data.cache_dir` is {str(folder.parent)!r}, it must be a folder that all ranks share.")

    undecodable = []
    stage.eval()
    with open(unfinished / _OUTPUTS_FILE, "r+b") as file:
        for image, outputs in _outputs_of_part(accelerator, wrapped, images, config.data, batch_size):
            if outputs is None:
                undecodable.append(image)
                continue
            file.seek(image * image_bytes)
            file.write(outputs.to(_DTYPES[mixed_precision]).contiguous().view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())
    let_go(wrapped)
    # Splitting the images evenly may have given the same one to two ranks.
    undecodable = sorted(set(gather_object(undecodable)))
    check_undecodable(len(undecodable), len(images), config.data.max_undecodable)
    if accelerator.is_main_process:
        index = {"crops": crops, "shape": shape, "mixed_precision": mixed_precision, "undecodable": undecodable}
        (unfinished / _INDEX_FILE).write_text(json.dumps(index) + "\n", encoding="utf-8")
        unfinished.rename(folder)
    accelerator.wait_for_everyone()


def _check_space(folder: Path, needed: int, config: DataConfig) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"`data.cached_crops` is {config.cached_crops}, it must be smaller or `data.cache_dir` another: the "
            f"outputs take {needed / 2**30:.1f} GiB, {folder} has room for {free / 2**30:.1f}."
        )


@torch.no_grad()
def _outputs_of_part(
    accelerator: Accelerator, wrapped: nn.Module, images: TrainingImages, config: DataConfig, batch_size: int
) -> Iterator[tuple[int, torch.Tensor | None]]:
    """This rank's images, each with the outputs `(N, …)` for its crops; None if undecodable."""
    # The same number for each rank, as all ranks gather sharded weights together.
    share = -(-len(images) // accelerator.num_processes)
    first = accelerator.process_index * share
    part = [index % len(images) for index in range(first, first + share)]
    loader = DataLoader(
        _FixedCrops(images, part), batch_size=max(1, batch_size // config.cached_crops), num_workers=config.num_workers
    )
    with ProgressBar(total=share, desc="frozen part") as bar:
        for batch in loader:
            computed = []
            for pixels in batch["pixel_values"].flatten(0, 1).split(batch_size):
                with accelerator.autocast():
                    computed.append(wrapped(pixels.to(accelerator.device).float() / 255, "frozen_outputs").cpu())
            outputs = torch.cat(computed).unflatten(0, (-1, config.cached_crops))
            for image, decodable, of_image in zip(batch["image"].tolist(), batch["decodable"], outputs, strict=True):
                yield image, of_image if decodable else None
            bar.update(len(outputs))


class _FixedCrops(Dataset):
    """All fixed crops of the images with the given indices."""

    def __init__(self, images: TrainingImages, part: list[int]):
        self.images = images
        self.part = part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, number: int) -> dict:
        image, config = self.part[number], self.images.config
        try:
            picture = self.images.picture(image)
        except ValueError:
            # Logged when the run comes to it, and left out of what is written.
            nothing = torch.zeros(config.cached_crops, 3, config.image_size, config.image_size, dtype=torch.uint8)
            return {"image": image, "decodable": False, "pixel_values": nothing}
        crops = [self.images.fixed_crop(picture, image, crop) for crop in range(config.cached_crops)]
        return {"image": image, "decodable": True, "pixel_values": torch.stack(crops)}
