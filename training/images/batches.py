"""Images for training: their source, crops, and an order that depends only on the step number."""

import itertools
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from alit_hf.data.columns import ImageColumnError
from alit_hf.data.image_rows import ImageRows, open_rows
from alit_hf.data.images import Images, open_images
from alit_hf.data.picture_cells import fetch, read_picture
from alit_hf.data.sources import is_on_hub
from alit_hf.utils.error_reason import reason
from alit_hf.utils.progress import ProgressBar

from ..configuration import DataConfig, size_name
from .buckets import Buckets


logger = logging.getLogger(__name__)

_JUDGED_FROM = 1000

Source = TypeVar("Source", Images, ImageRows)


class UndecodableImagesError(RuntimeError):
    """More images than `data.max_undecodable` allows could not be decoded."""


def open_source(config: DataConfig, part: Literal["train", "validation"], open_as: Callable[..., Source]) -> Source:
    """
    Opens the source that a field of the configuration names, only for its pictures.

    Args:
        part: the field's name.
        open_as: `open_images`, or `open_rows` for a stream.

    Raises:
        `ValueError`: with the field's name, for whatever `open_as` refuses.
    """
    name, source, split, config_name = f"data.{part}", getattr(config, part), None, None
    if is_on_hub(source):
        split = config.split if part == "train" else config.validation_split
        config_name = (config.config_name if part == "train" else config.validation_config_name) or None
        # Without a network this takes half a minute of retries to fail.
        logger.info("%s: there is no file or folder %r here, asking the Hub", name, source[0])
    try:
        opened = open_as(source, split, config.image_column, config_name=config_name, columns=())
    except ImageColumnError as error:
        raise ValueError(f"`data.image_column` is {config.image_column!r}, but {error}.") from error
    except ValueError as error:
        raise ValueError(f"`{name}` is {source}: {error}") from error
    for note in opened.passed_over:
        logger.info("%s: %s", name, note)
    # A stream comes to it later.
    for file in opened.damage if isinstance(opened, Images) else ():
        logger.warning("%s: %s", name, file)
    return opened


