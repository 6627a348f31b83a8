"""Models whose latent tokens look at known positions."""

import torch
import torch.nn.functional as F
from tiny_config import tiny_config
from torch import nn

from alit_hf import ALITModel


_GAIN = 8


def planted_model(side: str, places: torch.Tensor, **fields) -> ALITModel:
    """
    A model in whose layer l of `side`, in every rollout, latent token t and position `places[l, t]` find each other.

    Args:
        places: int64 `(layers, max_tokens)`, raster indices of positions.
    """
    model = ALITModel(tiny_config(num_decoder_layers=2, **fields)).eval()
    model.set_attn_implementation("eager")
    embeddings = model.embeddings if side == "encoder" else model.decoder
    layers = getattr(model, side).layers
    with torch.no_grad():
        for layer in layers:
            # Attention and MLP add nothing, so that each layer sees the embeddings.
            for projection in (layer.attention.o_proj, layer.mlp.fc2):
                nn.init.zeros_(projection.weight)
                nn.init.zeros_(projection.bias)
        # Beside it the image's content, of norm 1, hardly counts.
        nn.init.normal_(embeddings.position_embeddings, std=50)
        nn.init.zeros_(model.decoder.latent_projection.weight)
        tokens = _latent_embeddings(model, side)
        positions = embeddings.position_embeddings[0, 1:]
        if side == "decoder":
            positions = positions + embeddings.mask_token[0]
        tokens, positions = _normalised(tokens), _normalised(positions)
        for layer, place in zip(layers, places, strict=True):
            attention = layer.attention
            for projection in (attention.q_proj, attention.k_proj):
                nn.init.eye_(projection.weight)
                nn.init.zeros_(projection.bias)
            # Turns the embedding of each token into that of its place.
            of_tokens = attention.q_proj if side == "encoder" else attention.k_proj
            of_tokens.weight.copy_(_GAIN * (torch.linalg.pinv(tokens) @ positions[place]).T)
    return model


def _latent_embeddings(model: ALITModel, side: str) -> torch.Tensor:
    """What is there of latent tokens before the first layer, `(max_tokens, W)`."""
    if side == "decoder":
        return model.decoder.latent_position_embeddings + model.decoder.latent_projection.bias
    return torch.cat([model.latent_tokens(rollout) for rollout in range(model.config.max_rollouts)])


def _normalised(embeddings: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(embeddings, embeddings.shape[-1:])
