"""VQGANs of taming-transformers and of LlamaGen."""

from collections.abc import Mapping

import torch
from diffusers import VQModel
from torch import nn

from alit_hf.model.configuration_alit import MAX_PARAMETERS

from .autoencoders import Names, autoencoder_config, autoencoder_rules
from .rules import fill, same, shape


_CODEBOOK = "quantize.embedding.weight"
# Counts which codes were used in LlamaGen's training.
_USAGE = "quantize.codebook_used"

_TAMING = Names("VQGAN of taming-transformers")
_LLAMAGEN = Names(
    "VQGAN of LlamaGen",
    down="encoder.conv_blocks",
    up="decoder.conv_blocks",
    is_up_from_finest=False,
    resnets="res",
    middle=("mid.0", "mid.1", "mid.2"),
)


def vqgan_names(weights: Mapping) -> Names | None:
    """The layout of a VQGAN with a codebook of vectors; `None` for all else."""
    if _CODEBOOK in weights:
        for names in (_TAMING, _LLAMAGEN):
            if any(name.startswith(f"{names.down}.") for name in weights):
                return names
    return None


def convert_vqgan(weights: dict[str, torch.Tensor], names: Names) -> VQModel:
    num_codes, code_dim = shape(weights, _CODEBOOK, 2, names.layout)
    config = autoencoder_config(weights, names)
    codebook = same
    if names is _LLAMAGEN:
        weights = {name: weight for name, weight in weights.items() if name != _USAGE}
        # It compares latents and codes by cosine. The nearest unit vector to a latent is the one of the largest
        # cosine, whatever the latent's norm, so unit codes are all that it takes.
        codebook = nn.functional.normalize
    try:
        model = VQModel(**config, num_vq_embeddings=num_codes, vq_embed_dim=code_dim)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"`path_or_state_dict` has sizes that diffusers' VQModel cannot have: {error}") from error
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if num_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"The model would have {num_parameters} parameters, more than {MAX_PARAMETERS}, which is the limit."
        )
    fill(model, autoencoder_rules(config, names) | {_CODEBOOK: (codebook, (_CODEBOOK,))}, weights, names.layout)
    model.register_to_config(_pixel_range=[-1, 1])
    return model
