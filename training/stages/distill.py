"""Stage `distill`: the paper's first stage. The base is frozen; every rollout is to predict its codes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from alit_hf import ALITModel
from alit_hf.losses.distillation import code_distillation_loss, latent_distillation_loss, rollout_weights

from ..configuration import TrainingConfig, require
from ..fitted_start import fitted_start
from ..spatial_start import check_spatial_start, spatial_start
from .alit import ALITLossConfig, ALITStage, check_model_fields, model_config, new_model


_HALTING_THRESHOLDS = {"vqgan": 0.55, "kl": 0.025}


@dataclass(kw_only=True)
class DistillLossConfig(ALITLossConfig):
    """
    Args:
        label_smoothing (`float` in [0, 1)): of the cross-entropy (VQGAN base).
        halting (`bool`): dynamic halting.
        halting_threshold (`float`): probability (VQGAN base) or mean absolute latent error (KL base) at which a
            position is halted. 0: the paper's, 0.55 or 0.025.
        last_rollout_only (`bool`): loss on the longest code alone, the paper's ablation.
        spatial_start (`bool`): latent tokens start at places in the image, and what they say and how it is read is
            fitted to the first batch, for short runs.
    """

    label_smoothing: float = 0.1
    halting: bool = True
    halting_threshold: float = 0.0
    last_rollout_only: bool = False
    revive_every: int = 100
    spatial_start: bool = False

    def validate(self) -> None:
        ALITLossConfig.validate(self)
        require(0 <= self.label_smoothing < 1, "loss.label_smoothing", self.label_smoothing, "in [0, 1)")
        require(self.halting_threshold >= 0, "loss.halting_threshold", self.halting_threshold, "at least 0")


class DistillStage(ALITStage):
    """Trains all of an `ALITModel` but its base tokenizer: prediction of base codes or latents at every rollout."""

    loss_config = DistillLossConfig
    takes_base_latents = True

    def __init__(self, model: ALITModel, loss: DistillLossConfig):
        super().__init__(model, loss)
        self.halting_threshold = None
        if loss.halting and model.config.max_rollouts > 1:
            self.halting_threshold = loss.halting_threshold or _HALTING_THRESHOLDS[model.config.base_type]
        model.base_tokenizer.requires_grad_(False)
        # What the run never uses must not wait for gradients in distributed training.
        if self.halting_threshold is None:
            model.embeddings.mask_token.requires_grad_(False)
        if model.config.max_rollouts == 1:
            model.encoder.layernorm_rollout.requires_grad_(False)

    @classmethod
    def check_config(cls, config: TrainingConfig) -> None:
        require(bool(config.init_from), "init_from", config.init_from, "the base tokenizer's folder or Hub id")
        check_model_fields(config.model)
        if Path(config.init_from).is_dir():
            alit_config = model_config(config)
            if config.loss.spatial_start:
                check_spatial_start(alit_config)

    @classmethod
    def build(cls, config: TrainingConfig) -> "DistillStage":
        model = new_model(config)
        if config.loss.spatial_start:
            spatial_start(model)
        return cls(model, config.loss)

    def train(self, mode: bool = True) -> "DistillStage":
        super().train(mode)
        self.model.base_tokenizer.eval()
        return self

    @property
    def rollout_weights(self) -> tuple[float, ...]:
        """λ of each rollout that is computed."""
        return rollout_weights(self.model.config.max_rollouts)

    @torch.no_grad()
    def base_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.base_tokenizer.encode(pixel_values)

    def training_loss(
        self, pixel_values: torch.Tensor, base_latents: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = self.model
        if self.loss.spatial_start and self.training and self.step == 0:
            with torch.autocast(pixel_values.device.type, enabled=False):
                fitted_start(model, pixel_values)
            self.forget()
        latents = self.base_latents(pixel_values) if base_latents is None else base_latents
        rollouts = list(
            model.rollouts(
                pixel_values,
                return_reconstruction=False,
                halting_threshold=self.halting_threshold,
                base_latents=latents,
            )
        )
        self.observe([rollout.token_ids for rollout in rollouts])
        weights = self.rollout_weights
        if self.loss.last_rollout_only:
            rollouts, weights = rollouts[-1:], weights[-1:]
        if model.config.base_type == "vqgan":
            codes = model.base_tokenizer.codes(latents)
            codebook = model.base_tokenizer.codebook
            loss, logs = code_distillation_loss(rollouts, codes, codebook, self.loss.label_smoothing, weights)
        else:
            loss, logs = latent_distillation_loss(rollouts, latents, weights)
        return loss, {"loss": loss.detach(), **logs}
