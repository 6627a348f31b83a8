"""Shared parts of the stages that train an `ALITModel`."""

import torch
from torch import nn

from alit_hf import ALITImageProcessor, ALITModel

from .adversary import Adversary
from .codebook_care import CodebookCare
from .loss_config import ALITLossConfig, LengthsLossConfig
from .stage import Replaced, Stage


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
        for rollout in self.model.rollouts(pixel_values, interpolate_pos_encoding=True):
            columns[f"{rollout.num_tokens}"] = rollout.reconstruction
        return columns

    def save_pretrained(self, folder: str, weights: dict[str, torch.Tensor]) -> None:
        self.model.save_pretrained(folder, state_dict=weights)
        ALITImageProcessor.for_config(self.model.config).save_pretrained(folder)

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder]
