"""The adversarial part of stages with a loss on pixels: a discriminator trained alongside the stage."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from alit_hf.losses.adversarial import (
    LeCamRegularizer,
    PatchDiscriminator,
    adaptive_weight,
    adversarial_starts,
    discriminator_loss,
    frozen,
    generator_loss,
    r1_penalty,
)

from .loss_config import AdversaryConfig


class Adversary(nn.Module):
    """
    One discriminator for all rollouts, with its regulariser. `forward` is the discriminator's own training step; the
    loop wraps and optimises this module separately from the stage, so that neither changes the other's parameters.
    """

    def __init__(self, config: AdversaryConfig, num_rollouts: int):
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(num_rollouts, config.discriminator_size, config.discriminator_layers)
        self.lecam = LeCamRegularizer() if config.regularizer == "lecam" else None

    def forward(
        self, pixel_values: torch.Tensor, reconstruction: torch.Tensor, rollout: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The discriminator's loss and its detached terms.

        Args:
            pixel_values, reconstruction (`torch.Tensor` of shape `(B, 3, H, W)`): originals and their reconstructions,
                without gradient.
            rollout (`int`): index of the rollout behind them, counted from 0.
        """
        if self.config.regularizer == "r1":
            pixel_values = pixel_values.detach().requires_grad_()
        real = self.discriminator(pixel_values, rollout)
        fake = self.discriminator(reconstruction, rollout)
        loss = discriminator_loss(real, fake)
        logs = {
            "discriminator/loss": loss.detach(),
            "discriminator/real": real.detach().mean(),
            "discriminator/fake": fake.detach().mean(),
        }
        if self.config.regularizer != "none":
            penalty = self.lecam(real, fake) if self.lecam is not None else r1_penalty(real, pixel_values)
            loss = loss + self.config.regularizer_weight * penalty
            logs["discriminator/penalty"] = penalty.detach()
        return loss, logs

    def weighted_generator_loss(
        self, reconstruction_loss: torch.Tensor, reconstruction: torch.Tensor, rollout: int, last_layer: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What the stage adds to its loss, and its detached terms; no gradient reaches the discriminator."""
        if isinstance(self, FSDPModule):
            # Only its own `forward` would gather its parameters, and only its own backward pass frees them.
            self.unshard()
        with frozen(self.discriminator):
            adversarial = generator_loss(self.discriminator(reconstruction, rollout))
        weight = self.config.adversarial_weight * adaptive_weight(reconstruction_loss, adversarial, last_layer)
        return weight * adversarial, {"adversarial": adversarial.detach(), "adversarial_weight": weight}

    def plays(self, step: int) -> bool:
        """Whether the step has an adversarial loss."""
        return adversarial_starts(step, self.config.adversarial_start)
