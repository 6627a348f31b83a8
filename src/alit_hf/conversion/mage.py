"""
The VQGAN of MAGE, base of published ALIT models. It differs from diffusers' `VQModel` in ways that the weights can
absorb without changing the result, see each function.
"""

import functools

import torch
from torch import nn

from .autoencoders import Names, levels
from .rules import Rules, module_rules, same


def mage_vqgan_rules(config: dict, names: Names) -> Rules:
    num_channels, code_dim = config["latent_channels"], config["vq_embed_dim"]
    rules = {
        "quantize.embedding.weight": (same, ("quantize.embedding.weight",)),
        "encoder.conv_in.weight": (same, ("encoder.conv_in.weight",)),
        "encoder.conv_in.bias": (_zero_bias, ("encoder.conv_in.weight",)),
        "encoder.conv_out.weight": (_centred_in_3x3, ("encoder.conv_out.weight",)),
        "encoder.conv_out.bias": (same, ("encoder.conv_out.bias",)),
    }
    # Latents and codebook share one space, without projections.
    for name, rows, columns in (("quant_conv", code_dim, num_channels), ("post_quant_conv", num_channels, code_dim)):
        rules[f"{name}.weight"] = (functools.partial(_identity_1x1, rows, columns), ())
        rules[f"{name}.bias"] = (functools.partial(torch.zeros, rows), ())
    rules |= module_rules("decoder.conv_in", "decoder.conv_in")
    rules |= module_rules("decoder.conv_out", "decoder.conv_out")
    first, _, second = names.middle
    for side in ("encoder", "decoder"):
        rules |= module_rules(f"{side}.conv_norm_out", f"{side}.norm_out")
        for j, resnet in enumerate((first, second)):
            rules |= _resnet_rules(f"{side}.mid_block.resnets.{j}", f"{side}.{resnet}", shortcut=False)

    for level in levels(config, names):
        for j in range(config["layers_per_block"]):
            source = f"{level.source}.{names.resnets}.{j}"
            rules |= _resnet_rules(f"{level.target}.resnets.{j}", source, shortcut=j == 0 and level.has_shortcut)
        if level.is_resampled and level.side == "decoder":
            rules |= module_rules(f"{level.target}.upsamplers.0.conv", f"{level.source}.upsample.conv")
        elif level.is_resampled:
            make = functools.partial(_average_pool, level.out_channels)
            rules[f"{level.target}.downsamplers.0.conv.weight"] = (make, ())
            make = functools.partial(torch.zeros, level.out_channels)
            rules[f"{level.target}.downsamplers.0.conv.bias"] = (make, ())
    return rules


def _resnet_rules(target: str, source: str, shortcut: bool) -> Rules:
    """
    Convolutions without bias, and a shortcut W that reads the block's own output h instead of its input x: h + W h
    instead of h + W x.
    """
    rules = module_rules(f"{target}.norm1", f"{source}.norm1") | module_rules(f"{target}.norm2", f"{source}.norm2")
    for name in ("conv1", "conv2"):
        rules[f"{target}.{name}.weight"] = (same, (f"{source}.{name}.weight",))
        rules[f"{target}.{name}.bias"] = (_zero_bias, (f"{source}.{name}.weight",))
    if shortcut:
        folded = (f"{source}.conv2.weight", f"{source}.nin_shortcut.weight")
        rules[f"{target}.conv2.weight"] = (_with_output_shortcut, folded)
        rules[f"{target}.conv_shortcut.weight"] = (_zero_1x1, (f"{source}.conv1.weight",))
        rules[f"{target}.conv_shortcut.bias"] = (_zero_bias, (f"{source}.conv1.weight",))
    return rules


def _zero_bias(weight: torch.Tensor) -> torch.Tensor:
    return weight.new_zeros(weight.shape[0])


def _zero_1x1(weight: torch.Tensor) -> torch.Tensor:
    return weight.new_zeros(*weight.shape[:2], 1, 1)


def _identity_1x1(rows: int, columns: int) -> torch.Tensor:
    return torch.eye(rows, columns)[:, :, None, None]


def _centred_in_3x3(weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(weight, (1, 1, 1, 1))


def _with_output_shortcut(weight: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
    """One convolution for `h + W h` with `h = weight * x`; in float64, so that the fold rounds only once."""
    shortcut = shortcut.double().flatten(1)
    factor = torch.eye(len(shortcut), dtype=torch.float64, device=shortcut.device) + shortcut
    return torch.einsum("oc,cikl->oikl", factor, weight.double()).float()


def _average_pool(channels: int) -> torch.Tensor:
    """2x2 average pooling as the 3x3 kernel of a convolution of stride 2 that pads right and bottom."""
    weight = torch.zeros(channels, channels, 3, 3)
    weight[range(channels), range(channels), :2, :2] = 0.25
    return weight
