"""What a training run is: typed fields, read from YAML, overridden on the command line, checked before any work."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from alit_hf.data.sources import is_hub_id


@dataclass(kw_only=True)
class DataConfig:
    """
    Where images come from and what is done to them.

    Args:
        train (`list[str]`): parquet files, webdataset tars, image files (glob patterns allowed), one folder of any of
            these, or one Hub id. `package://NAME/PATH` is a path inside an installed Python package.
        validation (`list[str]`): the same for held-out images. Empty: no validation.
        split, validation_split (`str`): split of a Hub dataset.
        image_column (`str`): column of the images.
        image_size (`int`): side of the square crops in pixels.
        crop_scale (`float` in (0, 1]): random crops have a side between this share and all of the image's shorter
            side.
        flip (`bool`): mirror half of the crops.
        in_memory (`bool`): decode every image once, at the start, and keep it as 8-bit pixels whose shorter side is
            `image_size / crop_scale`.
        streaming (`bool`): read `train` as a stream instead of indexing it.
        shuffle_buffer (`int`): images that a stream is shuffled in.
        num_workers (`int`): processes that decode, for each rank.
        validation_images (`int`): the first images of `validation` that are used.
        max_undecodable (`float` in [0, 1]): share of images that may be undecodable before the run stops.
        cached_crops (`int`): crops that each image is used in, an epoch one of them, with base latents that are
            computed once, at the start, and kept on disk (`distill` and `fixed`). 0: new crops all the time.
        cache_dir (`str`): folder for these latents, which runs on the same base, images and crops can share. Empty:
            `base-latents` in `output_dir`.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    split: str = "train"
    validation_split: str = "train"
    image_column: str = "image"
    image_size: int = 256
    crop_scale: float = 0.8
    flip: bool = True
    in_memory: bool = False
    streaming: bool = False
    shuffle_buffer: int = 1000
    num_workers: int = 0
    validation_images: int = 64
    max_undecodable: float = 0.01
    cached_crops: int = 0
    cache_dir: str = ""

    def validate(self) -> None:
        require(bool(self.train), "data.train", self.train, "at least one file, folder or Hub id")
        require(self.image_size >= 16, "data.image_size", self.image_size, "at least 16")
        require(0 < self.crop_scale <= 1, "data.crop_scale", self.crop_scale, "in (0, 1]")
        require(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "at least 0")
        require(self.validation_images >= 1, "data.validation_images", self.validation_images, "at least 1")
        require(0 <= self.max_undecodable <= 1, "data.max_undecodable", self.max_undecodable, "in [0, 1]")
        require(
            not (self.streaming and self.in_memory), "data.in_memory", self.in_memory, "false where `data.streaming`"
        )
        require(self.cached_crops >= 0, "data.cached_crops", self.cached_crops, "at least 0")
        require(not (self.streaming and self.cached_crops), "data.cached_crops", self.cached_crops, "0 for a stream")


