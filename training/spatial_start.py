"""An initialisation of `ALITModel` for short runs: latent tokens start at places in the image and see what is near."""

import torch

from alit_hf import ALITModel


# In cells of the grid.
_SHORTEST_WAVELENGTH, _LONGEST_WAVELENGTH = 4.0, 400.0
# Beside the unit-norm image tokens.
_POSITION_NORM = 2.0
# Attention scores of a token with itself are about the square of this times the square root of a head's width.
_ATTENTION_GAIN = 1.2


@torch.no_grad()
def spatial_start(model: ALITModel) -> None:
    """
    Overwrites some of the initial weights, in place; training is free to move all of them.

    Position embeddings become sines and cosines of image positions. The latent tokens of all rollouts get embeddings
    of places spread evenly over the image (a Sobol sequence, so each rollout fills the gaps of those before). Keys
    start equal to queries, so that attention starts out between tokens of near places (after "mimetic initialisation",
    arXiv 2305.09828).
    """
    config = model.config
    rows, columns = config.grid_size
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    places = torch.quasirandom.SobolEngine(dimension=2).draw(config.max_tokens) * torch.tensor([rows, columns])
    waves = _waves(grid, config.hidden_size)
    # What all positions have in common would be common to all tokens, and tells them apart no better than nothing.
    scale, offset = _POSITION_NORM / (waves - waves.mean(dim=0)).norm(dim=-1).mean(), waves.mean(dim=0)
    for module in (model.embeddings, model.decoder):
        module.position_embeddings[0, 1:] = (waves - offset) * scale
    of_latents = (_waves(places, config.hidden_size) - offset) * scale
    model.latent_tokens.rollout_embeddings.copy_(of_latents.view_as(model.latent_tokens.rollout_embeddings))
    model.decoder.latent_position_embeddings.copy_(of_latents)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.attention.q_proj.weight.normal_(std=_ATTENTION_GAIN * config.hidden_size**-0.5)
        layer.attention.k_proj.weight.copy_(layer.attention.q_proj.weight)


def _waves(coordinates: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines `(N, width)` of rows and columns `(N, 2)`; zeros where `width` is no multiple of four."""
    num_waves = width // 4
    steps = torch.arange(num_waves) / max(1, num_waves)
    wavelengths = _SHORTEST_WAVELENGTH * (_LONGEST_WAVELENGTH / _SHORTEST_WAVELENGTH) ** steps
    angles = 2 * torch.pi * coordinates.unsqueeze(-1) / wavelengths
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(waves, (0, width - waves.shape[1]))
