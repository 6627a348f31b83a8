"""The stages by name, and reading runs from files and the command line."""

import difflib
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from ..configuration import TrainingConfig, require
from .base import BaseStage
from .distill import DistillStage
from .finetune import FinetuneStage
from .fixed import FixedStage
from .lengths import LengthsStage
from .loss_config import LOSS_CONFIGS
from .stage import Stage


STAGES: dict[str, type[Stage]] = {
    "base": BaseStage,
    "distill": DistillStage,
    "finetune": FinetuneStage,
    "fixed": FixedStage,
    "lengths": LengthsStage,
}


def load_configs(path: str | Path, overrides: list[str] = ()) -> list[TrainingConfig]:
    """
    Reads the run, or the sequence of runs, that a file describes.

    Args:
        path: a YAML file with the fields of `TrainingConfig`, and two more:
            `defaults: OTHER.yaml` names a file, relative to it, whose fields apply unless it sets them itself.
            `sequence: {NAME: {…}, …}` makes it several runs. The fields under a run's name override the file's. Unless
            they say otherwise, its stage is NAME, it writes to the folder NAME in `output_dir` and starts from what
            the previous run wrote; `-NAME` is appended to `hub_model_id`.
        overrides: `["--seed", "1", "--data.image_size=128", …]`; a dot leads into a section. In a sequence they apply
            to all runs, whatever the file has under their names; `--sequence.NAME.seed 1` overrides these for one run.
            `--output_dir` and `--hub_model_id` get each run's name appended, `--init_from` is for the first run.

    Raises:
        `ValueError`: for a misspelt field, a value of the wrong type or an impossible one; the message names it.
        `OSError`: if the file cannot be read.
    """
    values, for_all, for_one = _read(Path(path)), [], []
    for name, value in _pairs(overrides):
        section, _, rest = name.partition(".")
        if section == "sequence" and rest:
            for_one.append((*rest.partition(".")[::2], value))
        else:
            for_all.append((name, value))
            OmegaConf.update(values, name, value, merge=False)
    sequence = values.pop("sequence", None)
    is_named = isinstance(sequence, DictConfig) and bool(sequence)
    require(sequence is None or is_named, "sequence", sequence, "a section of named runs")
    names = list(sequence or ())
    for run_name, name, value in for_one:
        require(run_name in names and bool(name), f"--sequence.{run_name}.{name}", value, f"for a run of {names}")
    if sequence is None:
        return [config_from_dict(OmegaConf.to_container(values))]

    configs = []
    for name, run in sequence.items():
        require(isinstance(run, DictConfig), f"sequence.{name}", run, "a section")
        implied = {"stage": name, "output_dir": str(Path(str(values.get("output_dir", ""))) / name)}
        if values.get("hub_model_id"):
            implied["hub_model_id"] = f"{values.hub_model_id}-{name}"
        if configs:
            implied["init_from"] = str(Path(configs[-1].output_dir) / "model")
        merged = OmegaConf.merge(values, implied, run)
        for field_name, value in for_all:
            own = f"left to the runs of a sequence: `--sequence.{name}.stage`"
            require(field_name != "stage", "--stage", value, own)
            # Stages start from different kinds of models, so one cannot serve all of them.
            if field_name != "init_from" or not configs:
                OmegaConf.update(merged, field_name, implied.get(field_name, value), merge=False)
        for run_name, field_name, value in for_one:
            if run_name == name:
                OmegaConf.update(merged, field_name, value, merge=False)
        configs.append(config_from_dict(OmegaConf.to_container(merged)))
    precisions = sorted({config.optimization.mixed_precision for config in configs})
    require(len(precisions) == 1, "optimization.mixed_precision", precisions, "the same in all runs of a sequence")
    return configs


def config_from_dict(values: dict[str, Any]) -> TrainingConfig:
    """The checked configuration from nested plain values, see `load_configs`."""
    stage_name = values.get("stage")
    require(stage_name in STAGES, "stage", stage_name, f"one of {sorted(STAGES)}")
    stage = STAGES[stage_name]
    schema = OmegaConf.structured(TrainingConfig)
    schema.loss = LOSS_CONFIGS[stage_name]
    hints = {**typing.get_type_hints(TrainingConfig), "loss": LOSS_CONFIGS[stage_name]}
    values = _as_meant(hints, values)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        raise ValueError(_explained(error, values)) from error
    config.validate()
    require(
        config.data.cached_crops == 0 or stage.has_frozen_part,
        "data.cached_crops",
        config.data.cached_crops,
        f"0 in stage {stage_name}, which trains the whole model",
    )
    require(
        not config.data.buckets or stage.takes_buckets,
        "data.buckets",
        config.data.buckets,
        f"empty in stage {stage_name}",
    )
    require(not config.base_from or stage.replaces_base, "base_from", config.base_from, f"empty in stage {stage_name}")
    require(
        config.optimization.optimizer == "adamw" or bool(stage.layer_classes),
        "optimization.optimizer",
        config.optimization.optimizer,
        f"'adamw' in stage {stage_name}, which has no transformer layers",
    )
    stage.check_config(config)
    return config


def _read(path: Path) -> DictConfig:
    try:
        values = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} holds a list, it must hold fields of a training run.")
    defaults = values.pop("defaults", None)
    return values if defaults is None else OmegaConf.merge(_read(path.parent / defaults), values)


def _pairs(arguments: list[str]) -> list[tuple[str, Any]]:
    """Names and values of `--field value`, `--field=value`, and `--field` alone, which switches it on."""
    pairs, rest = [], list(arguments)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"{name!r} is not of the form `--field value`.")
        if not equals:
            text = "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        try:
            pairs.append((name[2:], OmegaConf.from_dotlist([f"value={text}"])["value"] if text else ""))
        except yaml.YAMLError as error:
            raise ValueError(f"`{name}` is {text!r}, which is no YAML: {error}") from error
    return pairs


def _as_meant(hints: dict[str, Any], values: Any, section: str = "") -> dict[str, Any]:
    """The values, with single items put into lists where needed, and YAML's bare `no`, read as false, as a name."""
    require(isinstance(values, dict), section, values, "a section")
    meant = {}
    for name, value in values.items():
        hint, full_name = hints.get(name), f"{section}.{name}".lstrip(".")
        if is_dataclass(hint):
            value = _as_meant(typing.get_type_hints(hint), {} if value is None else value, full_name)
        elif typing.get_origin(hint) is list:
            value = value if isinstance(value, list) else [value] if value != "" else []
            is_flat = not any(isinstance(item, (list, dict)) for item in value)
            require(is_flat or typing.get_args(hint) == (Any,), full_name, value, "a list, not nested")
        elif value is False and "no" in typing.get_args(hint):
            value = "no"
        meant[name] = value
    return meant


def _explained(error: OmegaConfBaseException, values: dict[str, Any]) -> str:
    """What is wrong with which field; adds the value, which OmegaConf does not name."""
    name = error.full_key
    if isinstance(error, MissingMandatoryValue):
        return f"`{name}` is missing."
    if not isinstance(error, ConfigKeyError):
        value = OmegaConf.select(OmegaConf.create(values), name)
        return f"`{name}` is {value!r}: {str(error).splitlines()[0]}."
    names = [one.name for one in fields(error.object_type)]
    near = difflib.get_close_matches(str(error.key), names, n=1)
    hint = (
        f"; did you mean `{name.removesuffix(str(error.key))}{near[0]}`?" if near else f", it must be one of {names}."
    )
    return f"`{name}` is no field{hint}"
