"""Where latent tokens look: attention between latent tokens and grid positions after every rollout (paper Fig. 3)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from alit_hf.model.configuration_alit import ALITConfig
from alit_hf.model.modeling_alit import ALITModel


SIDES = ("decoder", "encoder")


@dataclass(frozen=True)
class AttentionSource:
    """
    The layer whose attention is analysed.

    Args:
        side (`str`): `"decoder"`, where grid positions read latent tokens, or `"encoder"`, where latent tokens read
            grid positions.
        layer (`int`): its index in the distillation decoder or encoder, from 0.
    """

    side: str
    layer: int

    def check(self, config: ALITConfig) -> None:
        """
        Raises:
            `ValueError`: for a side or layer that the model does not have, or a grid of one position.
        """
        if self.side not in SIDES:
            raise ValueError(f"`side` is {self.side!r}, it must be one of {', '.join(SIDES)}.")
        last = num_layers(config, self.side) - 1
        if not 0 <= self.layer <= last:
            raise ValueError(f"`layer` is {self.layer}, the layers of the {self.side} are 0 to {last}.")
        if config.num_positions < 2:
            raise ValueError("The model's grid has one position, a map over it shows nothing.")

    def attention(self, model: ALITModel) -> nn.Module:
        """The layer's attention."""
        return getattr(model, self.side).layers[self.layer].attention


def num_layers(config: ALITConfig, side: str) -> int:
    """Layers of the distillation decoder or encoder."""
    return config.num_decoder_layers if side == "decoder" else config.num_encoder_layers


def maps_of_weights(weights: torch.Tensor, grid_size: tuple[int, int], side: str) -> torch.Tensor:
    """
    Maps of latent tokens over the image, from the attention weights of one layer.

    In both sequences the class token comes first, then the N grid positions in raster order, then the T latent tokens.
    In the decoder a token's map is how much each position attends to it, in the encoder how much it attends to each
    position: the mean over heads, scaled to a sum of 1. A token without any attention has a uniform map.

    Args:
        weights (`torch.Tensor` of shape `(B, heads, 1 + N + T, 1 + N + T)`): rows attend to columns.
        grid_size (`tuple[int, int]`): rows and columns of the grid.
        side (`str`): one of `SIDES`.

    Returns:
        maps `(B, T, rows, columns)`, float32.

    Raises:
        `ValueError`: for weights with NaN.
    """
    first_latent = 1 + grid_size[0] * grid_size[1]
    weights = weights.float().mean(dim=1)
    if side == "decoder":
        maps = weights[:, 1:first_latent, first_latent:].transpose(1, 2)
    else:
        maps = weights[:, first_latent:, 1:first_latent]
    total = maps.sum(dim=-1, keepdim=True)
    if total.isnan().any():
        raise ValueError("the model's attention has NaN")
    return torch.where(total > 0, maps / total, 1 / maps.shape[-1]).unflatten(-1, grid_size)


@torch.inference_mode()
def rollout_maps(
    model: ALITModel, pixel_values: torch.Tensor, sources: Sequence[AttentionSource]
) -> dict[AttentionSource, list[torch.Tensor]]:
    """
    Maps of all latent tokens over a batch of images, after every rollout.

    Args:
        model ([`ALITModel`]): in evaluation mode, with eager attention, as other kinds return no weights.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1] at the trained size.
        sources (`Sequence[AttentionSource]`): the layers.

    Returns:
        for each source, K tensors of maps, after rollout k = 1 … K of shape
        `(B, k * tokens_per_rollout, rows, columns)`, float32, each map with a sum of 1. See `maps_of_weights`.

    Raises:
        `ValueError`: before any work, for another kind of attention, a layer that the model does not have, or pixels
            of the wrong size; and for a model whose attention has NaN.
    """
    for source in sources:
        source.check(model.config)
    implementation = model.config._attn_implementation
    if implementation != "eager":
        raise ValueError(
            f"{implementation} attention has no weights to return: load the model with `attn_implementation="
            '"eager"` or call `set_attn_implementation("eager")`.'
        )
    # As in `alit encode`: only a model with dynamic halting draws random numbers.
    generator = torch.Generator(model.device).manual_seed(0)
    rollouts = model.rollouts(pixel_values.to(model.device), return_reconstruction=False, generator=generator)
    # Not `forward(output_decoder_attentions=True)`, which decodes only after its last rollout.
    with ExitStack() as recording:
        maps = {source: recording.enter_context(recorded_maps(model, source)) for source in sources}
        for _ in rollouts:
            pass
    return maps


@contextmanager
def recorded_maps(
    model: ALITModel, source: AttentionSource, grid_size: tuple[int, int] | None = None
) -> Iterator[list[torch.Tensor]]:
    """
    Yields a list to which every run of a layer, one per rollout, appends its maps.

    Args:
        model ([`ALITModel`]): with eager attention.
        source (`AttentionSource`): the layer.
        grid_size (`tuple[int, int]`, *optional*): rows and columns of the grid. Defaults to the trained one.
    """
    grid_size = grid_size or model.config.grid_size
    maps = []

    def record(module: nn.Module, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        maps.append(maps_of_weights(output[1], grid_size, source.side))

    handle = source.attention(model).register_forward_hook(record)
    try:
        yield maps
    finally:
        handle.remove()


__all__ = ["SIDES", "AttentionSource", "maps_of_weights", "num_layers", "recorded_maps", "rollout_maps"]
