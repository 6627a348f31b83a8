"""
Convolutional autoencoders in the names of taming-transformers, latent diffusion and LlamaGen, which differ in little
but names from each other and from diffusers'.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .rules import Rules, length, module_rules, same, shape


# The number of groups of a group normalisation is not in a state dict; the published autoencoders all have 32.
_NORM_NUM_GROUPS = 32


@dataclass(frozen=True)
class Names:
    """
    Published names of an autoencoder's modules.

    Args:
        layout: what has such names, for errors.
        down: the encoder's levels.
        up: the decoder's levels.
        is_up_from_finest: whether the decoder counts its levels from the finest one, as the encoder does. diffusers
            counts in the order of computation.
        resnets: the resnets of a level.
        middle: first resnet, attention and second resnet of the coarsest resolution.
        prefix: before all other names.
    """

    layout: str
    down: str = "encoder.down"
    up: str = "decoder.up"
    is_up_from_finest: bool = True
    resnets: str = "block"
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    prefix: str = ""


@dataclass(frozen=True)
class Level:
    """One resolution of an encoder or decoder."""

    side: str
    target: str  # name in diffusers
    source: str  # name in published checkpoints
    in_channels: int
    out_channels: int
    has_attention: bool
    is_resampled: bool  # down after an encoder's level, up after a decoder's

    @property
    def has_shortcut(self) -> bool:
        return self.in_channels != self.out_channels


def autoencoder_config(weights: Mapping, names: Names) -> dict:
    """The fields that diffusers' `VQModel` and `AutoencoderKL` share."""
    prefix = names.prefix
    num_levels = length(weights, f"{prefix}{names.down}")

    def sizes(key: str) -> torch.Size:
        return shape(weights, f"{prefix}{key}", 4, names.layout)

    def attention(levels: str) -> list[bool]:
        return [length(weights, f"{prefix}{levels}.{i}.attn") > 0 for i in range(num_levels)]

    attention_up = attention(names.up)
    if names.is_up_from_finest:
        attention_up.reverse()
    return {
        "in_channels": sizes("encoder.conv_in.weight")[1],
        "out_channels": sizes("decoder.conv_out.weight")[0],
        "down_block_types": [
            "AttnDownEncoderBlock2D" if found else "DownEncoderBlock2D" for found in attention(names.down)
        ],
        "up_block_types": ["AttnUpDecoderBlock2D" if found else "UpDecoderBlock2D" for found in attention_up],
        "block_out_channels": [
            sizes(f"{names.down}.{i}.{names.resnets}.0.conv1.weight")[0] for i in range(num_levels)
        ],
        "layers_per_block": length(weights, f"{prefix}{names.down}.0.{names.resnets}"),
        "latent_channels": sizes("decoder.conv_in.weight")[1],
        "norm_num_groups": _NORM_NUM_GROUPS,
        "mid_block_add_attention": f"{prefix}encoder.{names.middle[1]}.q.weight" in weights,
    }


def levels(config: dict, names: Names) -> list[Level]:
    channels = config["block_out_channels"]
    last = len(channels) - 1
    found = []
    for i, width in enumerate(channels):
        wider, finer = channels[min(i + 1, last)], channels[max(i - 1, 0)]
        attention = config["down_block_types"][i].startswith("Attn")
        found.append(
            Level("encoder", f"encoder.down_blocks.{i}", f"{names.down}.{i}", finer, width, attention, i < last)
        )
        attention = config["up_block_types"][last - i].startswith("Attn")
        source = f"{names.up}.{i if names.is_up_from_finest else last - i}"
        found.append(Level("decoder", f"decoder.up_blocks.{last - i}", source, wider, width, attention, i > 0))
    return found


def autoencoder_rules(config: dict, names: Names) -> Rules:
    """All but a codebook. The computation is diffusers', under other names."""
    rules = module_rules("quant_conv", "quant_conv") | module_rules("post_quant_conv", "post_quant_conv")
    for side in ("encoder", "decoder"):
        rules |= module_rules(f"{side}.conv_in", f"{side}.conv_in")
        rules |= module_rules(f"{side}.conv_norm_out", f"{side}.norm_out")
        rules |= module_rules(f"{side}.conv_out", f"{side}.conv_out")
        first, attention, second = names.middle
        for j, resnet in enumerate((first, second)):
            rules |= _resnet_rules(f"{side}.mid_block.resnets.{j}", f"{side}.{resnet}", shortcut=False)
        if config["mid_block_add_attention"]:
            rules |= _attention_rules(f"{side}.mid_block.attentions.0", f"{side}.{attention}")

    for level in levels(config, names):
        for j in range(config["layers_per_block"] + (level.side == "decoder")):
            source = f"{level.source}.{names.resnets}.{j}"
            rules |= _resnet_rules(f"{level.target}.resnets.{j}", source, shortcut=j == 0 and level.has_shortcut)
            if level.has_attention:
                rules |= _attention_rules(f"{level.target}.attentions.{j}", f"{level.source}.attn.{j}")
        if level.is_resampled:
            step = "downsample" if level.side == "encoder" else "upsample"
            rules |= module_rules(f"{level.target}.{step}rs.0.conv", f"{level.source}.{step}.conv")
    return rules


def _resnet_rules(target: str, source: str, shortcut: bool) -> Rules:
    rules = {}
    for name in ("norm1", "conv1", "norm2", "conv2"):
        rules |= module_rules(f"{target}.{name}", f"{source}.{name}")
    if shortcut:
        rules |= module_rules(f"{target}.conv_shortcut", f"{source}.nin_shortcut")
    return rules


def _attention_rules(target: str, source: str) -> Rules:
    # 1x1 convolutions become linear layers.
    matrix = functools.partial(torch.flatten, start_dim=1)
    rules = module_rules(f"{target}.group_norm", f"{source}.norm")
    for ours, theirs in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        rules[f"{target}.{ours}.weight"] = (matrix, (f"{source}.{theirs}.weight",))
        rules[f"{target}.{ours}.bias"] = (same, (f"{source}.{theirs}.bias",))
    return rules