@dataclass(kw_only=True)
class OptimizationConfig:
    """
    How weights are moved.

    Args:
        batch_size (`int`): images a step, over all ranks.
        micro_batch_size (`int`): images a rank computes at once; gradients accumulate to `batch_size`. 0: all at once.
        max_steps, epochs (`int`): length of the run; exactly one is above 0.
        max_minutes (`float`): ends the run after this time, at a learning rate annealed to it. 0: no limit.
        optimizer (`"adamw"` or `"muon"`): with `"muon"` the matrices of the transformer layers are moved by Muon and
            all else by AdamW. Not where parameters are sharded.
        learning_rate, base_learning_rate (`float`): AdamW's peak; the latter is scaled by `batch_size / 256`. Exactly
            one is above 0.
        muon_learning_rate (`float`): Muon's peak; both follow one schedule.
        warmup_steps, warmup_epochs (`int`): linear warm-up, only one above 0.
        betas (`list[float]`): of AdamW.
        weight_decay (`float`): biases, norms and embeddings do not decay.
        max_grad_norm (`float`): gradients are clipped to this norm.
        ema_decay (`float` in [0, 1)): decay of the average of weights, which validation and checkpoints use. It rises
            to this value as (1 + step) / (10 + step).
        mixed_precision (`"no"` or `"bf16"`): autocast.
        channels_last (`bool`): memory layout of convolutions. Helps GPUs.
        gradient_checkpointing (`bool`): recompute activations in the backward pass (ALIT stages).
        attention (`str`): implementation of attention by transformers' names (ALIT stages). Empty: `"eager"` on CPUs,
            where it trains faster, otherwise `"sdpa"`.
        compile (`bool`): `torch.compile`.
    """

    batch_size: int = 256
    micro_batch_size: int = 0
    max_steps: int = 0
    epochs: int = 0
    max_minutes: float = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 0.0
    base_learning_rate: float = 0.0
    muon_learning_rate: float = 0.02
    warmup_steps: int = 0
    warmup_epochs: int = 0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.05
    max_grad_norm: float = 3.0
    ema_decay: float = 0.999
    mixed_precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False
    gradient_checkpointing: bool = False
    attention: str = ""
    compile: bool = False

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
    What a run shows and keeps; all intervals in steps, 0 for never.

    Args:
        log_every: losses, learning rate, images a second. A non-finite loss is found here, and before checkpoints.
        validate_every: validation on the averaged weights; also at the end.
        pictures_every: grids of originals and reconstructions.
        checkpoint_every: checkpoints; also at the end.
        keep: checkpoints that are kept.
        trackers (`list[str]`): experiment trackers by the names that Accelerate knows ("tensorboard", "wandb", …).
    """

    log_every: int = 50
    validate_every: int = 1000
    pictures_every: int = 1000
    checkpoint_every: int = 1000
    keep: int = 2
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])

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
        stage (`str`): what is trained, a name in `training.stages.STAGES`.
        output_dir (`str`): where everything that the run writes goes.
        resume (`str`): `"latest"`, or a checkpoint folder, to continue from; empty to start anew. `"latest"` starts
            anew where there is none yet.
        init_from (`str`): folder or Hub id. `distill` and `fixed`: the base tokenizer (diffusers). `finetune`: the
            ALIT model of the first stage. `base`: nothing, or a VQModel to train on.
        seed (`int`): of weights, order of images, crops and everything random.
        model (`dict`): sizes: arguments of diffusers' `VQModel` (`base`) or fields of `ALITConfig` (`distill`,
            `fixed`); what belongs to base tokenizer or image size is not repeated.
        loss: the stage's own fields, see the stage's file.
        push_to_hub (`bool`): publish model, card and logs on the Hub, at the end and every `push_every` steps.
        hub_model_id (`str`): `"ORG/NAME"`, the repository, which is made where it is missing.
        hub_private (`bool`): a repository that is made is private.
        push_every (`int`): steps between pushes of a checkpoint, a multiple of `logging.checkpoint_every`. 0: only the
            end is pushed.
    """

    stage: str
    output_dir: str
    resume: str = ""
    init_from: str = ""
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    loss: Any = None
    data: DataConfig
    optimization: OptimizationConfig
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    push_to_hub: bool = False
    hub_model_id: str = ""
    hub_private: bool = False
    push_every: int = 0

    def validate(self) -> None:
        # Steps and ranks are added to it, and NumPy takes 32 bits.
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        for section in (self.loss, self.data, self.optimization, self.logging):
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


def load_configs(path: str | Path, overrides: list[str] = ()) -> list[TrainingConfig]:
    """
    Reads the run, or the runs one after another, that a file describes.

    Args:
        path: a YAML file with the fields of `TrainingConfig`, and two more:
            `defaults: OTHER.yaml` names a file, relative to it, whose fields hold where it has none of its own.
            `sequence: {NAME: {…}, …}` makes it several runs. Each has the fields under its name over the file's; its
            stage is NAME, it writes to the folder NAME in `output_dir` and starts from what the run before it wrote,
            where it does not say otherwise; `-NAME` is appended to `hub_model_id`.
        overrides: `["--seed", "1", "--data.image_size", "128", …]`; a dot leads into a section. In a sequence they
            hold for all runs, whatever the file has under their names; `--sequence.NAME.seed 1` holds above these for
            one. `--output_dir` and `--hub_model_id` get each run's name appended, `--init_from` is for the first run.

    Raises:
        `ValueError`: for a misspelt field, a value of the wrong type or an impossible one; the message names it.
        `OSError`: where the file cannot be read.
    """
    values = _read_yaml(Path(path))
    pairs = _pairs(overrides)
    for_all = [(name, value) for name, value in pairs if not name.startswith("sequence.")]
    for name, value in for_all:
        _set(values, name, value)
    if isinstance(values.get("sequence"), dict):
        values["sequence"] = _giving_way(values["sequence"], dict(for_all))
    for name, value in pairs:
        if name.startswith("sequence."):
            _set(values, name, value)
    sequence = values.pop("sequence", None)
    if sequence is None:
        return [config_from_dict(values)]
    require(isinstance(sequence, dict) and bool(sequence), "sequence", sequence, "a section of named runs")
    configs = []
    for name, run in sequence.items():
        require(isinstance(run, dict), f"sequence.{name}", run, "a section")
        folder = Path(str(values.get("output_dir", "")))
        implied = {"stage": name, "output_dir": str(folder / name)}
        if values.get("hub_model_id"):
            implied["hub_model_id"] = f"{values['hub_model_id']}-{name}"
        if configs:
            implied["init_from"] = str(Path(configs[-1].output_dir) / "model")
        configs.append(config_from_dict(_merged(_merged(values, implied), run)))
    precisions = sorted({config.optimization.mixed_precision for config in configs})
    require(len(precisions) == 1, "optimization.mixed_precision", precisions, "the same in all runs of a sequence")
    return configs


