"""The configuration of a training run: its fields and their allowed values."""

import dataclasses
import inspect
import json
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from alit_hf.data.sources import is_hub_id


def changeable(**default: Any) -> Any:
    """
    A field that a resumed run may change, and then uses from its next step on. All other fields stay what the run was
    started with: what they determine is already in its weights, averages, optimisers or order of images.

    Args:
        default: `default` or `default_factory`, as for `dataclasses.field`.
    """
    return field(**default, metadata={_CHANGEABLE: True})


_CHANGEABLE = "changeable"

PICTURES_FOLDER = "pictures"
"""Folder inside the run's with the grids of `logging.pictures_every`."""


@dataclass(kw_only=True)
class DataConfig:
    """
    Where images come from and how they are prepared.

    Args:
        train (`list[str]`): parquet files, webdataset tars, image files (glob patterns allowed), one folder of any of
            these, or one Hub id. `package://NAME/PATH` is a path inside an installed Python package.
        validation (`list[str]`): the same for held-out images. Empty: no validation.
        split, validation_split (`str`): split of a Hub dataset.
        config_name, validation_config_name (`str`): configuration of a Hub dataset. Empty: the only one.
        image_column (`str`): name of the image column.
        image_size (`int` or `[height, width]`): size of the crops in pixels, and of the saved model; one number for
            squares. A model that `init_from` names is brought to it at the start (`finetune` and `lengths`).
        buckets (list of sizes, each like `image_size`): every size to train on, `image_size` among them (`finetune`).
            An image goes to the size whose aspect ratio is nearest to its own, and each step has images of one size.
            Empty: `image_size` alone.
        crop_scale (`float` in (0, 1]): random crops are, on each side, between this share and all of the largest part
            of the image that has their aspect ratio.
        flip (`bool`): mirror half of the crops.
        in_memory (`bool`): decode every image once, at the start, and keep it as 8-bit pixels, reduced as far as no
            crop has to be enlarged for it.
        streaming (`bool`): read `train` as a stream instead of indexing it.
        shuffle_buffer (`int`): images that a stream is shuffled in.
        num_workers (`int`): decoding processes per rank.
        validation_images (`int`): number of images to use, the first ones of `validation`.
        max_undecodable (`float` in [0, 1]): share of images that may be undecodable; the run stops at more.
        cached_crops (`int`): fixed crops per image, one used in each epoch, for which the frozen part of the model
            is computed once, at the start, and kept on disk (`distill`, `fixed` and `lengths`). 0: new crops all the
            time.
        cache_dir (`str`): folder for these outputs, which runs with the same frozen weights, images and crops can
            share. Empty: `frozen-outputs` in `output_dir`.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = changeable(default_factory=list)
    split: str = "train"
    validation_split: str = changeable(default="train")
    config_name: str = ""
    validation_config_name: str = changeable(default="")
    image_column: str = "image"
    image_size: Any = 256
    buckets: list[Any] = field(default_factory=list)
    crop_scale: float = 0.8
    flip: bool = True
    in_memory: bool = False
    streaming: bool = False
    shuffle_buffer: int = 1000
    num_workers: int = changeable(default=0)
    validation_images: int = changeable(default=64)
    max_undecodable: float = changeable(default=0.01)
    cached_crops: int = 0
    cache_dir: str = changeable(default="")

    @property
    def height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        return parse_size("data.image_size", self.image_size)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """All sizes of crops as (height, width), that of the saved model first."""
        others = (parse_size("data.buckets", size) for size in self.buckets)
        return list(dict.fromkeys([self.height_width, *others]))

    def validation_prefix(self, size: tuple[int, int]) -> str:
        """What the names of scores at one of the `sizes` begin with: `"validation/"` at that of the saved model."""
        return "validation/" if size == self.height_width else f"validation-{size_name(size)}/"

    def validate(self) -> None:
        require(bool(self.train), "data.train", self.train, "at least one file, folder or Hub id")
        parse_size("data.image_size", self.image_size)
        sizes = [parse_size("data.buckets", size) for size in self.buckets]
        require(len(set(sizes)) == len(sizes), "data.buckets", self.buckets, "sizes that differ")
        require(
            not sizes or self.height_width in sizes,
            "data.buckets",
            self.buckets,
            f"a list with `data.image_size`, {self.height_width}, in it",
        )
        require(not (self.streaming and sizes), "data.buckets", self.buckets, "empty for a stream")
        require(0 < self.crop_scale <= 1, "data.crop_scale", self.crop_scale, "in (0, 1]")
        require(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "at least 0")
        require(self.validation_images >= 1, "data.validation_images", self.validation_images, "at least 1")
        require(0 <= self.max_undecodable <= 1, "data.max_undecodable", self.max_undecodable, "in [0, 1]")
        require(not (self.streaming and self.in_memory), "data.in_memory", self.in_memory, "false if `data.streaming`")
        require(self.cached_crops >= 0, "data.cached_crops", self.cached_crops, "at least 0")
        require(not (self.streaming and self.cached_crops), "data.cached_crops", self.cached_crops, "0 for a stream")


@dataclass(kw_only=True)
class OptimizationConfig:
    """
    How weights are optimised.

    Args:
        batch_size (`int`): images per step, over all ranks.
        micro_batch_size (`int`): images that a rank computes at once; gradients accumulate to `batch_size`. 0: all at
            once.
        max_steps, epochs (`int`): length of the run; exactly one of the two is above 0.
        max_minutes (`float`): ends the run after this time, with the learning rate annealed accordingly. 0: no limit.
        optimizer (`"adamw"` or `"muon"`): with `"muon"`, Muon optimises the matrices of the transformer layers and
            AdamW everything else. Not with sharded parameters.
        learning_rate (`float`): AdamW's peak. Either this or `base_learning_rate` is above 0.
        base_learning_rate (`float`): the peak for 256 images per step, scaled by `batch_size / 256`.
        muon_learning_rate (`float`): Muon's peak; both follow the same schedule.
        warmup_steps, warmup_epochs (`int`): linear warm-up; at most one of the two is above 0.
        betas (`list[float]`): AdamW's, two in [0, 1).
        weight_decay (`float`): of everything except biases, norms and embeddings.
        max_grad_norm (`float`): gradients are clipped to this norm.
        ema_decay (`float` in [0, 1)): decay of the averaged weights, which validation and checkpoints use. It rises to
            this value as (1 + step) / (10 + step).
        mixed_precision (`"no"` or `"bf16"`): autocast.
        channels_last (`bool`): memory layout of convolutions; faster on GPUs.
        gradient_checkpointing (`bool`): recompute activations in the backward pass (ALIT stages).
        attention (`str`): attention implementation, by transformers' names (ALIT stages). Empty: `"eager"` on CPUs,
            where it trains faster, otherwise `"sdpa"`.
        compile (`bool`): `torch.compile`.
    """

    batch_size: int = 256
    micro_batch_size: int = changeable(default=0)
    max_steps: int = changeable(default=0)
    epochs: int = changeable(default=0)
    max_minutes: float = changeable(default=0.0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = changeable(default=0.0)
    base_learning_rate: float = changeable(default=0.0)
    muon_learning_rate: float = changeable(default=0.02)
    warmup_steps: int = changeable(default=0)
    warmup_epochs: int = changeable(default=0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = changeable(default=0.05)
    max_grad_norm: float = changeable(default=3.0)
    ema_decay: float = 0.999
    mixed_precision: Literal["no", "bf16"] = changeable(default="no")
    channels_last: bool = changeable(default=False)
    gradient_checkpointing: bool = changeable(default=False)
    attention: str = changeable(default="")
    compile: bool = changeable(default=False)

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.learning_rate or self.base_learning_rate * self.batch_size / 256

    def validate(self) -> None:
        name = "optimization."
        require(self.batch_size >= 1, name + "batch_size", self.batch_size, "at least 1")
        require(self.micro_batch_size >= 0, name + "micro_batch_size", self.micro_batch_size, "at least 0")
        for one, other in (("max_steps", "epochs"), ("learning_rate", "base_learning_rate")):
            values = getattr(self, one), getattr(self, other)
            require(
                min(values) == 0 < max(values),
                name + one,
                values[0],
                f"above 0, or {other} instead (it is {values[1]})",
            )
        require(min(self.warmup_steps, self.warmup_epochs) == 0, name + "warmup_steps", self.warmup_steps, "0")
        require(max(self.warmup_steps, self.warmup_epochs) >= 0, name + "warmup_steps", self.warmup_steps, "0 or more")
        for length, warmup in (("max_steps", "warmup_steps"), ("epochs", "warmup_epochs")):
            most, value = getattr(self, length), getattr(self, warmup)
            require(most == 0 or value < most, name + warmup, value, f"below {length}, which is {most}")
        require(self.max_minutes >= 0, name + "max_minutes", self.max_minutes, "at least 0")
        require(self.muon_learning_rate > 0, name + "muon_learning_rate", self.muon_learning_rate, "above 0")
        betas = self.betas
        require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), name + "betas", betas, "two in [0, 1)")
        require(self.weight_decay >= 0, name + "weight_decay", self.weight_decay, "at least 0")
        require(self.max_grad_norm > 0, name + "max_grad_norm", self.max_grad_norm, "above 0")
        require(0 <= self.ema_decay < 1, name + "ema_decay", self.ema_decay, "in [0, 1)")


@dataclass(kw_only=True)
class LoggingConfig:
    """
    What a run shows and keeps. All intervals are in steps; 0 means never (except `log_every`).

    Args:
        log_every (`int`): losses, learning rate, images per second. A non-finite loss is detected here, and before
            checkpoints.
        validate_every (`int`): validation on the averaged weights; also at the end.
        pictures_every (`int`): grids of originals and reconstructions.
        checkpoint_every (`int`): checkpoints; also at the end.
        keep (`int`): number of checkpoints to keep.
        trackers (`list[str]`): experiment trackers by Accelerate's names ("tensorboard", "wandb", …).
    """

    log_every: int = changeable(default=50)
    validate_every: int = changeable(default=1000)
    pictures_every: int = changeable(default=1000)
    checkpoint_every: int = changeable(default=1000)
    keep: int = changeable(default=2)
    trackers: list[str] = changeable(default_factory=lambda: ["tensorboard"])

    def validate(self) -> None:
        require(self.log_every >= 1, "logging.log_every", self.log_every, "at least 1")
        for name in ("validate_every", "pictures_every", "checkpoint_every"):
            require(getattr(self, name) >= 0, f"logging.{name}", getattr(self, name), "at least 0")
        require(self.keep >= 1, "logging.keep", self.keep, "at least 1")


@dataclass(kw_only=True)
class TrainingConfig:
    """
    A training run.

    Args:
        stage (`str`): what is trained: `"base"`, `"distill"`, `"finetune"`, `"fixed"` or `"lengths"`.
        output_dir (`str`): folder for everything that the run writes.
        resume (`str`): `"latest"`, or a checkpoint folder, to continue from; empty to start from scratch. `"latest"`
            starts from scratch if there is none yet.
        init_from (`str`): folder or Hub id. `distill` and `fixed`: the base tokenizer, a `VQModel` or `AutoencoderKL`
            in diffusers' format or a pipeline with one. `finetune`: the ALIT model of the first stage, or any other,
            also of another image size. `lengths`: a finished ALIT model. `base`: empty, or a VQModel to continue
            training.
        base_from (`str`): folder or Hub id of a base tokenizer that replaces the one in `init_from` (`finetune`), such
            as the same one trained on at the new image size. Empty: the base is kept.
        seed (`int`): of weights, order of images, crops and everything random.
        model (`dict`): sizes: arguments of diffusers' `VQModel` (`base`) or fields of `ALITConfig` (`distill`,
            `fixed`); what follows from the base tokenizer or image size is not given here.
        loss: the stage's own fields, see `training/stages/loss_config.py`.
        data, optimization, logging: see `DataConfig`, `OptimizationConfig` and `LoggingConfig`.
        push_to_hub (`bool`): publish model, card and scalar logs on the Hub, at the end and every `push_every` steps.
        hub_model_id (`str`): `"ORG/NAME"`, the repository, created if it is missing.
        hub_private (`bool`): a repository that is created is private. One that exists stays as it is.
        hub_pictures (`bool`): also publish the grids in `pictures`, which show images of `data.validation`.
        push_every (`int`): steps between pushes of a checkpoint, a multiple of `logging.checkpoint_every`. 0: push
            only at the end.
    """

    stage: str
    output_dir: str = changeable()
    resume: str = ""
    init_from: str = ""
    base_from: str = ""
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    loss: Any = None
    data: DataConfig = field(default_factory=DataConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    push_to_hub: bool = changeable(default=False)
    hub_model_id: str = changeable(default="")
    hub_private: bool = changeable(default=True)
    hub_pictures: bool = changeable(default=False)
    push_every: int = changeable(default=0)

    def validate(self) -> None:
        # Steps and ranks are added to it, and NumPy takes 32 bits.
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        for name in ("loss", "data", "optimization", "logging"):
            section = getattr(self, name)
            for field_name, value in vars(section).items():
                is_finite = not isinstance(value, float) or math.isfinite(value)
                require(is_finite, f"{name}.{field_name}", value, "a finite number")
            section.validate()
        if self.push_to_hub:
            require(is_hub_id(self.hub_model_id), "hub_model_id", self.hub_model_id, "ORG/NAME of a Hub repository")
        every, pushes = self.logging.checkpoint_every, self.push_every
        require(
            pushes == 0 or (0 < every <= pushes and pushes % every == 0),
            "push_every",
            pushes,
            f"0 or a multiple of logging.checkpoint_every, which is {every}",
        )
        if self.data.streaming:
            for name in ("epochs", "warmup_epochs"):
                value = getattr(self.optimization, name)
                require(value == 0, f"optimization.{name}", value, "0, as a stream's length is unknown: give steps")


class FieldDescription(NamedTuple):
    """
    What is to be known of a field.

    Args:
        name: as on the command line.
        values: its type or values, in the words of the docstring.
        meaning: from the docstring.
        default: as JSON; `None` for a field that must be given.
        may_change: whether a resumed run may change it.
    """

    name: str
    values: str
    meaning: str
    default: str | None
    may_change: bool


def described_fields(kind: type, prefix: str = "") -> Iterator[FieldDescription]:
    """
    The fields of a dataclass that have values, so no sections.

    Args:
        prefix: prepended to each name, such as `"data."`.
    """
    meanings = {}
    for one in reversed(kind.__mro__[:-1]):
        _, _, described = inspect.cleandoc(one.__doc__).partition("Args:\n")
        for names, values, meaning in re.findall(r"^ {4}([\w, ]+) \((.*?)\): ((?:.|\n {8})*)", described, re.M):
            meanings |= dict.fromkeys(names.split(", "), (values.replace("`", ""), " ".join(meaning.split())))
    for one in dataclasses.fields(kind):
        if one.name in meanings:  # sections have no values to describe
            default = _default(one)
            shown = None if default is dataclasses.MISSING else json.dumps(default)
            may_change = one.metadata.get(_CHANGEABLE, False)
            yield FieldDescription(prefix + one.name, *meanings[one.name], shown, may_change)


def describe_fields(kind: type, prefix: str = "") -> str:
    """`described_fields` as text for the command line's help."""
    lines = []
    for one in described_fields(kind, prefix):
        meaning = one.meaning + (" Needed." if one.default is None else f" Default: {one.default}.")
        meaning += " May change on resuming." if one.may_change else ""
        lines.append(f"  --{one.name} ({one.values})")
        lines += textwrap.wrap(meaning, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


class Change(NamedTuple):
    """A field whose value differs from an earlier one, and whether it may."""

    name: str
    before: Any
    now: Any
    is_allowed: bool


def changes(before: dict[str, Any], config: Any, section: str = "") -> Iterator[Change]:
    """
    The fields whose values a resumed run changes.

    Args:
        before: what `config_to_dict` gave when the run was started; a field that is missing had its default.
        config: the configuration now, or a section of it.
        section: that section's name and a dot.
    """
    for one in dataclasses.fields(config):
        name, now = section + one.name, getattr(config, one.name)
        old = before.get(one.name, _default(one))
        is_allowed = one.metadata.get(_CHANGEABLE, False)
        if dataclasses.is_dataclass(now):
            yield from changes(before.get(one.name, {}), now, f"{name}.")
        elif isinstance(now, dict):
            for key in sorted(now.keys() | old.keys()):
                if old.get(key) != now.get(key):
                    yield Change(f"{name}.{key}", old.get(key), now.get(key), is_allowed)
        elif old != now:
            yield Change(name, old, now, is_allowed)


def _default(one: dataclasses.Field) -> Any:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def config_to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Plain nested values, as for YAML."""
    return dataclasses.asdict(config)


def parse_size(name: str, size: Any) -> tuple[int, int]:
    """
    The image size that a field gives, in pixels as (height, width).

    Raises:
        `ValueError`: with the field's name, if it is neither one number nor `[height, width]`, each at least 16.
    """
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    is_size = len(sides) == 2 and all(type(side) is int and side >= 16 for side in sides)
    require(is_size, name, size, "one number of pixels or [height, width], each at least 16")
    return sides[0], sides[1]


def size_name(size: tuple[int, int]) -> str:
    """What to call a size of (height, width): `"192x256"`."""
    return "{}x{}".format(*size)


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raises a `ValueError` that names the field, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{name}` is {value!r}, it must be {allowed}.")
