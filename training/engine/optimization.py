"""Optimisers and learning rate."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..configuration import OptimizationConfig


def optimizers(
    module: nn.Module, config: OptimizationConfig, layer_classes: Sequence[str] = ()
) -> list[torch.optim.Optimizer]:
    """
    AdamW over the trainable parameters and, with `optimizer: muon`, Muon for the matrices in layers of the classes
    named in `layer_classes`. Only weights of linear layers and convolutions decay.
    """
    matrices: set[nn.Parameter] = set()
    if config.optimizer == "muon":
        layers = [part for part in module.modules() if type(part).__name__ in layer_classes]
        matrices = {weight for layer in layers for weight in layer.parameters() if weight.ndim == 2}
    groups = defaultdict(list)
    for prefix, submodule in module.named_modules():
        for name, parameter in submodule.named_parameters(prefix, recurse=False):
            if parameter.requires_grad:
                decays = name.endswith("weight") and isinstance(submodule, (nn.Linear, nn.Conv2d))
                groups["muon" if parameter in matrices else decays].append(parameter)
    muon = groups.pop("muon", [])
    found = [
        torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
                for decays, parameters in sorted(groups.items(), reverse=True)
            ],
            lr=config.peak_learning_rate,
            betas=tuple(config.betas),
            fused=True,
        )
    ]
    if muon:
        found.append(torch.optim.Muon(muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    return found


@contextmanager
def own_settings(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """Context in which states can be loaded that do not bring their settings, such as weight decay, with them."""
    groups = [
        [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        for optimizer in optimizers
    ]
    yield
    for optimizer, settings in zip(optimizers, groups, strict=True):
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], rates: Sequence[float]) -> None:
    """Sets the learning rate of each optimiser."""
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate


def learning_rate_share(warmed_up: float, progress: float) -> float:
    """
    Learning rate as a share of its peak: linear warm-up, and a cosine over the whole run.

    Args:
        warmed_up: share of the warm-up that is over, 1 or more after it.
        progress: share of the run that is over.
    """
    return min(1.0, warmed_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
