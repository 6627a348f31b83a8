"""The error of images at every length, and which length they need (paper section 3)."""

import numpy as np
import pandas as pd
import torch

from alit_hf.modeling_alit import ALITModel
from alit_hf.selection import Criterion, l1, score_images


def errors_by_length(model: ALITModel, pixel_values: torch.Tensor, criterion: Criterion = l1) -> list[list[float]]:
    """
    A criterion's value after each rollout, as `ALITModel.encode` compares it with a threshold: of pictures that are
    not clamped.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1] on the model's device.
        criterion (`Criterion`, *optional*, defaults to `l1`): lower is better.

    Returns:
        B lists of K values, the shortest code's first.

    Raises:
        `ValueError`: for a model whose pictures have NaN or infinite errors.
    """
    # As `alit encode`: only a model with dynamic halting draws numbers.
    generator = torch.Generator(model.device).manual_seed(0)
    errors = torch.stack(
        [
            score_images(criterion, rollout.reconstruction, pixel_values)
            for rollout in model.rollouts(pixel_values, generator=generator)
        ],
        dim=1,
    )
    if not torch.isfinite(errors).all():
        raise ValueError("the model's pictures have NaN or infinite errors")
    return errors.tolist()


def error_matrix(table: pd.DataFrame, column: str = "l1") -> np.ndarray:
    """The lists of `errors_by_length` in a column of a table, float64 `(N, K)`."""
    return np.array(table[column].tolist())


__all__ = ["error_matrix", "errors_by_length"]
