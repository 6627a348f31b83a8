"""Stage `base`: a VQGAN tokenizer from scratch, if no pretrained one is at hand."""

import inspect
from typing import Any

import torch
from diffusers import VQModel
from torch import nn

from alit_hf.model.base_tokenizer import from_range, to_range

from ..configuration import TrainingConfig, require
from .adversary import Adversary
from .codebook_care import CodebookCare
from .loss_config import BaseLossConfig
from .pixel_loss import PixelLoss
from .stage import Replaced, Stage


class BaseStage(Stage):
    """Trains all of a `VQModel`: L1 + LPIPS + codebook and commitment loss, later with an adversarial loss."""

    def __init__(self, model: VQModel, loss: BaseLossConfig):
        super().__init__(model, Adversary(loss, num_rollouts=1) if loss.adversarial_weight > 0 else None)
        # By default diffusers puts the commitment cost on the codebook's term, for the sake of old checkpoints.
        model.quantize.legacy = False
        self.loss = loss
        self.pixel_range = model.config.get("_pixel_range", (0, 1))
        self.pixel_loss = PixelLoss(loss)
        self.codebook_care = CodebookCare(
            lambda: model.quantize.embedding.weight,
            model.config.num_vq_embeddings,
            cosine=False,
            revive_every=loss.revive_every,
            start=loss.codebook_start,
        )

    @classmethod
    def check_config(cls, config: TrainingConfig) -> None:
        if config.init_from:
            require(not config.model, "model", config.model, "empty, as `init_from` determines it")
        else:
            _check_model(config.model, config.data.image_size)
        cls.check_start(config, "loss.codebook_start", config.loss.codebook_start)

    @classmethod
    def build(cls, config: TrainingConfig) -> "BaseStage":
        if not config.init_from:
            return cls(VQModel(**config.model), config.loss)
        try:
            model = VQModel.from_pretrained(config.init_from)
        except OSError as error:
            raise ValueError(f"`init_from` is {config.init_from!r}, it must be a VQModel: {error}") from error
        return cls(model, config.loss)

    def training_loss(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        latents = self.model.encode(to_range(pixel_values, self.pixel_range)).latents
        with torch.autocast(latents.device.type, enabled=False):
            codes, codebook_loss, (_, _, ids) = self.model.quantize(latents.float())
        self.codebook_care.observe(latents.float().permute(0, 2, 3, 1).flatten(0, 2), ids, self.step)
        quantized = self.step >= self.loss.codebook_start
        decoded = self.model.decode(codes if quantized else latents, force_not_quantize=True).sample
        reconstruction = from_range(decoded, self.pixel_range)
        loss, logs = self.pixel_loss(reconstruction, pixel_values, self.step)
        logs = {"loss": loss.detach(), **logs}
        loss, adversarial_logs = self.with_adversarial_loss(
            loss, reconstruction, pixel_values, 0, self.model.decoder.conv_out.weight
        )
        if quantized:
            logs["codebook_loss"] = codebook_loss.detach()
        # Zero weight before the start, as distributed training waits for the codebook's gradient anyway.
        loss = loss + int(quantized) * codebook_loss
        return loss, {**logs, **adversarial_logs}

    def end_step(self) -> list[Replaced]:
        return self.codebook_care.end_step(self.step)

    def gather_counts(self) -> None:
        self.codebook_care.gather_counts()

    def leave_counts_to_first_rank(self) -> None:
        self.codebook_care.leave_counts_to_first_rank()

    def summary(self) -> dict[str, torch.Tensor]:
        return self.codebook_care.summary()

    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Reconstructions `(B, 3, H, W)` of images, quantised as in this step."""
        latents = self.model.encode(to_range(pixel_values, self.pixel_range)).latents
        decoded = self.model.decode(latents, force_not_quantize=self.step < self.loss.codebook_start).sample
        return from_range(decoded, self.pixel_range)

    def score(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.pixel_loss.scores(self.reconstruct(pixel_values), pixel_values)

    def pictures(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"reconstruction": self.reconstruct(pixel_values)}

    def save_pretrained(self, folder: str, weights: dict[str, torch.Tensor]) -> None:
        # diffusers' `save_pretrained` does not take a state dict, and would write down the folder it was loaded from.
        fields = {name: value for name, value in self.model.config.items() if name == "_pixel_range" or name[0] != "_"}
        model = VQModel.from_config(fields)
        model.load_state_dict(weights)
        model.save_pretrained(folder)

    def compiled_parts(self) -> list[nn.Module]:
        # Not the decoder: torch 2.13 on CPUs silently compiles it without gradients.
        return [self.model.encoder]


def _check_model(model: dict[str, Any], image_size: int) -> None:
    known = [name for name in inspect.signature(VQModel.__init__).parameters if name != "self"]
    for name in model:
        require(name in known, "model", name, f"fields of diffusers' VQModel, {known}")
    levels = len(model.get("block_out_channels", (64,)))
    require(
        image_size % 2 ** (levels - 1) == 0,
        "data.image_size",
        image_size,
        f"a multiple of {2 ** (levels - 1)}, for the {levels} levels of `model.block_out_channels`",
    )
    with torch.device("meta"):
        try:
            VQModel(**model)
        except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
            raise ValueError(f"`model` cannot be built: {error}") from error
