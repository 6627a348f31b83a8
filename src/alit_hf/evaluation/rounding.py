"""How exact numbers are in results."""

import numpy as np
import torch


def rounded(value: float | np.floating | torch.Tensor) -> float:
    """The value to 6 decimals: what is behind them changes with the batch size and the number of processes."""
    return round(float(value), 6)


__all__ = ["rounded"]
