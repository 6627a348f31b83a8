"""LPIPS without its pretrained weights, which may not be there, and the same in every process."""

import torch

from alit_hf.networks.lpips import LPIPS


def random_lpips(net: str, normalize: bool) -> LPIPS:
    """Stands for `LPIPS` where only structure matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LPIPS(net, normalize=normalize, pretrained=False)
