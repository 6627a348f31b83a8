"""Stage `distill`: the paper's first stage. The base is frozen; rollouts predict its codes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from alit_hf import ALITConfig, ALITModel
from alit_hf.losses.distillation import code_distillation_loss, latent_distillation_loss, rollout_weights
from alit_hf.model.selection import l1, psnr

from ..configuration import TrainingConfig, require
from .alit import ALITStage
from .loss_config import DistillLossConfig
from .starting_models import check_model_fields, model_config, new_model


_HALTING_THRESHOLDS = {"vqgan": 0.55, "kl": 0.025}
# Share of the drawn steps that run as many rollouts as the limit allows: the newest ones have most to learn.
_AT_THE_LIMIT = 0.6
# Below these, a validation on at least this many pictures warns. The share of ids is of the possible ones.
_LEAST_SPREAD = 0.05
_LEAST_IDS_SHARE, _LEAST_IDS = 0.02, 4
_LEAST_PICTURES = 8


class DistillStage(ALITStage):
    """Trains all of an `ALITModel` except its base tokenizer: its rollouts predict base codes or latents."""

    has_frozen_part = True

    def __init__(self, model: ALITModel, loss: DistillLossConfig, seed: int = 0):
        super().__init__(model, loss, quantize_from=loss.quantize_from)
        self.seed = seed
        self.halting_threshold = None
        if loss.halting and model.config.max_rollouts > 1:
            self.halting_threshold = loss.halting_threshold or _HALTING_THRESHOLDS[model.config.base_type]
        model.base_tokenizer.requires_grad_(False)
        # Distributed training must not wait for gradients of what the run never uses.
        if self.halting_threshold is None:
            model.embeddings.mask_token.requires_grad_(False)
        if model.config.max_rollouts == 1:
            model.encoder.layernorm_rollout.requires_grad_(False)
        if model.quantizer is not None and loss.quantize_from > 0:
            model.quantizer.register_forward_hook(self._put_off_quantization)

    @classmethod
    def check_config(cls, config: TrainingConfig) -> None:
        require(bool(config.init_from), "init_from", config.init_from, "the base tokenizer's folder or Hub id")
        check_model_fields(config.model)
        loss, start = config.loss, config.loss.quantize_from
        quantizes = config.model.get("quantize", True)
        require(start == 0 or quantizes, "loss.quantize_from", start, "0 if `model.quantize` is false")
        cls.check_start(config, "loss.quantize_from", start)
        if start:
            tokens = config.model.get("tokens_per_rollout", ALITConfig.tokens_per_rollout)
            codes = config.model.get("codebook_size", ALITConfig.codebook_size)
            cls.check_latents(config, "loss.quantize_from", start, tokens, codes)
        noise = loss.latent_noise
        require(noise == 0 or start > 0, "loss.latent_noise", noise, "0 if `loss.quantize_from` is 0")
        if Path(config.init_from).is_dir():
            model_config(config)

    @classmethod
    def build(cls, config: TrainingConfig) -> "DistillStage":
        return cls(new_model(config), config.loss, config.seed)

    def train(self, mode: bool = True) -> "DistillStage":
        super().train(mode)
        self.model.base_tokenizer.eval()
        return self

    @property
    def rollout_weights(self) -> tuple[float, ...]:
        """λ of each computed rollout."""
        return rollout_weights(self.model.config.max_rollouts)

    @torch.no_grad()
    def frozen_outputs(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The base's latents `(B, E, rows, columns)`."""
        return self.model.base_tokenizer.encode(pixel_values)

    @property
    def frozen_shape(self) -> tuple[int, ...]:
        return (self.model.config.base_embed_dim, *self.model.config.grid_size)

    def frozen_weights(self) -> dict[str, torch.Tensor]:
        return self.model.base_tokenizer.state_dict()

    def frozen_settings(self) -> dict[str, Any]:
        return self.model.config.base_tokenizer_config

    def training_loss(
        self, pixel_values: torch.Tensor, frozen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        latents = self.frozen_outputs(pixel_values) if frozen is None else frozen
        if self.loss.rollouts == "drawn":
            loss, logs = self._drawn_loss(pixel_values, latents)
        else:
            loss, logs = self._loss_of_all(pixel_values, latents)
        if self.step < self.loss.quantize_from:
            logs = {name: value for name, value in logs.items() if not name.startswith("quantization/")}
        return loss, {"loss": loss.detach(), **logs}

    def _loss_of_all(
        self, pixel_values: torch.Tensor, latents: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rollouts = list(
            self.model.rollouts(
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
        return self._distillation_loss(rollouts, latents, weights)

    def _drawn_loss(
        self, pixel_values: torch.Tensor, latents: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = self.model
        shown = self.drawn_rollouts()
        length = model.config.tokens_per_rollout
        rollout = model(
            pixel_values,
            num_tokens=len(shown) * length,
            return_reconstruction=False,
            return_decoder_output=False,
            base_latents=latents,
        )
        self.observe([rollout.token_ids])
        positions = torch.from_numpy(shown.repeat(length)).to(pixel_values.device).nonzero().squeeze(1)
        output = model.decoder(rollout.latents[:, positions], rollout.grid_size, positions)
        loss, logs = self._distillation_loss([replace(rollout, decoder_output=output)], latents, (1.0,))
        if len(shown) == 1 and model.config.max_rollouts > 1:
            # Unused by the first rollout, but distributed training waits for its gradient anyway.
            loss = loss + 0 * sum(parameter.sum() for parameter in model.encoder.layernorm_rollout.parameters())
        return loss, logs

    def _distillation_loss(
        self, rollouts: list, latents: torch.Tensor, weights: tuple[float, ...]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if self.model.config.base_type == "kl":
            return latent_distillation_loss(rollouts, latents, weights)
        base = self.model.base_tokenizer
        return code_distillation_loss(rollouts, base.codes(latents), base.codebook, self.loss.label_smoothing, weights)

    @property
    def rollout_limit(self) -> int:
        """The largest number of rollouts that this step may draw."""
        start, end = self.loss.rollout_growth
        most = self.model.config.max_rollouts
        if self.loss.rollouts == "all" or self.share_done >= end:
            return most
        grown = max(0.0, self.share_done - start) / max(end - start, 1e-9)
        return 1 + int(grown * (most - 1))

    def drawn_rollouts(self) -> np.ndarray:
        """Which of this step's rollouts the decoder sees: one bool per rollout, the same on all ranks."""
        random = np.random.default_rng((self.seed, self.step))
        limit = self.rollout_limit
        number = limit if random.random() < _AT_THE_LIMIT else random.integers(1, limit + 1)
        end = self.loss.rollout_growth[1]
        fading = 1.0 if self.share_done < end else (1 - self.share_done) / (1 - end)
        shown = np.ones(number, dtype=bool)
        if number > 1 and random.random() < self.loss.rollout_dropout * fading:
            shown = random.random(number) < 0.5
            shown[-1] |= not shown.any()
        return shown

    def _put_off_quantization(self, _quantizer, arguments: tuple[torch.Tensor], output: tuple) -> tuple | None:
        """Before `quantize_from`: unit latents, with noise in training, instead of codes."""
        if self.step >= self.loss.quantize_from:
            return None
        _, ids, loss = output
        directions = F.normalize(arguments[0].float(), dim=-1)
        if self.training:
            directions = F.normalize(directions + self.loss.latent_noise * torch.randn_like(directions), dim=-1)
        # Distributed training waits for the codebook's gradient.
        return directions, ids, 0 * loss

    def score(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        L1 and PSNR in dB at every length that has been trained, and what is needed for R², the number of different ids
        and the spread of latents.
        """
        base, length = self.model.base_tokenizer, self.model.config.tokens_per_rollout
        latents = self.frozen_outputs(pixel_values)
        true = latents.float()
        if self.model.config.base_type == "vqgan":
            codes = F.embedding(base.codes(latents), base.codebook.float())
            true = codes.transpose(1, 2).unflatten(2, latents.shape[-2:])
        scores = {"square": true.square().flatten(1).mean(dim=1), "mean": true.flatten(2).mean(dim=2)}
        for rollout in self.model.rollouts(pixel_values, self.rollout_limit * length, base_latents=latents):
            name = rollout.num_tokens
            reconstruction = rollout.reconstruction.clamp(0, 1)
            scores[f"l1/{name}"] = l1(reconstruction, pixel_values)
            scores[f"psnr/{name}"] = psnr(reconstruction, pixel_values)
            soft = base.expected_latents(rollout.decoder_output, rollout.grid_size)
            scores[f"error/{name}"] = (soft.float() - true).square().flatten(1).mean(dim=1)
            scores[f"direction/{name}"] = F.normalize(rollout.latents[:, -length:].float(), dim=-1)
            if rollout.token_ids is not None and self.step >= self.loss.quantize_from:
                occurs = torch.zeros(len(true), self.model.config.codebook_size, device=true.device)
                scores[f"ids/{name}"] = occurs.scatter_(1, rollout.token_ids, 1.0)
        return scores

    def validation(self, scores: dict[str, torch.Tensor], num_pictures: int) -> dict[str, float]:
        """
        At each length: L1 and PSNR, R² of the soft code (VQGAN base) or latents (KL base), the number of different
        ids over all pictures, and the spread of the newest rollout's tokens: the variance of their unit-norm latents
        over pictures, averaged over tokens (0: the same for all pictures, near 1: as different as possible).
        """
        variance = scores["square"] - scores["mean"].square().mean()
        logged = {}
        for name, mean in scores.items():
            kind, _, length = name.partition("/")
            if kind in ("l1", "psnr"):
                logged[name] = float(mean)
            elif kind == "error":
                logged[f"r2/{length}"] = float(1 - mean / variance)
            elif kind == "direction":
                variance_over_pictures = 1 - mean.square().sum(dim=-1).mean()
                logged[f"spread/{length}"] = float(variance_over_pictures) * num_pictures / max(1, num_pictures - 1)
            elif kind == "ids":
                logged[f"ids/{length}"] = int((mean > 0).sum())
        return logged

    def warnings(self, validation: dict[str, float], num_pictures: int) -> dict[str, str]:
        if not self.warmed_up or num_pictures < _LEAST_PICTURES:
            return {}
        found = {}
        for name, value in validation.items():
            kind, _, length = name.partition("/")
            codes = self.model.config.codebook_size
            possible = min(codes, num_pictures * int(length or 0))
            if kind == "spread" and value < _LEAST_SPREAD:
                found.setdefault(
                    kind,
                    f"The newest latent tokens of codes of {length} are nearly the same for all pictures (spread "
                    f"{value:.3f}): they say nothing. {self._cause_of_equal_tokens(int(length))}",
                )
            elif kind == "ids" and value < max(_LEAST_IDS_SHARE * possible, min(_LEAST_IDS, possible)):
                found.setdefault(
                    kind,
                    f"Codes of {length} tokens have {value} different ids over {num_pictures} held-out pictures, of "
                    f"{codes}: the codebook has collapsed. The likely cause is that latents were quantised before "
                    "they said enough, or that unused codes are not revived: start anew with a later "
                    "`loss.quantize_from`, or set `loss.revive_every`.",
                )
        return found

    def _cause_of_equal_tokens(self, length: int) -> str:
        if self.model.quantizer is not None and self.loss.quantize_from == 0:
            return (
                "The likely cause is that they are quantised from the first step: start anew with a later "
                "`loss.quantize_from`."
            )
        if length > self.model.config.tokens_per_rollout and self.loss.rollout_dropout == 0:
            return (
                "The likely cause is that the first rollout's tokens suffice: set `loss.rollouts` to drawn, "
                "`loss.halting` to false and `loss.rollout_dropout` to 0.5."
            )
        return "The likely cause is the learning rate: halve it, or make the warm-up longer."