def center_crop(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The largest centre part of the aspect ratio of `size` (height, width), resized to it, uint8 `(*size, 3)`."""
    height, width = _largest_part(picture, size)
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return _resized(picture, size, (left, top, left + width, top + height))


def random_crop(picture: Image.Image, size: tuple[int, int], config: DataConfig, place: tuple[int, ...]) -> np.ndarray:
    """
    A random part of the aspect ratio of `size` (height, width), resized to it, uint8 `(*size, 3)`, mirrored half of
    the time and seeded by `place`.
    """
    random = np.random.default_rng(place)
    scale = random.uniform(config.crop_scale, 1)
    height, width = (side * scale for side in _largest_part(picture, size))
    left, top = random.uniform(0, picture.width - width), random.uniform(0, picture.height - height)
    pixels = _resized(picture, size, (left, top, left + width, top + height))
    return pixels[:, ::-1] if config.flip and random.random() < 0.5 else pixels


def _largest_part(picture: Image.Image, size: tuple[int, int]) -> tuple[float, float]:
    """(height, width) of the largest part of a picture that has the aspect ratio of `size`."""
    height, width = size
    return min(picture.height, picture.width * height / width), min(picture.width, picture.height * width / height)


def _resized(picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    height, width = size
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def load_validation(config: DataConfig) -> dict[tuple[int, int], torch.Tensor]:
    """
    The first `validation_images` images that can be decoded: centre crops of each of the run's sizes (height, width),
    each uint8 `(B, 3, height, width)`.
    """
    crops, first_error = {size: [] for size in config.sizes}, None
    images = open_source(config, "validation", open_images)
    wanted = min(len(images), config.validation_images)
    for number in ProgressBar(range(len(images)), total=wanted, desc="decoding for validation"):
        if len(crops[config.height_width]) == wanted:
            break
        try:
            picture = images.read(number)
        except (OSError, ValueError) as error:
            logger.warning("Validation image skipped: %s", reason(error))
            first_error = first_error or error
            continue
        for size, of_size in crops.items():
            of_size.append(_as_tensor(center_crop(picture, size)))
    if not crops[config.height_width]:
        raise _no_images("data.validation", config.validation, first_error)
    return {size: torch.stack(of_size) for size, of_size in crops.items()}


def _no_images(name: str, source: list[str], first_error: Exception) -> ValueError:
    why = reason(first_error)
    return ValueError(f"`{name}` is {source}, it must have images that can be decoded, the first one cannot: {why}.")


def _reduced(picture: Image.Image, config: DataConfig) -> np.ndarray:
    """The picture reduced as far as no crop has to be enlarged for it, uint8 `(height, width, 3)`."""
    scales = (round(size[0] / config.crop_scale) / _largest_part(picture, size)[0] for size in config.sizes)
    scale = min(1.0, max(scales))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


class TrainingImages(Dataset):
    """
    Random crops indexed by *position*: how many images the run draws before this one, over all epochs and ranks.

    The image at a position and its crop depend only on the seed, the batch size and the position. So a resumed run,
    another number of ranks or workers, and another order of workers all see the same images. All images of a step have
    one size, see [`Buckets`]. With `cached_crops` the crop depends on the seed, the image and the epoch: epochs cycle
    through an image's fixed crops.

    An item is `{"pixel_values": uint8 (3, height, width), "undecodable": int}`, and with a cache `"frozen": (…)`; if
    an image cannot be decoded, the next one of its bucket and epoch takes its place.

    Args:
        config: of the data.
        seed: of the run.
        batch_size: images per step, over all ranks.

    Raises:
        `UndecodableImagesError`: with `in_memory`, at construction.
    """

    def __init__(self, config: DataConfig, seed: int, batch_size: int = 1):
        self.config = config
        self.seed = seed
        self.images = open_source(config, "train", open_images)
        self.frozen: Callable[[int, int], torch.Tensor] | None = None
        """Returns the frozen part's outputs for an image's fixed crop, given both indices; None without a cache."""
        self.decoded: list[np.ndarray] | None = None
        if config.in_memory:
            self.decoded, aspect_ratios = self._decode_all()
        elif len(config.sizes) > 1:
            aspect_ratios = self._measure_all()
        else:
            aspect_ratios = np.full(len(self.images), np.nan)
        self.buckets = Buckets(config.sizes, aspect_ratios, batch_size, seed)
        if config.buckets:
            logger.info("data.buckets, height x width: %s", self.buckets)

    def _decode_all(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The images that can be decoded, and their height / width."""
        decoded, aspect_ratios, undecodable, first_error = [], [], 0, None
        for number in ProgressBar(range(len(self.images)), desc="decoding"):
            try:
                picture = self.images.read(number)
            except (OSError, ValueError) as error:
                undecodable += 1
                first_error = first_error or error
                logger.warning("Image %d of the training data skipped: %s", number, reason(error))
            else:
                decoded.append(_reduced(picture, self.config))
                aspect_ratios.append(picture.height / picture.width)
        check_undecodable(undecodable, len(self.images), self.config.max_undecodable)
        if not decoded:
            raise _no_images("data.train", self.config.train, first_error)
        return decoded, np.array(aspect_ratios)

    def _measure_all(self) -> np.ndarray:
        """height / width of the images, NaN where a file does not say it."""
        aspect_ratios = np.full(len(self.images), np.nan)
        for number in ProgressBar(range(len(self.images)), desc="measuring"):
            # Said and counted when the run comes to it.
            with suppress(OSError, ValueError):
                width, height = self.images.size(number)
                aspect_ratios[number] = height / width
        return aspect_ratios

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.images if self.decoded is None else self.decoded)

    def __getitem__(self, position: int) -> dict:
        bucket, number, size = self.buckets.place(position)
        num_images = len(self.buckets.images[bucket])
        epoch, place = divmod(number, num_images)
        order = self.buckets.order(bucket, epoch)
        for undecodable in range(num_images):
            try:
                item = self._item(int(order[(place + undecodable) % num_images]), epoch, position, size)
            except ValueError as error:
                logger.warning("Image at position %d skipped: %s", position + undecodable, reason(error))
            else:
                return {**item, "undecodable": undecodable}
        raise UndecodableImagesError(f"None of the {num_images} training images at {size_name(size)} can be decoded.")

    def _item(self, index: int, epoch: int, position: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        if not self.config.cached_crops:
            crop = random_crop(self.picture(index), size, self.config, (self.seed, 1, position))
            return {"pixel_values": _as_tensor(crop)}
        crop = epoch % self.config.cached_crops
        frozen = {} if self.frozen is None else {"frozen": self.frozen(index, crop)}
        return {"pixel_values": self.fixed_crop(self.picture(index), index, crop), **frozen}

    def picture(self, index: int) -> Image.Image:
        """The image of that index. Raises `ValueError` if it cannot be decoded."""
        if self.decoded is not None:
            return Image.fromarray(self.decoded[index])
        try:
            return self.images.read(index)
        except OSError as error:
            raise ValueError(str(error)) from error

    def fixed_crop(self, picture: Image.Image, index: int, crop: int) -> torch.Tensor:
        """One of an image's `cached_crops` crops, uint8 `(3, height, width)`."""
        place = (self.seed, 3, index, crop)
        return _as_tensor(random_crop(picture, self.config.height_width, self.config, place))


class RankPositions(Sampler[list[int]]):
    """
    This rank's endless micro-batches of positions, starting at a step.

    The positions of a step are split first over micro-batches and then over ranks, so that the images of a step depend
    only on the batch size.
    """

    def __init__(self, split: "BatchSplit", first_step: int):
        self.split = split
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[int]]:
        size = self.split.micro_batch_size
        start = self.first_step * self.split.batch_size + self.split.rank * size
        while True:
            yield list(range(start, start + size))
            start += self.split.num_ranks * size


