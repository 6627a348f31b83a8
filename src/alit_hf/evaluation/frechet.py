"""Feature networks for the Fréchet distance, and how many images it needs to be meaningful."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from alit_hf.networks.efficientnet_lite import EfficientNetLite


MIN_IMAGES = 256
"""Fewest images for which a Fréchet distance is reported."""


class FeatureNetwork(Protocol):
    """
    A frozen network: `name` identifies it, and calling it turns pixels `(B, 3, H, W)` in [0, 1] into features
    `(B, num_features)`.
    """

    name: str
    num_features: int

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor: ...

    def to(self, device: torch.device) -> "FeatureNetwork": ...


class InceptionV3(nn.Module):
    """
    The network of FID in `torch-fidelity`, which needs torchvision. Not through torchmetrics, which resizes pictures
    in another way.

    Raises:
        `OSError`: if `torch-fidelity` is not installed or its weights cannot be fetched.
    """

    name = "inception"
    num_features = 2048

    def __init__(self):
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise OSError(
                f"FID needs the package torch-fidelity: `pip install torch-fidelity` ({error.name} is missing)"
            ) from error
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", [str(self.num_features)])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features `(B, 2048)` of pixels `(B, 3, H, W)` in [0, 1], rounded to 8 bits."""
        return self.network((pixel_values * 255).round().to(torch.uint8))[0].float()


FEATURE_NETWORKS: dict[str, Callable[[], FeatureNetwork]] = {
    "efficientnet-lite0": EfficientNetLite,
    InceptionV3.name: InceptionV3,
}


def result_name(network: FeatureNetwork) -> str:
    """The distance's name in results: rFID for Inception and for no other network."""
    return "rfid" if network.name == InceptionV3.name else f"frechet_{network.name.replace('-', '_')}"


def check_num_images(num_images: int) -> None:
    """
    Raises:
        `ValueError`: for fewer than `MIN_IMAGES`.
    """
    if num_images < MIN_IMAGES:
        raise ValueError(
            f"a Fréchet distance of {num_images} images would be noise: it compares covariances of more than a "
            f"thousand features, for which at least {MIN_IMAGES} images are needed (thousands, for a value that does "
            "not depend on their number)"
        )


__all__ = ["FEATURE_NETWORKS", "MIN_IMAGES", "FeatureNetwork", "InceptionV3", "check_num_images", "result_name"]
