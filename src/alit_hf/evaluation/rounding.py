"""The precision of numbers in results."""

import numpy as np
import torch


def rounded(value: float | np.floating | torch.Tensor) -> float:
    """The value to 6 decimals: further ones change with the batch size and the number of processes."""
    return round(float(value), 6)


__all__ = ["rounded"]