class StreamedImages(IterableDataset):
    """
    Endless random crops of a stream: every rank and worker reads its own part, shuffled in a buffer.

    A row that cannot be decoded is replaced by another crop of the next row that can, so that rows and crops stay in
    step and a resumed run can skip earlier rows without decoding them.

    Items are those of `TrainingImages`.

    Raises:
        `ValueError`: if the rank has more workers than files.
    """

    def __init__(self, config: DataConfig, seed: int, split: "BatchSplit", first_step: int):
        self.config = config
        self.seed = seed
        self.split = split
        self.first_batch = first_step * split.micro_batches
        source = open_source(config, "train", open_rows)
        self.image_column = source.image_column
        rows = source.stream.shuffle(seed=seed, buffer_size=config.shuffle_buffer)
        self.rows = split_dataset_by_node(rows, rank=split.rank, world_size=split.num_ranks)
        if config.num_workers > max(1, self.rows.num_shards):
            raise ValueError(
                f"`data.num_workers` is {config.num_workers}, it must be at most {self.rows.num_shards}, the files "
                f"that each of the {split.num_ranks} ranks reads."
            )

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        to_pass = self.first_batch // count * self.split.micro_batch_size
        undecodable = 0
        for slot, row in enumerate(self._endless_rows()):
            if slot < to_pass:
                continue
            try:
                picture = read_picture(fetch(row[self.image_column]))
            except (OSError, ValueError) as error:
                logger.warning(
                    "Image %d of worker %d, rank %d, skipped: %s", slot, number, self.split.rank, reason(error)
                )
                undecodable += 1
                continue
            for late in range(undecodable, -1, -1):
                place = (self.seed, 2, self.split.rank, number, slot - late)
                crop = random_crop(picture, self.config.height_width, self.config, place)
                yield {"pixel_values": _as_tensor(crop), "undecodable": int(late > 0)}
            undecodable = 0

    def _endless_rows(self) -> Iterator[dict]:
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            empty = True
            for row in self.rows:
                empty = False
                yield row
            if empty:
                raise ValueError(
                    f"`data.train` is {self.config.train}, it must have images for every rank and worker."
                )


@dataclass(frozen=True, kw_only=True)
class BatchSplit:
    """
    How a step's images are divided.

    Args:
        batch_size: images per step, over all ranks.
        micro_batch_size: images that a rank computes at once.
        rank, num_ranks: this process among all.
    """

    batch_size: int
    micro_batch_size: int
    rank: int
    num_ranks: int

    def __post_init__(self) -> None:
        at_once = self.micro_batch_size * self.num_ranks
        if at_once < 1 or self.batch_size % at_once:
            raise ValueError(
                f"`optimization.batch_size` is {self.batch_size}, it must be a multiple of the {self.num_ranks} ranks "
                f"times `micro_batch_size` ({self.micro_batch_size})."
            )

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rank and step."""
        return self.batch_size // (self.micro_batch_size * self.num_ranks)


def training_batches(
    config: DataConfig, images: TrainingImages | None, seed: int, split: BatchSplit, first_step: int, pin_memory: bool
) -> Iterator[dict]:
    """
    This rank's endless micro-batches, starting at a step: `{"pixel_values": uint8 (B, 3, H, W), "undecodable": (B,)}`,
    with `"frozen"` `(B, …)` if the outputs of the frozen part are cached.

    Args:
        images: the indexed images; None for a stream.
    """
    workers = config.num_workers
    common = {"num_workers": workers, "pin_memory": pin_memory, "worker_init_fn": _leave_ctrl_c_to_the_run}
    if images is not None:
        return iter(DataLoader(images, batch_sampler=RankPositions(split, first_step), **common))
    stream = StreamedImages(config, seed, split, first_step)
    if workers:
        # Streaming runs threads, and a forked process could inherit a lock that is never released.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        common["multiprocessing_context"] = context
    batches = iter(DataLoader(stream, batch_size=split.micro_batch_size, **common))
    # Workers take turns, starting with the first. A stream resumed at another worker's turn skips the turns before it.
    return itertools.islice(batches, stream.first_batch % max(1, workers), None)


def _leave_ctrl_c_to_the_run(_: int) -> None:
    """Ignores SIGINT, which a terminal also sends to workers: the run needs them until its checkpoint is written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def check_undecodable(undecodable: int, seen: int, allowed_share: float) -> None:
    """Raises `UndecodableImagesError` if more than the allowed share of the images seen is undecodable."""
    # A single bad image among the first few says nothing about the share.
    if undecodable > allowed_share * max(seen, _JUDGED_FROM):
        raise UndecodableImagesError(
            f"{undecodable} of {seen} training images could not be decoded, `data.max_undecodable` allows "
            f"{allowed_share:.2%}. The log names each."
        )
