"""The distance of reconstructions from originals, shared by stages with a loss on pixels."""

import torch
from torch import nn

from alit_hf.model.selection import l1, psnr
from alit_hf.networks.lpips import LPIPS

from .loss_config import PixelLossConfig


class PixelLoss:
    """
    L1 + weight · LPIPS.

    Not a module: LPIPS must not become part of the stage's parameters, checkpoints or averages.
    """

    def __init__(self, config: PixelLossConfig):
        self.config = config
        self.lpips: nn.Module | None = None
        if config.perceptual_weight > 0:
            self.lpips = LPIPS(config.perceptual_net, normalize=True)

    def perceptual_distance(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """LPIPS `(B,)` of images `(B, 3, H, W)` in [0, 1]."""
        self.lpips.to(pixel_values.device)
        return self.lpips(reconstruction, pixel_values)

    def __call__(
        self, reconstruction: torch.Tensor, pixel_values: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of images `(B, 3, H, W)` in [0, 1], and its detached terms."""
        reconstruction = reconstruction.float()
        loss = (reconstruction - pixel_values).abs().mean()
        logs = {"l1": loss.detach()}
        if self.lpips is not None and step >= self.config.perceptual_start:
            perceptual = self.perceptual_distance(reconstruction, pixel_values).mean()
            loss = loss + self.config.perceptual_weight * perceptual
            logs["lpips"] = perceptual.detach()
        return loss, logs

    def scores(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """L1, PSNR in dB and, if the loss has it, LPIPS, each `(B,)`, of reconstructions clamped to [0, 1]."""
        reconstruction = reconstruction.float().clamp(0, 1)
        scores = {"l1": l1(reconstruction, pixel_values), "psnr": psnr(reconstruction, pixel_values)}
        if self.lpips is not None:
            scores["lpips"] = self.perceptual_distance(reconstruction, pixel_values)
        return scores
