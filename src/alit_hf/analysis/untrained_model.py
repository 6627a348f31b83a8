"""What a model would do without having learned anything."""

import copy

import torch

from alit_hf.model.modeling_alit import ALITModel


def untrained_copy(model: ALITModel, seed: int) -> ALITModel:
    """A model of the same configuration with random weights, base tokenizer included, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = ALITModel(copy.deepcopy(model.config))
    return untrained.eval().to(model.device)


__all__ = ["untrained_copy"]
