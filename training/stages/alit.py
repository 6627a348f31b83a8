"""Shared parts of the stages that train an `ALITModel`."""

import dataclasses
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, VQModel
from torch import nn

from alit_hf import ALITConfig, ALITImageProcessor, ALITModel

from ..configuration import TrainingConfig, require
from .adversary import Adversary
from .codebook_care import CodebookCare
from .loss_config import ALITLossConfig, LengthsLossConfig
from .stage import Replaced, Stage


_GIVEN_ELSEWHERE = {"image_size": "data.image_size", "base_tokenizer_config": "init_from", "patch_size": "init_from"}
_BASE_CLASSES = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}


class _PipelineIndex(ConfigMixin):
    """What a diffusers pipeline says of its components."""

    config_name = "model_index.json"


class ALITStage(Stage):
    """
    A stage on an `ALITModel`: care of its latent codebook, pictures at every length, saving.

    Args:
        model: what is trained.
        loss: the stage's own fields.
        adversary: see `Stage`.
        quantize_from: first step that quantises.
    """

    layer_classes = ("ALITLayer",)

    def __init__(
        self,
        model: ALITModel,
        loss: ALITLossConfig | LengthsLossConfig,
        adversary: Adversary | None = None,
        quantize_from: int = 0,
    ):
        super().__init__(model, adversary)
        self.loss = loss
        self.codebook_care = None
        if model.quantizer is not None and model.quantizer.codebook.weight.requires_grad:
            self.codebook_care = CodebookCare(
                lambda: model.quantizer.codebook.weight,
                model.config.codebook_size,
                cosine=True,
                revive_every=loss.revive_every,
                start=quantize_from,
            )
            self._latents: list[torch.Tensor] = []
            model.latent_projection.register_forward_hook(self._remember_latents)

    def _remember_latents(self, _module, _arguments, latents: torch.Tensor) -> None:
        if self.training:
            self._latents.append(latents)

    def observe(self, ids: list[torch.Tensor | None]) -> None:
        """Passes the ids of the rollouts just computed by the forward pass to the codebook's care."""
        if self.codebook_care is not None:
            latents = torch.cat([one.detach().float().flatten(0, 1) for one in self._latents])
            self.codebook_care.observe(latents, torch.cat([one.flatten() for one in ids]), self.step)
            self._latents.clear()

    def end_step(self) -> list[Replaced]:
        return [] if self.codebook_care is None else self.codebook_care.end_step(self.step)

    def gather_counts(self) -> None:
        if self.codebook_care is not None:
            self.codebook_care.gather_counts()

    def leave_counts_to_first_rank(self) -> None:
        if self.codebook_care is not None:
            self.codebook_care.leave_counts_to_first_rank()

    def summary(self) -> dict[str, torch.Tensor]:
        return {} if self.codebook_care is None else self.codebook_care.summary()

    def pictures(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        base = self.model.base_tokenizer
        latents = base.encode(pixel_values)
        if self.model.config.base_type == "vqgan":
            codes = torch.nn.functional.embedding(base.codes(latents), base.codebook)
            latents = codes.transpose(1, 2).unflatten(2, latents.shape[-2:])
        columns = {"base": base.decode(latents)}
        for rollout in self.model.rollouts(pixel_values):
            columns[f"{rollout.num_tokens}"] = rollout.reconstruction
        return columns

    def save_pretrained(self, folder: str, weights: dict[str, torch.Tensor]) -> None:
        self.model.save_pretrained(folder, state_dict=weights)
        ALITImageProcessor.for_config(self.model.config).save_pretrained(folder)

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder]


def attention(config: TrainingConfig) -> str:
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
    base, subfolder = _base_config(config.init_from)
    name = base.get("_class_name")
    require(name in _BASE_CLASSES, "init_from", config.init_from, f"one of {sorted(_BASE_CLASSES)}, it is {name}")
    # diffusers' own autoencoders and pipelines take pixels in [-1, 1], the stage `base` trains on [0, 1].
    is_foreign = name == "AutoencoderKL" or subfolder is not None
    pixel_range = base.get("_pixel_range", [-1, 1] if is_foreign else [0, 1])
    fields = {key: base[key] for key in base if not key.startswith("_")}
    if pixel_range != [0, 1]:
        fields["_pixel_range"] = pixel_range
    return ALITConfig(
        **config.model,
        image_size=config.data.image_size,
        patch_size=2 ** (len(base["block_out_channels"]) - 1),
        base_tokenizer_config={"_class_name": name, **fields},
    )


def _base_config(init_from: str) -> tuple[dict[str, Any], str | None]:
    """The base tokenizer's configuration, and its subfolder if `init_from` is a pipeline, such as Stable Diffusion."""
    expected = (
        f"`init_from` is {init_from!r}, it must be the folder or Hub id of a base tokenizer in diffusers' format "
        f"({' or '.join(_BASE_CLASSES)}) or of a pipeline with one"
    )
    try:
        return VQModel.load_config(init_from), None
    except OSError as error:
        without_config = error
    try:
        index = _PipelineIndex.load_config(init_from)
    except OSError:
        raise ValueError(f"{expected}: {without_config}") from without_config
    components = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    subfolders = [name for name, class_name in components.items() if class_name in _BASE_CLASSES]
    if len(subfolders) != 1:
        raise ValueError(f"{expected}: the pipeline has {components}")
    try:
        return VQModel.load_config(init_from, subfolder=subfolders[0]), subfolders[0]
    except OSError as error:
        raise ValueError(f"{expected}: {error}") from error


def new_model(config: TrainingConfig) -> ALITModel:
    """An untrained `ALITModel` on the pretrained base tokenizer that `init_from` names."""
    model = ALITModel(model_config(config))
    model.set_attn_implementation(attention(config))
    base_class = _BASE_CLASSES[model.config.base_tokenizer_config["_class_name"]]
    _, subfolder = _base_config(config.init_from)
    try:
        base = base_class.from_pretrained(config.init_from, subfolder=subfolder)
    except OSError as error:
        raise ValueError(f"`init_from` is {config.init_from!r}, its weights cannot be read: {error}") from error
    model.base_tokenizer.model.load_state_dict(base.state_dict())
    if config.optimization.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def finished_model(config: TrainingConfig) -> ALITModel:
    """
    The `ALITModel` that `init_from` names.

    Raises:
        `ValueError`: if there is none, or it has another size.
    """
    try:
        model = ALITModel.from_pretrained(config.init_from, attn_implementation=attention(config))
    except OSError as error:
        raise ValueError(f"`init_from` is {config.init_from!r}, it must be an ALIT model: {error}") from error
    size = config.data.image_size
    expected = model.config.image_height_width
    require((size, size) == expected, "data.image_size", size, f"the model's, {expected}")
    if config.optimization.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model
