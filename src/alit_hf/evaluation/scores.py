"""How far pictures are from their originals, image by image."""

from collections.abc import Sequence

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from alit_hf.model import selection
from alit_hf.model.selection import l1
from alit_hf.networks.lpips import LPIPS


MAX_PSNR = 100.0
"""PSNR in dB of a picture that equals its original, so that a mean over images stays finite."""


def psnr(picture: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """
    Peak signal-to-noise ratio of each image in dB, at most `MAX_PSNR`, of shape `(B,)`. Both arguments are pixels
    `(B, 3, H, W)` in [0, 1].
    """
    return selection.psnr(picture, original).clamp(max=MAX_PSNR)


def ssim(picture: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """
    Structural similarity of each image, 1 if it equals its original (Gaussian window of 11 pixels, sigma 1.5), of
    shape `(B,)`. Both arguments are pixels `(B, 3, H, W)` in [0, 1], H and W at least 6.
    """
    return structural_similarity_index_measure(picture, original, data_range=1.0, reduction="none").view(-1)


class ImageScorer:
    """
    L1, PSNR, SSIM and LPIPS of pictures as a viewer shows them: clamped to [0, 1].

    Args:
        lpips_networks (`Sequence[str]`): of `"alex"` and `"vgg"`; may be empty.
        device (`torch.device`): device of the networks; the pixels must be on it.

    Raises:
        `ValueError`: for an unknown network.
        `FileNotFoundError`: no weights of a network are cached or installed; the message says how to get them.
    """

    def __init__(self, lpips_networks: Sequence[str], device: torch.device):
        self._lpips = {f"lpips_{net}": LPIPS(net, normalize=True).to(device) for net in lpips_networks}
        self._original: torch.Tensor | None = None
        self._original_features: dict[str, list[torch.Tensor]] = {}

    @property
    def min_size(self) -> int:
        """Smallest shorter side of an image, in pixels."""
        return max([6, *(network.min_size for network in self._lpips.values())])

    def __call__(self, picture: torch.Tensor, original: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            picture (`torch.Tensor` of shape `(B, 3, H, W)`): clamped here; any floating dtype.
            original (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1], not to be changed in place between
                calls: their features are kept until another tensor is given.

        Returns:
            float32 `(B,)` for each of `l1`, `psnr`, `ssim` and `lpips_NET`, one for each network.

        Raises:
            `ValueError`: if `picture` has NaN or infinite values.
        """
        picture, original = picture.float(), original.float()
        if not torch.isfinite(picture).all():
            raise ValueError("the model's pictures have NaN or infinite values")
        picture = picture.clamp(0, 1)
        scores = {"l1": l1(picture, original), "psnr": psnr(picture, original), "ssim": ssim(picture, original)}
        if original is not self._original:
            self._original = original
            self._original_features = {name: net.unit_features(original) for name, net in self._lpips.items()}
        return scores | {
            name: net.distance(net.unit_features(picture), self._original_features[name])
            for name, net in self._lpips.items()
        }


__all__ = ["MAX_PSNR", "ImageScorer", "psnr", "ssim"]
