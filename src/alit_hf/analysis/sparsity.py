"""How strongly a map concentrates on few positions."""

import math

import torch


_TOP_SHARE = 0.1


def entropy(maps: torch.Tensor) -> torch.Tensor:
    """
    Entropy of maps over N positions, divided by log N.

    Args:
        maps (`torch.Tensor` of shape `(..., rows, columns)`): each sums to 1.

    Returns:
        `(...)` in [0, 1]: 0 for one position, 1 for a uniform map.
    """
    maps = maps.flatten(-2)
    return torch.special.entr(maps).sum(dim=-1) / math.log(maps.shape[-1])


def top_decile_share(maps: torch.Tensor) -> torch.Tensor:
    """
    Share of a map's mass in the tenth of positions with the most mass.

    Args:
        maps (`torch.Tensor` of shape `(..., rows, columns)`): each sums to 1.

    Returns:
        `(...)` in [0.1, 1]: 0.1 for a uniform map. If a tenth of the positions is not a whole number, the last one
        counts in part.
    """
    ordered = maps.flatten(-2).sort(dim=-1, descending=True).values
    num_positions = ordered.shape[-1]
    counted = (_TOP_SHARE * num_positions - torch.arange(num_positions, device=maps.device)).clamp(0, 1)
    return ordered @ counted


__all__ = ["entropy", "top_decile_share"]
