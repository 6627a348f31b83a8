"""What a model is compared with to show what training gave it."""

import copy

import torch

from alit_hf.model.modeling_alit import ALITModel


def untrained_copy(model: ALITModel, seed: int) -> ALITModel:
    """A model of the same configuration with random weights, including the base tokenizer, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = ALITModel(copy.deepcopy(model.config))
    return untrained.eval().to(model.device)


__all__ = ["untrained_copy"]
