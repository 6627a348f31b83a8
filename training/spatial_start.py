"""A start of `ALITModel` for short runs: latent tokens have places in the image and read what is near."""

from dataclasses import dataclass

import torch
from torch import nn

from alit_hf import ALITConfig, ALITModel


# In cells of the grid.
_SHORTEST_WAVELENGTH, _LONGEST_WAVELENGTH = 4.0, 64.0
# Beside the unit-norm content of image tokens.
_POSITION_NORM = 1.5
_LATENT_MARK = 0.75
# What the narrowest and the widest reading head score a token's own place with; others are evenly between.
_NARROWEST_SCORE, _WIDEST_SCORE = 120.0, 6.0
# Of the mark, as a share of what a token's own place scores: enough that the first layers read image tokens (encoder)
# or latent tokens (decoder) only.
_MARK_SCORE_SHARE = 2.0
_PATCH_GAIN = 0.3
_RESIDUAL_SHARE = 0.1
# The encoder reads once a rollout, and what it has read must not outgrow the positions.
_ENCODER_GAIN, _DECODER_GAIN = 0.015, 1.0
_DECODER_LATENT_GAIN = 3.0


@dataclass(frozen=True)
class _Channels:
    """Who uses which of the W channels at the start: one slot of content for each reading head, then positions."""

    width: int
    head_dim: int

    @property
    def reading_heads(self) -> int:
        return self.width // self.head_dim - 1

    def slot(self, head: int) -> slice:
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    @property
    def num_positions(self) -> int:
        """Sines and cosines of rows and columns."""
        return (self.head_dim - 2) // 4 * 4

    @property
    def positions(self) -> slice:
        start = self.width - self.head_dim
        return slice(start, start + self.num_positions)

    @property
    def mark(self) -> int:
        """Tells latent tokens from the others."""
        return self.width - 1


def check_spatial_start(config: ALITConfig) -> None:
    """Raises `ValueError` where the sizes leave no room for the start."""
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if heads < 2 or head_dim < max(10, config.base_embed_dim + 2):
        raise ValueError(
            f"`loss.spatial_start` is True, but the model has {heads} heads of {head_dim} channels on base latents of "
            f"{config.base_embed_dim}: it needs two heads or more, each of at least 10 channels and of 2 more than "
            "the base latents have."
        )


@torch.no_grad()
def spatial_start(model: ALITModel) -> None:
    """
    Overwrites initial weights, in place, so that codes depend on the image from the first step; training is free to
    move all of them.

    Each latent token gets a place, those of every rollout spread evenly over the image and filling the gaps of those
    before (a Sobol sequence; as many tokens as grid positions have one each). In the first layer of the encoder all
    heads but one read the image around a token's own place, each in another width and to channels of its own; in the
    first layer of the decoder the grid positions read the latent tokens around theirs in the same way. All else that
    layers add to their input starts small, since rollouts would add it up.

    Raises:
        `ValueError`: see `check_spatial_start`.
    """
    config = model.config
    check_spatial_start(config)
    channels = _Channels(config.hidden_size, config.hidden_size // config.num_attention_heads)
    rows, columns = config.grid_size
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    places = torch.quasirandom.SobolEngine(dimension=2).draw(config.max_tokens) * torch.tensor([rows, columns])

    for module in (model.embeddings, model.decoder):
        module.position_embeddings.zero_()
        module.position_embeddings[0, 1:] = _at_places(grid, channels)
        module.mask_token.zero_()
        # Without a place, and in a channel that nobody reads.
        module.cls_token.zero_()
        module.cls_token[..., channels.slot(channels.reading_heads - 1).stop - 1] = 1.0
    latents = _at_places(places.floor(), channels)
    latents[:, channels.mark] = _LATENT_MARK
    model.latent_tokens.tokens.zero_()
    model.latent_tokens.position_embeddings.zero_()
    model.latent_tokens.rollout_embeddings.copy_(latents.view_as(model.latent_tokens.rollout_embeddings))
    model.decoder.latent_position_embeddings.copy_(latents)

    _start_patches(model.embeddings.patch_embeddings, channels.head_dim - config.base_embed_dim)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.attention.o_proj.weight.mul_(_RESIDUAL_SHARE)
        layer.mlp.fc2.weight.mul_(_RESIDUAL_SHARE)
    _start_reading(model.encoder.layers[0].attention, channels, -_MARK_SCORE_SHARE, _ENCODER_GAIN)
    _start_reading(model.decoder.layers[0].attention, channels, _MARK_SCORE_SHARE, _DECODER_GAIN)
    projection = model.decoder.latent_projection.weight
    projection.zero_()
    nn.init.orthogonal_(projection[channels.slot(0)], gain=_DECODER_LATENT_GAIN)


def _at_places(coordinates: torch.Tensor, channels: _Channels) -> torch.Tensor:
    """Embeddings `(N, W)` of rows and columns `(N, 2)`, the more alike the nearer."""
    num_waves = channels.num_positions // 4
    steps = torch.linspace(0, 1, num_waves)
    wavelengths = _SHORTEST_WAVELENGTH * (_LONGEST_WAVELENGTH / _SHORTEST_WAVELENGTH) ** steps
    angles = 2 * torch.pi * coordinates.unsqueeze(-1) / wavelengths
    embeddings = torch.zeros(len(coordinates), channels.width)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    embeddings[:, channels.positions] = _POSITION_NORM * waves / (2 * num_waves) ** 0.5
    return embeddings


def _start_patches(patches: nn.Conv2d, num_channels: int) -> None:
    """Orthogonal features of mid-grey patches are zero; one constant channel keeps a patch's contrast readable."""
    features = torch.empty(num_channels - 1, patches.weight[0].numel())
    nn.init.orthogonal_(features, gain=_PATCH_GAIN)
    patches.weight.zero_()
    patches.bias.zero_()
    patches.weight[: num_channels - 1] = features.view(-1, *patches.weight.shape[1:])
    patches.bias[: num_channels - 1] = -0.5 * features.sum(dim=1)
    patches.bias[num_channels - 1] = 1.0


def _start_reading(attention: nn.Module, channels: _Channels, mark_score_share: float, gain: float) -> None:
    """All heads but the last read the first slot of content around a token's place, each into its own slot."""
    heads, head_dim = channels.reading_heads, channels.head_dim
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[: heads * head_dim] = 0
    attention.o_proj.weight[:, : heads * head_dim] = 0
    scores = _NARROWEST_SCORE * (_WIDEST_SCORE / _NARROWEST_SCORE) ** torch.linspace(0, 1, heads)
    # Behind a layer norm a token's squared norm is its width. About three quarters of it are the position, and what a
    # latent token's mark has of the norm is about as much as it has beside the position alone.
    unit_score = 0.75 * channels.width / head_dim**0.5
    mark = _LATENT_MARK * (channels.width / (_POSITION_NORM**2 + _LATENT_MARK**2)) ** 0.5
    for head, score in enumerate(scores.tolist()):
        slot, waves = channels.slot(head), slice(head * head_dim, head * head_dim + channels.num_positions)
        same = torch.eye(channels.num_positions) * (score / unit_score) ** 0.5
        attention.q_proj.weight[waves, channels.positions] = same
        attention.k_proj.weight[waves, channels.positions] = same
        attention.q_proj.bias[slot.stop - 1] = score**0.5
        attention.k_proj.weight[slot.stop - 1, channels.mark] = mark_score_share * (score * head_dim) ** 0.5 / mark
        attention.v_proj.weight[slot, channels.slot(0)] = torch.eye(head_dim)
        attention.o_proj.weight[slot, slot] = gain * torch.eye(head_dim)
