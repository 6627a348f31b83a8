"""Pictures as pixels, and a measure's mean over pairs of them."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from alit_hf.model.image_io import to_rgb


def to_pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures of one size as float32 pixels `(B, 3, H, W)` in [0, 1]."""
    levels = np.stack([np.asarray(to_rgb(picture)) for picture in pictures])
    return torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255


def picture_pairs(
    predictions: Iterable[Image.Image], references: Iterable[Image.Image]
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """
    Pixels `(1, 3, H, W)` in [0, 1] of each reconstruction and its original.

    Raises:
        `ValueError`: if the sizes of the two differ.
    """
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if prediction.size != reference.size:
            raise ValueError(f"prediction {index} is of size {prediction.size}, its reference of {reference.size}.")
        yield to_pixels([prediction]), to_pixels([reference])


@torch.inference_mode()
def mean_score(
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    predictions: Iterable[Image.Image],
    references: Iterable[Image.Image],
) -> float:
    """
    The mean of `measure`, which turns two tensors of pixels `(1, 3, H, W)` into `(1,)`, over pairs.

    Raises:
        `ValueError`: if the sizes of a reconstruction and its original differ.
    """
    return float(np.mean([measure(*pair).item() for pair in picture_pairs(predictions, references)]))


__all__ = ["mean_score", "picture_pairs", "to_pixels"]