def config_from_dict(values: dict[str, Any]) -> TrainingConfig:
    """The checked configuration of nested plain values, see `load_configs`."""
    # Here, as the stages import this file's helpers for their own fields.
    from .stages import STAGES

    values = dict(values)
    stage = values.get("stage")
    if stage not in STAGES:
        raise ValueError(f"`stage` is {stage!r}, it must be one of {sorted(STAGES)}.")
    loss = _build(STAGES[stage].loss_config, values.pop("loss", None) or {}, "loss.")
    config = _build(TrainingConfig, values, "")
    config.loss = loss
    config.validate()
    require(
        config.data.cached_crops == 0 or STAGES[stage].takes_base_latents,
        "data.cached_crops",
        config.data.cached_crops,
        f"0 in stage {stage}, which trains the base",
    )
    require(
        config.optimization.optimizer == "adamw" or bool(STAGES[stage].layer_classes),
        "optimization.optimizer",
        config.optimization.optimizer,
        f"'adamw' in stage {stage}, which has no transformer layers",
    )
    STAGES[stage].check_config(config)
    return config


def config_to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Plain nested values that `config_from_dict` takes."""
    return dataclasses.asdict(config)


def _read_yaml(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, it must hold fields of a training run.")
    defaults = values.pop("defaults", None)
    return values if defaults is None else _merged(_read_yaml(path.parent / defaults), values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _pairs(arguments: list[str]) -> list[tuple[str, Any]]:
    pairs, rest = [], list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--"):
            raise ValueError(f"{name!r} is not of the form `--field value`.")
        name, equals, text = name[2:].partition("=")
        if not equals:
            # A name alone switches a field on.
            text = "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        pairs.append((name, yaml.safe_load(text) if text else ""))
    return pairs


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"`--{name}`: {section} is no section.")
    values[last] = value


def _giving_way(sequence: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The runs of a sequence without what the command line sets for all of them."""
    first = next(iter(sequence), "NAME")
    if "stage" in overrides:
        raise ValueError(
            f"`--stage` is {overrides['stage']!r}, but runs of a sequence have their own: `--sequence.{first}.stage`."
        )
    runs = {}
    for name, run in sequence.items():
        for field_name in overrides:
            # Stages start from different kinds of models: one for all of them there cannot be.
            if field_name != "init_from" or name == first:
                run = _without(run, field_name)
        runs[name] = run
    return runs


def _without(values: Any, name: str) -> Any:
    section, _, rest = name.partition(".")
    if not isinstance(values, dict) or section not in values:
        return values
    below = {section: _without(values[section], rest)} if rest else {}
    return {key: value for key, value in values.items() if key != section} | below


def _build(kind: type, values: Any, prefix: str) -> Any:
    """The dataclass `kind` from plain values, each checked against its field's type."""
    if not isinstance(values, dict):
        raise ValueError(f"`{prefix[:-1]}` is {values!r}, it must be a section with the fields of {kind.__name__}.")
    hints = typing.get_type_hints(kind)
    names = [one.name for one in fields(kind)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean `{prefix}{near[0]}`?" if near else f", it must be one of {names}."
            raise ValueError(f"`{prefix}{name}` is no field{hint}")
    arguments = {name: _checked(hints[name], value, f"{prefix}{name}") for name, value in values.items()}
    for one in fields(kind):
        if one.name in arguments:
            continue
        if dataclasses.is_dataclass(hints[one.name]):
            arguments[one.name] = _build(hints[one.name], {}, f"{prefix}{one.name}.")
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise ValueError(f"`{prefix}{one.name}` is missing.")
    return kind(**arguments)


def _checked(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name + ".")
    if hint is Any:
        return value
    if origin is Literal:
        # YAML reads a bare `no` as false.
        value = "no" if value is False and "no" in arguments else value
        require(value in arguments, name, value, f"one of {list(arguments)}")
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _checked(arguments[0], value, name)
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_checked(arguments[0], item, name) for item in items if item != ""]
    if origin is dict:
        require(isinstance(value, dict), name, value, "a section")
        return value
    if hint is float:
        # YAML reads 1e-4 as text.
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        require(number is not None and abs(number) < float("inf"), name, value, "a finite number")
        return number
    require(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), name, value, hint.__name__)
    return value


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raises a `ValueError` that names the field, its value and what it may be, unless `condition`."""
    if not condition:
        raise ValueError(f"`{name}` is {value!r}, it must be {allowed}.")
