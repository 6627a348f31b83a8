"""How published parameters become those of a model here: rules, and the checks that all layouts share."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from alit_hf.utils.progress import ProgressBar


# How each parameter is computed: a function, and the published parameters that are its arguments.
Rules = dict[str, tuple[Callable[..., torch.Tensor], tuple[str, ...]]]


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def module_rules(target: str, source: str) -> Rules:
    """A module with weight and bias under a new name."""
    return {f"{target}.{name}": (same, (f"{source}.{name}",)) for name in ("weight", "bias")}


def fill(model: nn.Module, rules: Rules, weights: Mapping[str, torch.Tensor], layout: str) -> None:
    """
    Gives a model its weights, in float32.

    Args:
        layout: what the checkpoint looks like, for errors.

    Raises:
        `ValueError`: if weights are missing, unknown, not finite floating point numbers, or of the wrong shape.
    """
    sources = {source for _, arguments in rules.values() for source in arguments}
    check_names(expected=sources, found=weights.keys(), layout=layout)
    for source in ProgressBar(sources, desc="reading", unit="weight"):
        weight = weights[source]
        if not weight.is_floating_point() or not (weight.is_meta or torch.isfinite(weight).all()):
            raise ValueError(f"The weight {source!r} in `path_or_state_dict` must hold finite floating point numbers.")
    converted = {
        name: make(*(weights[source].detach().float() for source in arguments)).contiguous()
        for name, (make, arguments) in ProgressBar(rules.items(), desc="converting", unit="weight")
    }
    try:
        model.load_state_dict(converted)
    except RuntimeError as error:
        raise ValueError(f"The weights in `path_or_state_dict` do not fit together. {error}") from error


def check_names(expected: Iterable[str], found: Iterable[str], layout: str) -> None:
    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    problems = []
    if missing:
        problems.append(f"lacks {listed(missing)}")
    if unknown:
        problems.append(f"has unknown weights {listed(unknown)}")
    if problems:
        raise ValueError(f"`path_or_state_dict` is not a {layout}: it {' and '.join(problems)}.")


def listed(names: Iterable[str], most: int = 10) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shape(weights: Mapping, key: str, dimensions: int, layout: str) -> torch.Size:
    if key not in weights:
        check_names(expected={key}, found=(), layout=layout)
    if weights[key].dim() != dimensions:
        raise ValueError(f"{key} has shape {tuple(weights[key].shape)}, it must have {dimensions} dimensions.")
    return weights[key].shape


def length(weights: Mapping, module_list: str) -> int:
    """Number of entries of a module list. Counted, as with the highest index a damaged name could ask for any size."""
    pattern = re.compile(re.escape(module_list) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, weights) if match})
