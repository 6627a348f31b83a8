"""What an evaluation keeps while it goes through the images: little, however many there are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from alit_hf.losses.codebook import code_counts


@dataclass
class ImageRecord:
    """
    What is known of one image.

    Args:
        index (`int`): its number in the data.
        digest (`bytes`): SHA-256 of its pixels as the model saw them, 8 bits each, row by row.
        criterion (`list[float]`): the token selection criterion's value at every length, shortest first.
        scores (`dict[str, dict[str, float]]`): for each variant of the picture (`lengths/32`, `base`, `jpeg`, …), the
            value of each measure.
        file_bytes (`dict[str, int]`): size in bytes of each variant that is a file.
    """

    index: int
    digest: bytes
    criterion: list[float]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    file_bytes: dict[str, int] = field(default_factory=dict)


def count_codes(codes: Iterable[Sequence[int]], codebook_size: int) -> torch.Tensor:
    """
    How often each code occurs, int64 `(codebook_size,)`, in token ids of any lengths; negative ids (padding) do not
    count.

    Raises:
        `ValueError`: for an id that the codebook does not have.
    """
    ids = torch.tensor([token_id for code in codes for token_id in code], dtype=torch.long)
    if (ids >= codebook_size).any():
        raise ValueError(f"The ids go up to {int(ids.max())}, they must be below `codebook_size`, {codebook_size}.")
    return code_counts(ids, codebook_size)


class _Features(nn.Module):
    """Takes the place of torchmetrics' network, so that features are computed once for all distances."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


class FrechetDistances:
    """
    Fréchet distances between the originals and each variant of them, in the feature space of a network.

    With `torch.distributed` running, every process must have the same variants, and `compute` covers all processes.

    Args:
        num_features (`int`): size of the feature space.
        variants (`list[str]`): the variants to come.
        device (`torch.device`): device of the features.
    """

    def __init__(self, num_features: int, variants: list[str], device: torch.device):
        self._distances = {
            variant: FrechetInceptionDistance(feature=_Features(num_features)).to(device) for variant in variants
        }

    def add(self, variant: str, original_features: torch.Tensor, features: torch.Tensor) -> None:
        """Adds features `(B, num_features)` of originals and of the same number of pictures."""
        self._distances[variant].update(original_features, real=True)
        self._distances[variant].update(features, real=False)

    def compute(self) -> dict[str, float]:
        """The distance of each variant."""
        return {variant: distance.compute().item() for variant, distance in self._distances.items()}


__all__ = ["FrechetDistances", "ImageRecord", "count_codes"]
