"""An initialisation of `ALITModel` for short runs: latent tokens start at places in the image and see what is near."""

import torch

from alit_hf import ALITModel


# In cells of the grid.
_SHORTEST_WAVELENGTH, _LONGEST_WAVELENGTH = 4.0, 400.0
# Beside the unit-norm image tokens.
_POSITION_NORM = 1.0
# Attention scores of a token with itself are about the square of this times the square root of a head's width.
_ATTENTION_GAIN = 1.2
# Of values and of outputs: what attention gathers from the image must not drown in what tokens are without it.
_VALUE_GAIN = 2.0
_DECODER_LATENT_GAIN = 4.0


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
        for projection in (layer.attention.v_proj, layer.attention.o_proj):
            projection.weight.normal_(std=_VALUE_GAIN * config.hidden_size**-0.5)
    model.decoder.latent_projection.weight.normal_(std=_DECODER_LATENT_GAIN * config.hidden_size**-0.5)


@torch.no_grad()
def informative_projection(model: ALITModel, pixel_values: torch.Tensor) -> None:
    """
    Sets the projection to factorised latents so that they begin as what differs most between images: the directions
    with the largest share of variance between images in all variance between tokens, each scaled to unit variance
    (linear discriminants). A random projection mostly shows which token it is, and codes that do not depend on the
    image are what short runs then get stuck in.

    Args:
        model: after `spatial_start`.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): a batch of training images.
    """
    inputs = []
    hook = model.latent_projection.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].float()))
    try:
        for _ in model.rollouts(pixel_values, return_reconstruction=False):
            pass
    finally:
        hook.remove()
    tokens = torch.cat(inputs, dim=1)
    mean = tokens.mean(dim=(0, 1))
    between_tokens = _covariance(tokens - mean)
    between_images = _covariance(tokens - tokens.mean(dim=0))
    ridge = 1e-4 * between_tokens.diagonal().mean() * torch.eye(len(between_tokens), device=tokens.device)
    variances, directions = torch.linalg.eigh(between_tokens + ridge)
    whitening = directions / variances.sqrt()
    _, discriminants = torch.linalg.eigh(whitening.T @ between_images @ whitening)
    weight = (whitening @ discriminants[:, -model.config.codebook_dim :]).T.contiguous()
    bias = -weight @ mean
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(weight, 0)
        torch.distributed.broadcast(bias, 0)
    model.latent_projection.weight.copy_(weight)
    model.latent_projection.bias.copy_(bias)


def _covariance(centred: torch.Tensor) -> torch.Tensor:
    vectors = centred.flatten(0, 1)
    return vectors.T @ vectors / len(vectors)


def _waves(coordinates: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines `(N, width)` of rows and columns `(N, 2)`; zeros where `width` is no multiple of four."""
    num_waves = width // 4
    steps = torch.arange(num_waves) / max(1, num_waves)
    wavelengths = _SHORTEST_WAVELENGTH * (_LONGEST_WAVELENGTH / _SHORTEST_WAVELENGTH) ** steps
    angles = 2 * torch.pi * coordinates.unsqueeze(-1) / wavelengths
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(waves, (0, width - waves.shape[1]))
