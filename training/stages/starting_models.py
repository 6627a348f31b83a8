"""The models that stages on an `ALITModel` start from: a new one on a base tokenizer, or a finished one."""

import copy
import dataclasses
import logging
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, VQModel

from alit_hf import ALITConfig, ALITModel
from alit_hf.model.base_tokenizer import ALITBaseTokenizer

from ..configuration import TrainingConfig, require, size_name


logger = logging.getLogger(__name__)

_GIVEN_ELSEWHERE = {"image_size": "data.image_size", "base_tokenizer_config": "init_from", "patch_size": "init_from"}
_BASE_CLASSES = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}


class _PipelineIndex(ConfigMixin):
    """What a diffusers pipeline says of its components."""

    config_name = "model_index.json"


def _attention(config: TrainingConfig) -> str:
    """The attention implementation of the run, by transformers' names."""
    return config.optimization.attention or ("sdpa" if torch.accelerator.is_available() else "eager")


def check_model_fields(model: dict[str, Any]) -> None:
    """Raises `ValueError` if the section `model` has fields that `ALITConfig` does not take from there."""
    known = sorted(
        one.name
        for one in dataclasses.fields(ALITConfig)
        if one.name in ALITConfig.__annotations__ and one.name not in _GIVEN_ELSEWHERE
    )
    for name in model:
        if name in _GIVEN_ELSEWHERE:
            raise ValueError(f"`model.{name}` is set, but it follows from `{_GIVEN_ELSEWHERE[name]}`.")
        require(name in known, "model", name, f"fields of ALITConfig, {known}")


def model_config(config: TrainingConfig) -> ALITConfig:
    """
    The configuration of a new `ALITModel` on the base tokenizer that `init_from` names; reads no weights.

    Raises:
        `ValueError`: if `init_from` is not a base tokenizer, or the fields do not fit it or each other.
    """
    base = _base_config("init_from", config.init_from)
    return ALITConfig(
        **config.model,
        image_size=config.data.image_size,
        patch_size=_patch_size(base),
        base_tokenizer_config=base,
    )


def _base_config(field: str, source: str, pixel_range: list[float] | None = None) -> dict[str, Any]:
    """
    The `base_tokenizer_config` of the base tokenizer that a field names; reads no weights.

    Args:
        pixel_range: lowest and highest pixel value that the base takes, unless its own configuration says it. Defaults
            to what its kind is trained on.
    """
    base, subfolder = _find_base(field, source)
    name = base.get("_class_name")
    require(name in _BASE_CLASSES, field, source, f"one of {sorted(_BASE_CLASSES)}, it is {name}")
    if pixel_range is None:
        # diffusers' own autoencoders and pipelines take pixels in [-1, 1], the stage `base` trains on [0, 1].
        is_foreign = name == "AutoencoderKL" or subfolder is not None
        pixel_range = [-1, 1] if is_foreign else [0, 1]
    pixel_range = base.get("_pixel_range", pixel_range)
    fields = {key: base[key] for key in base if not key.startswith("_")}
    if pixel_range != [0, 1]:
        fields["_pixel_range"] = pixel_range
    return {"_class_name": name, **fields}


def _patch_size(base: dict[str, Any]) -> int:
    """Pixels per position and side of a base tokenizer's grid."""
    return 2 ** (len(base["block_out_channels"]) - 1)


def _find_base(field: str, source: str) -> tuple[dict[str, Any], str | None]:
    """The base tokenizer's configuration, and its subfolder if `source` is a pipeline, such as Stable Diffusion."""
    expected = (
        f"`{field}` is {source!r}, it must be the folder or Hub id of a base tokenizer in diffusers' format "
        f"({' or '.join(_BASE_CLASSES)}) or of a pipeline with one"
    )
    try:
        return VQModel.load_config(source), None
    except OSError as error:
        without_config = error
    try:
        index = _PipelineIndex.load_config(source)
    except OSError:
        raise ValueError(f"{expected}: {without_config}") from without_config
    components = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    subfolders = [name for name, class_name in components.items() if class_name in _BASE_CLASSES]
    if len(subfolders) != 1:
        raise ValueError(f"{expected}: the pipeline has {components}")
    try:
        return VQModel.load_config(source, subfolder=subfolders[0]), subfolders[0]
    except OSError as error:
        raise ValueError(f"{expected}: {error}") from error


