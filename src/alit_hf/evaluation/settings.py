"""What an evaluation measures. Imports nothing heavy, so that the command line's help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .frechet import FeatureNetwork


DEFAULT_THRESHOLDS = (0.04, 0.06, 0.08, 0.1, 0.12, 0.15)
LPIPS_NETWORKS = ("alex", "vgg")
FEATURE_NETWORK_NAMES = ("efficientnet-lite0", "inception")


class SettingsError(ValueError):
    """Model, image processor and settings do not fit together. Raised before any work."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """
    What is measured, and on how many images at once.

    Args:
        thresholds (`Sequence[float]`): L1 below which a picture has enough tokens, for adaptive lengths.
        lpips_networks (`Sequence[str]`): of `LPIPS_NETWORKS`; may be empty.
        feature_network (`FeatureNetwork`, *optional*): network for the Fréchet distance, which is not measured without
            one.
        reconstructions (`Path`, *optional*): a new or empty folder for originals and reconstructions as PNG files, see
            [`~saved_pictures.SavedPictures`]; none are saved without it.
        reconstruction_lengths (`Sequence[int]`, *optional*): of which lengths; by default of all.
        limit (`int`, *optional*): only the first so many images.
        batch_size (`int`): images at a time.
        num_workers (`int`): threads that decode the next images while the model computes; 0 for none.
    """

    thresholds: Sequence[float] = DEFAULT_THRESHOLDS
    lpips_networks: Sequence[str] = LPIPS_NETWORKS
    feature_network: "FeatureNetwork | None" = None
    reconstructions: Path | None = None
    reconstruction_lengths: Sequence[int] | None = None
    limit: int | None = None
    batch_size: int = 8
    num_workers: int = 0


__all__ = ["DEFAULT_THRESHOLDS", "FEATURE_NETWORK_NAMES", "LPIPS_NETWORKS", "EvaluationSettings", "SettingsError"]
