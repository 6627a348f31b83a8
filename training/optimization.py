"""Optimiser and learning rate."""

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from .configuration import OptimizationConfig


def adamw(
    module: nn.Module, config: OptimizationConfig, share: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.AdamW:
    """
    AdamW over the trainable parameters; only weights of linear layers and convolutions decay.

    Args:
        share: the learning rate of a parameter, by its name, as a share of the run's. See `set_learning_rate`.
    """
    groups = defaultdict(list)
    for prefix, submodule in module.named_modules():
        for name, parameter in submodule.named_parameters(prefix, recurse=False):
            decays = name.endswith("weight") and isinstance(submodule, (nn.Linear, nn.Conv2d))
            if parameter.requires_grad:
                groups[decays, share(name)].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr": of_run * config.peak_learning_rate,
                "share": of_run,
            }
            for (decays, of_run), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
        betas=tuple(config.betas),
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the run's learning rate, of which each group of an optimiser from `adamw` has its share."""
    for group in optimizer.param_groups:
        group["lr"] = group["share"] * learning_rate


def learning_rate_share(warmed_up: float, progress: float) -> float:
    """
    Learning rate as a share of its peak: linear warm-up, and a cosine over the whole run.

    Args:
        warmed_up: share of the warm-up that is over, 1 or more after it.
        progress: share of the run that is over.
    """
    return min(1.0, warmed_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