def new_model(config: TrainingConfig) -> ALITModel:
    """An untrained `ALITModel` on the pretrained base tokenizer that `init_from` names."""
    model = ALITModel(model_config(config))
    model.set_attn_implementation(_attention(config))
    _load_base(model, "init_from", config.init_from)
    if config.optimization.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _load_base(model: ALITModel, field: str, source: str) -> None:
    base_class = _BASE_CLASSES[model.config.base_tokenizer_config["_class_name"]]
    _, subfolder = _find_base(field, source)
    try:
        base = base_class.from_pretrained(source, subfolder=subfolder)
    except OSError as error:
        raise ValueError(f"`{field}` is {source!r}, its weights cannot be read: {error}") from error
    model.base_tokenizer.model.load_state_dict(base.state_dict())


def finished_config(config: TrainingConfig) -> ALITConfig:
    """
    The configuration of the `ALITModel` that `init_from` names, with the base tokenizer of `base_from` and at the
    run's image size; reads no weights.

    Raises:
        `ValueError`: if there is no such model or base, they do not fit each other, or not all sizes fit them.
    """
    try:
        fields, _ = ALITConfig.get_config_dict(config.init_from)
    except OSError as error:
        raise ValueError(f"`init_from` is {config.init_from!r}, it must be an ALIT model: {error}") from error
    kind = fields.get("model_type")
    require(kind == ALITConfig.model_type, "init_from", config.init_from, f"an ALIT model, its type is {kind}")
    model = ALITConfig.from_dict(fields)
    if config.base_from:
        # One that was taken out of the model does not say its range.
        own_range = model.base_tokenizer_config.get("_pixel_range", [0, 1])
        base = _base_config("base_from", config.base_from, own_range)
        replaced = copy.deepcopy(model)
        replaced.base_tokenizer_config = base
        for what, its, needed in (
            ("type", replaced.base_type, model.base_type),
            ("downsampling factor", _patch_size(base), model.patch_size),
            ("number of latent channels", replaced.base_embed_dim, model.base_embed_dim),
            ("number of codes", replaced.base_output_dim, model.base_output_dim),
        ):
            require(
                its == needed,
                "base_from",
                config.base_from,
                f"a base tokenizer with the {what} of the one that it replaces, {needed}, it has {its}",
            )
        model = replaced
    for field, size in (("image_size", config.data.image_size), *(("buckets", size) for size in config.data.buckets)):
        model.image_size = size
        try:
            model.validate()
        except ValueError as error:
            raise ValueError(f"`data.{field}` has the size {size}: {error}") from error
    model.image_size = config.data.image_size
    return model


def finished_model(config: TrainingConfig) -> ALITModel:
    """
    The `ALITModel` that `init_from` names, with the base tokenizer of `base_from`, if that is given, and with position
    tables interpolated to the run's image size.

    Raises:
        `ValueError`: as `finished_config`.
    """
    wanted = finished_config(config)
    model = ALITModel.from_pretrained(config.init_from, attn_implementation=_attention(config))
    if config.base_from:
        model.config.base_tokenizer_config = wanted.base_tokenizer_config
        model.base_tokenizer = ALITBaseTokenizer(model.config)
        _load_base(model, "base_from", config.base_from)
        logger.info("The base tokenizer is that of %s", config.base_from)
    before = model.config.image_height_width
    if wanted.image_height_width != before:
        logger.info(
            "Position tables interpolated from %s to %s pixels", size_name(before), size_name(config.data.height_width)
        )
    model.set_image_size(wanted.image_size)
    if config.optimization.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model
