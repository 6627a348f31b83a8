"""The error of images at every length, and which length they need (paper section 3)."""

import numpy as np
import pandas as pd
import torch

from alit_hf.evaluation.lengths import smallest_satisfying
from alit_hf.evaluation.rounding import rounded
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.model.selection import l1, score_images


def errors_by_length(model: ALITModel, pixel_values: torch.Tensor) -> list[list[float]]:
    """
    The L1 after each rollout, as `ALITModel.encode` compares it with a threshold, from pictures that are not clamped.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1] on the model's device.

    Returns:
        B lists of K values, shortest code first.

    Raises:
        `ValueError`: for a model whose pictures have NaN or infinite errors.
    """
    # As in `alit encode`: only a model with dynamic halting draws random numbers.
    generator = torch.Generator(model.device).manual_seed(0)
    errors = torch.stack(
        [
            score_images(l1, rollout.reconstruction, pixel_values)
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


def describe_errors(errors: np.ndarray, lengths: list[int], threshold: float) -> dict:
    """
    Summarises the errors of images.

    Args:
        errors (`np.ndarray` of shape `(N, K)`): from `errors_by_length`.
        lengths (`list[int]`): tokens of the K codes.
        threshold (`float`): L1 below which an image has enough tokens.

    Returns:
        `num_images`, the mean `l1` at each length, `mean_tokens` of the lengths that the threshold chooses, and
        `satisfied`, the share of images below it; `None` without images.
    """
    if len(errors) == 0:
        return {"num_images": 0, "l1": None, "mean_tokens": None, "satisfied": None}
    chosen, satisfied = smallest_satisfying(errors, threshold)
    return {
        "num_images": len(errors),
        "l1": {str(length): rounded(error) for length, error in zip(lengths, errors.mean(axis=0), strict=True)},
        "mean_tokens": rounded(np.mean(np.array(lengths)[chosen])),
        "satisfied": rounded(satisfied.mean()),
    }


__all__ = ["describe_errors", "error_matrix", "errors_by_length"]
