"""Checkpoints of any known layout."""

import os
from collections.abc import Mapping

import torch
from diffusers import VQModel

from alit_hf.model.modeling_alit import ALITModel

from .alit import convert_alit, is_alit
from .files import read_weights
from .rules import listed
from .vqgan import convert_vqgan, vqgan_names


def load_original(
    path_or_state_dict: str | os.PathLike | Mapping, num_attention_heads: int | None = None
) -> ALITModel | VQModel:
    """
    Loads a checkpoint in the format of the code that it was trained with: a published ALIT model (arXiv 2411.02393;
    VQGAN or KL base, discrete or continuous latent tokens), or a VQGAN of taming-transformers or LlamaGen, from which
    the stage `distill` can start.

    All sizes except the number of attention heads come from the shapes of the weights. Averaged weights (`"ema"`) are
    preferred to the model's own (`"model"`, `"state_dict"`); discriminators and perceptual losses are dropped.

    Args:
        path_or_state_dict (`str`, `os.PathLike` or `dict`):
            A `.safetensors` file; any other file that `torch.save` wrote, such as a `.pth` or Lightning's `.ckpt`, of
            which only tensors are read and nothing is executed; or the contents of such a file: a state dict with the
            published names, or a dict that holds one under `"ema"`, `"model"` or `"state_dict"`.
        num_attention_heads (`int`, *optional*):
            Attention heads of ALIT's distillation encoder and decoder. May be omitted if width and depth are those of
            a published model.

    Returns:
        the model in evaluation mode and float32, on the CPU: an [`ALITModel`] with dynamic halting off, as in every
        new model (`config.halting_threshold` turns it on); or a diffusers `VQModel` for pixels in [-1, 1].

    Raises:
        `ValueError`: if the file cannot be read safely, its layout is none of these, weights are missing, unknown or
            of the wrong shape, or `num_attention_heads` is needed, does not fit, or is given for a VQGAN.
        `FileNotFoundError`: if the file does not exist.
    """
    weights = read_weights(path_or_state_dict)
    # First on a device without memory, so that names and shapes that are not those of a model are refused before a
    # byte is allocated for them, whatever sizes a file declares.
    with torch.device("meta"):
        _convert({name: weight.to("meta") for name, weight in weights.items()}, num_attention_heads)
    return _convert(weights, num_attention_heads).float().eval()


def _convert(weights: dict[str, torch.Tensor], num_attention_heads: int | None) -> ALITModel | VQModel:
    if is_alit(weights):
        return convert_alit(weights, num_attention_heads)
    names = vqgan_names(weights)
    if names is None:
        found = listed({".".join(name.split(".")[:2]) for name in weights}, most=20)
        raise ValueError(
            "`path_or_state_dict` must be a published ALIT checkpoint, with weights named base_tokenizer.…, or a "
            "VQGAN of taming-transformers or LlamaGen, with quantize.embedding.weight and weights named "
            f"encoder.down.… or encoder.conv_blocks.…; it has {found or 'no weights'}."
        )
    if num_attention_heads is not None:
        raise ValueError(
            f"`num_attention_heads` is {num_attention_heads}, but `path_or_state_dict` is a {names.layout}, whose "
            "attention has one head: leave it out."
        )
    return convert_vqgan(weights, names)


__all__ = ["load_original"]
