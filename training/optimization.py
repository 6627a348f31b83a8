"""Optimiser and learning rate."""

import math

import torch
from torch import nn

from .configuration import OptimizationConfig


def adamw(module: nn.Module, config: OptimizationConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; only weights of linear layers and convolutions decay."""
    decaying, others = [], []
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            decays = name == "weight" and isinstance(submodule, (nn.Linear, nn.Conv2d))
            if parameter.requires_grad:
                (decaying if decays else others).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.peak_learning_rate, betas=tuple(config.betas), fused=True)


def learning_rate_share(warmed_up: float, progress: float) -> float:
    """
    Learning rate as a share of its peak: linear warm-up, and a cosine over the whole run.

    Args:
        warmed_up: share of the warm-up that is over, 1 or more after it.
        progress: share of the run that is over.
    """
    return min(1.0, warmed_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
