"""A tiny model whose pictures differ from length to length, for tests of what is measured on them."""

import torch
from tiny_model import tiny_config

from alit_hf import ALITModel


def lively_model(**kwargs) -> ALITModel:
    """A random model with large logits and base codes: a fresh one makes the same picture of everything."""
    torch.manual_seed(0)
    model = ALITModel(tiny_config(**kwargs)).eval()
    with torch.no_grad():
        model.decoder.head.fc2.weight.mul_(200)
        if model.config.base_type == "vqgan":
            model.base_tokenizer.codebook.mul_(40)
    return model
