"""Published ALIT checkpoints as [`ALITModel`]s."""

import argparse
import functools
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import nn

from .model.configuration_alit import _PAPER_SIZES, ALITConfig
from .model.modeling_alit import ALITModel
from .utils.error_reason import reason
from .utils.progress import ProgressBar


# Published checkpoints multiply the latents of a KL base by this, and do not divide by it before decoding.
_KL_SCALING_FACTOR = 0.2325

# The number of groups of a group normalisation is not in a state dict; the published bases have 32.
_NORM_NUM_GROUPS = 32

# Names of the loss networks that the published training kept inside the model.
_LOSS_NAMES = re.compile(r"loss|discriminator|lpips|perceptual|vgg|(?:^|[._])gans?(?:[._]|$)", re.IGNORECASE)

# How each parameter is computed: a function, and the published parameters that are its arguments.
_Rules = dict[str, tuple[Callable[..., torch.Tensor], tuple[str, ...]]]


def load_original(
    path_or_state_dict: str | os.PathLike | Mapping, num_attention_heads: int | None = None
) -> ALITModel:
    """
    Loads a published ALIT checkpoint (arXiv 2411.02393): VQGAN or KL base, discrete or continuous latent tokens.

    All sizes except the number of attention heads come from the shapes of the weights. Averaged weights (`"ema"`) are
    preferred to the model's own (`"model"`); discriminators and perceptual losses are dropped. Dynamic halting is off
    in the result, as in every new model; `config.halting_threshold` turns it on.

    Args:
        path_or_state_dict (`str`, `os.PathLike` or `dict`):
            A `.safetensors` file, any other file that `torch.load` reads (with `weights_only=True`, so that nothing in
            it is executed), or the contents of such a file: a state dict with the published names, or a dict that
            holds one under `"ema"` or `"model"`.
        num_attention_heads (`int`, *optional*):
            Attention heads of the distillation encoder and decoder. May be omitted if width and depth are those of a
            published model.

    Returns:
        the model in evaluation mode and float32, on the CPU.

    Raises:
        `ValueError`: if the file cannot be read safely, weights are missing, unknown or of the wrong shape, or
            `num_attention_heads` is needed or does not fit.
        `FileNotFoundError`: if the file does not exist.
    """
    weights = _without_losses(_select_weights(_read(path_or_state_dict)))
    # First on a device without memory, so that names and shapes that are not those of a model are refused before a
    # byte is allocated for them, whatever sizes a file declares.
    with torch.device("meta"):
        _convert({name: weight.to("meta") for name, weight in weights.items()}, num_attention_heads)
    return _convert(weights, num_attention_heads)


def _convert(weights: dict[str, torch.Tensor], num_attention_heads: int | None) -> ALITModel:
    base_prefix = _base_prefix(weights)
    config = _infer_config(weights, base_prefix, num_attention_heads)
    rules = _model_rules(config, base_prefix)

    sources = {source for _, arguments in rules.values() for source in arguments}
    _raise_unless_same_names(expected=sources, found=weights.keys())
    for source in ProgressBar(sources, desc="reading", unit="weight"):
        weight = weights[source]
        if not weight.is_floating_point() or not (weight.is_meta or torch.isfinite(weight).all()):
            raise ValueError(f"The weight {source!r} in `path_or_state_dict` must hold finite floating point numbers.")
    converted = {
        name: make(*(weights[source].detach().float() for source in arguments)).contiguous()
        for name, (make, arguments) in ProgressBar(rules.items(), desc="converting", unit="weight")
    }
    model = ALITModel(config)
    try:
        model.load_state_dict(converted)
    except RuntimeError as error:
        raise ValueError(f"The weights in `path_or_state_dict` do not fit together. {error}") from error
    return model.float().eval()


def _read(path_or_state_dict: str | os.PathLike | Mapping) -> Mapping:
    if isinstance(path_or_state_dict, Mapping):
        return path_or_state_dict
    if not isinstance(path_or_state_dict, (str, os.PathLike)):
        raise ValueError(
            f"`path_or_state_dict` is a {type(path_or_state_dict).__name__}, it must be a path or a state dict."
        )
    path = os.fspath(path_or_state_dict)
    try:
        if path.endswith(".safetensors"):
            checkpoint = load_file(path)
        else:
            # Published files hold their training arguments beside the weights. Mapped, tensors cannot take more memory
            # than the file has bytes.
            with torch.serialization.safe_globals([argparse.Namespace]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # what the readers raise on foreign or damaged files is not documented
        raise ValueError(
            f"`path_or_state_dict` is {path!r}, which cannot be read as weights with plain training arguments: "
            f"{reason(error)}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"`path_or_state_dict` is {path!r}, which holds a {type(checkpoint).__name__}, not a state dict."
        )
    return checkpoint


def _select_weights(checkpoint: Mapping) -> dict[str, torch.Tensor]:
    """The weights to convert, without the prefixes of distributed training."""
    # In this order, so that the model's own weights complete an average of only some.
    parts = [(name, checkpoint[name]) for name in ("model", "ema") if checkpoint.get(name) is not None]
    weights = {}
    for name, part in parts or [("path_or_state_dict", checkpoint)]:
        if not isinstance(part, Mapping):
            raise ValueError(f"`{name}` of the checkpoint is a {type(part).__name__}, it must be a state dict.")
        for key, value in part.items():
            if not isinstance(key, str):
                raise ValueError(f"`{name}` holds the key {key!r}, keys must be names of weights.")
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"`{name}` holds a {type(value).__name__} under {key!r}, it must be a tensor.")
            if value.layout != torch.strided or value.is_quantized:
                raise ValueError(f"`{name}` holds a sparse or quantised tensor under {key!r}, it must be a dense one.")
            weights[re.sub(r"^(module\.)+", "", key)] = value
    return weights


def _without_losses(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # A module that contains a loss network is a loss as a whole, including its nameless scalars. Only the base
    # tokenizer may be a model that was trained with a loss inside.
    loss_modules = {key.split(".")[0] for key in weights if _LOSS_NAMES.search(key)} - {"base_tokenizer"}
    return {
        key: value
        for key, value in weights.items()
        if not _LOSS_NAMES.search(key) and key.split(".")[0] not in loss_modules
    }


def _raise_unless_same_names(expected: Iterable[str], found: Iterable[str]):
    def listed(names):
        names = sorted(names)
        return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    problems = []
    if missing:
        problems.append(f"lacks {listed(missing)}")
    if unknown:
        problems.append(f"has unknown weights {listed(unknown)}")
    if problems:
        raise ValueError(f"`path_or_state_dict` is not a published ALIT checkpoint: it {' and '.join(problems)}.")


# Sizes


def _shape(weights: Mapping, key: str, dimensions: int) -> torch.Size:
    if key not in weights:
        _raise_unless_same_names(expected={key}, found=())
    if weights[key].dim() != dimensions:
        raise ValueError(f"{key} has shape {tuple(weights[key].shape)}, it must have {dimensions} dimensions.")
    return weights[key].shape


def _length(weights: Mapping, module_list: str) -> int:
    """Number of entries of a module list. Counted, as with the highest index a damaged name could ask for any size."""
    pattern = re.compile(re.escape(module_list) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, weights) if match})


def _base_prefix(weights: Mapping) -> str:
    ending = "encoder.conv_in.weight"
    prefixes = [
        key.removesuffix(ending) for key in weights if key.startswith("base_tokenizer.") and key.endswith(f".{ending}")
    ]
    if len(prefixes) != 1:
        raise ValueError(
            f"`path_or_state_dict` has {len(prefixes)} base tokenizers (weights named base_tokenizer.….{ending}), it "
            "must have 1."
        )
    return prefixes[0]


def _infer_config(weights: Mapping, base_prefix: str, num_attention_heads: int | None) -> ALITConfig:
    rollouts, tokens_per_rollout, width = _shape(weights, "timestep_embedding", 3)
    num_positions = _shape(weights, "encoder_positional_embedding", 2)[0] - 1
    grid_side = math.isqrt(max(num_positions, 0))
    if grid_side**2 != num_positions:
        raise ValueError(
            f"encoder_positional_embedding has {num_positions} positions beside the class token, it must be a square "
            "number of them."
        )
    _, channels, patch_size, _ = _shape(weights, "patch_embed.weight", 4)
    num_encoder_layers = _length(weights, "encoder.transformer")
    num_decoder_layers = _length(weights, "decoder.transformer")
    mlp_width = _shape(weights, "encoder.transformer.0.mlp.c_fc.weight", 2)[0]
    quantize = "quantize.embedding.weight" in weights
    codebook = {"codebook_size": _shape(weights, "quantize.embedding.weight", 2)[0]} if quantize else {}
    if num_attention_heads is None:
        num_attention_heads = _published_heads(width, num_encoder_layers, num_decoder_layers)
    base = _infer_base_config(weights, base_prefix)
    return ALITConfig(
        image_size=grid_side * patch_size,
        patch_size=patch_size,
        num_channels=channels,
        hidden_size=width,
        num_encoder_layers=num_encoder_layers,
        num_decoder_layers=num_decoder_layers,
        num_attention_heads=num_attention_heads,
        mlp_ratio=mlp_width / width,
        tokens_per_rollout=tokens_per_rollout,
        max_rollouts=rollouts,
        codebook_dim=_shape(weights, "pre_quantizer_mlp.weight", 2)[0],
        quantize=quantize,
        base_tokenizer_config=base,
        unscale_base_latents=base["_class_name"] == "VQModel",
        **codebook,
    )


def _published_heads(width: int, num_encoder_layers: int, num_decoder_layers: int) -> int:
    for published_width, published_layers, heads in _PAPER_SIZES.values():
        if width == published_width and num_encoder_layers == num_decoder_layers == published_layers:
            return heads
    raise ValueError(
        f"`num_attention_heads` must be given: it does not show in weights, and width {width} with "
        f"{num_encoder_layers} encoder and {num_decoder_layers} decoder layers is not a published size."
    )


def _infer_base_config(weights: Mapping, prefix: str) -> dict:
    levels = range(_length(weights, f"{prefix}encoder.down"))
    attention_down, attention_up = (
        [_length(weights, f"{prefix}{side}.{i}.attn") > 0 for i in levels] for side in ("encoder.down", "decoder.up")
    )
    config = {
        "in_channels": _shape(weights, f"{prefix}encoder.conv_in.weight", 4)[1],
        "out_channels": _shape(weights, f"{prefix}decoder.conv_out.weight", 4)[0],
        "down_block_types": [
            "AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in attention_down
        ],
        "up_block_types": [
            "AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D" for attention in reversed(attention_up)
        ],
        "block_out_channels": [
            _shape(weights, f"{prefix}encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels
        ],
        "layers_per_block": _length(weights, f"{prefix}encoder.down.0.block"),
        "latent_channels": _shape(weights, f"{prefix}decoder.conv_in.weight", 4)[1],
        "norm_num_groups": _NORM_NUM_GROUPS,
        "mid_block_add_attention": f"{prefix}encoder.mid.attn_1.q.weight" in weights,
    }
    if f"{prefix}quantize.embedding.weight" not in weights:
        return {"_class_name": "AutoencoderKL", **config, "scaling_factor": _KL_SCALING_FACTOR}
    num_codes, code_dim = _shape(weights, f"{prefix}quantize.embedding.weight", 2)
    config |= {"num_vq_embeddings": num_codes, "vq_embed_dim": code_dim}
    # diffusers would have one more.
    return {"_class_name": "VQModel", **config, "_decoder_resnets_per_block": config["layers_per_block"]}


# The distillation encoder and decoder


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _third(tensor: torch.Tensor, index: int) -> torch.Tensor:
    return tensor.chunk(3)[index]


def _module_rules(target: str, source: str) -> _Rules:
    """A module with weight and bias under a new name."""
    return {f"{target}.{name}": (_same, (f"{source}.{name}",)) for name in ("weight", "bias")}


def _transformer_rules(target: str, source: str, num_layers: int) -> _Rules:
    modules = {
        "layernorm_before": "ln_1",
        "attention.o_proj": "attn.out_proj",
        "layernorm_after": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    rules = {}
    for i in range(num_layers):
        for ours, theirs in modules.items():
            rules |= _module_rules(f"{target}.{i}.{ours}", f"{source}.{i}.{theirs}")
        for index, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            for name in ("weight", "bias"):
                make = functools.partial(_third, index=index)
                rules[f"{target}.{i}.attention.{projection}.{name}"] = (make, (f"{source}.{i}.attn.in_proj_{name}",))
    return rules


def _model_rules(config: ALITConfig, base_prefix: str) -> _Rules:
    row = functools.partial(torch.unsqueeze, dim=0)
    rules = {
        "embeddings.cls_token": (row, ("encoder_class_embedding",)),
        "embeddings.mask_token": (_same, ("encoder_mask_token",)),
        "embeddings.position_embeddings": (row, ("encoder_positional_embedding",)),
        "latent_tokens.tokens": (_same, ("latent_tokens",)),
        "latent_tokens.position_embeddings": (_same, ("latent_token_positional_embedding",)),
        "latent_tokens.rollout_embeddings": (_same, ("timestep_embedding",)),
        "decoder.cls_token": (row, ("decoder_class_embedding",)),
        "decoder.mask_token": (_same, ("decoder_mask_token",)),
        "decoder.position_embeddings": (row, ("decoder_positional_embedding",)),
        "decoder.latent_position_embeddings": (_same, ("decoder.latent_token_positional_embedding",)),
    }
    if config.quantize:
        rules["quantizer.codebook.weight"] = (_same, ("quantize.embedding.weight",))
    modules = {
        "embeddings.patch_embeddings": "patch_embed",
        "encoder.layernorm_pre": "encoder_ln_pre",
        "encoder.layernorm_rollout": "encoder_ln_recursive",
        "encoder.layernorm_post": "encoder_ln_post",
        "latent_projection": "pre_quantizer_mlp",
        "decoder.latent_projection": "decoder.decoder_embed",
        "decoder.layernorm_pre": "decoder.ln_pre",
        "decoder.layernorm_post": "decoder.ln_post",
        "decoder.head.fc1": "decoder.ffn.0",
        "decoder.head.fc2": "decoder.ffn.2",
    }
    for ours, theirs in modules.items():
        rules |= _module_rules(ours, theirs)
    rules |= _transformer_rules("encoder.layers", "encoder.transformer", config.num_encoder_layers)
    rules |= _transformer_rules("decoder.layers", "decoder.transformer", config.num_decoder_layers)

    base_rules = _mage_vqgan_rules if config.base_type == "vqgan" else _kl_rules
    for name, (make, sources) in base_rules(config.base_tokenizer_config).items():
        rules[f"base_tokenizer.model.{name}"] = (make, tuple(base_prefix + source for source in sources))
    return rules


# Base tokenizers


@dataclass(frozen=True)
class _Level:
    """One resolution of a base tokenizer's encoder or decoder."""

    side: str
    target: str  # name in diffusers
    source: str  # name in published checkpoints
    in_channels: int
    out_channels: int
    has_attention: bool
    is_resampled: bool  # down after an encoder's level, up after a decoder's


def _levels(base: dict) -> list[_Level]:
    channels = base["block_out_channels"]
    last = len(channels) - 1
    levels = []
    for i, width in enumerate(channels):
        wider, finer = channels[min(i + 1, last)], channels[max(i - 1, 0)]
        attention = base["down_block_types"][i].startswith("Attn")
        levels.append(
            _Level("encoder", f"encoder.down_blocks.{i}", f"encoder.down.{i}", finer, width, attention, i < last)
        )
        # Published decoders also count their levels from the finest; diffusers counts in the order of computation.
        attention = base["up_block_types"][last - i].startswith("Attn")
        levels.append(
            _Level("decoder", f"decoder.up_blocks.{last - i}", f"decoder.up.{i}", wider, width, attention, i > 0)
        )
    return levels


def _attention_rules(target: str, source: str) -> _Rules:
    # 1x1 convolutions become linear layers.
    matrix = functools.partial(torch.flatten, start_dim=1)
    rules = _module_rules(f"{target}.group_norm", f"{source}.norm")
    for ours, theirs in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        rules[f"{target}.{ours}.weight"] = (matrix, (f"{source}.{theirs}.weight",))
        rules[f"{target}.{ours}.bias"] = (_same, (f"{source}.{theirs}.bias",))
    return rules


def _kl_rules(base: dict) -> _Rules:
    """Latent diffusion's KL autoencoder, which is the same as diffusers' under other names."""
    rules = _module_rules("quant_conv", "quant_conv") | _module_rules("post_quant_conv", "post_quant_conv")
    for side in ("encoder", "decoder"):
        rules |= _module_rules(f"{side}.conv_in", f"{side}.conv_in")
        rules |= _module_rules(f"{side}.conv_norm_out", f"{side}.norm_out")
        rules |= _module_rules(f"{side}.conv_out", f"{side}.conv_out")
        for j in range(2):
            rules |= _kl_resnet_rules(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}", shortcut=False)
        if base["mid_block_add_attention"]:
            rules |= _attention_rules(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1")

    for level in _levels(base):
        num_resnets = base["layers_per_block"] + (level.side == "decoder")
        for j in range(num_resnets):
            shortcut = j == 0 and level.in_channels != level.out_channels
            rules |= _kl_resnet_rules(f"{level.target}.resnets.{j}", f"{level.source}.block.{j}", shortcut)
            if level.has_attention:
                rules |= _attention_rules(f"{level.target}.attentions.{j}", f"{level.source}.attn.{j}")
        if level.is_resampled:
            step = "downsample" if level.side == "encoder" else "upsample"
            rules |= _module_rules(f"{level.target}.{step}rs.0.conv", f"{level.source}.{step}.conv")
    return rules


def _kl_resnet_rules(target: str, source: str, shortcut: bool) -> _Rules:
    rules = {}
    for name in ("norm1", "conv1", "norm2", "conv2"):
        rules |= _module_rules(f"{target}.{name}", f"{source}.{name}")
    if shortcut:
        rules |= _module_rules(f"{target}.conv_shortcut", f"{source}.nin_shortcut")
    return rules


def _mage_vqgan_rules(base: dict) -> _Rules:
    """
    The VQGAN of MAGE. It differs from diffusers' `VQModel` in ways that the weights can absorb without changing the
    result, see each function below.
    """
    num_channels, code_dim = base["latent_channels"], base["vq_embed_dim"]
    rules = {
        "quantize.embedding.weight": (_same, ("quantize.embedding.weight",)),
        "encoder.conv_in.weight": (_same, ("encoder.conv_in.weight",)),
        "encoder.conv_in.bias": (_zero_bias, ("encoder.conv_in.weight",)),
        "encoder.conv_out.weight": (_centred_in_3x3, ("encoder.conv_out.weight",)),
        "encoder.conv_out.bias": (_same, ("encoder.conv_out.bias",)),
    }
    # Latents and codebook share one space, without projections.
    for name, rows, columns in (("quant_conv", code_dim, num_channels), ("post_quant_conv", num_channels, code_dim)):
        rules[f"{name}.weight"] = (functools.partial(_identity_1x1, rows, columns), ())
        rules[f"{name}.bias"] = (functools.partial(torch.zeros, rows), ())
    rules |= _module_rules("decoder.conv_in", "decoder.conv_in")
    rules |= _module_rules("decoder.conv_out", "decoder.conv_out")
    for side in ("encoder", "decoder"):
        rules |= _module_rules(f"{side}.conv_norm_out", f"{side}.norm_out")
        for j in range(2):
            rules |= _mage_resnet_rules(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}", shortcut=False)

    for level in _levels(base):
        for j in range(base["layers_per_block"]):
            shortcut = j == 0 and level.in_channels != level.out_channels
            rules |= _mage_resnet_rules(f"{level.target}.resnets.{j}", f"{level.source}.block.{j}", shortcut)
        if level.is_resampled and level.side == "decoder":
            rules |= _module_rules(f"{level.target}.upsamplers.0.conv", f"{level.source}.upsample.conv")
        elif level.is_resampled:
            make = functools.partial(_average_pool, level.out_channels)
            rules[f"{level.target}.downsamplers.0.conv.weight"] = (make, ())
            make = functools.partial(torch.zeros, level.out_channels)
            rules[f"{level.target}.downsamplers.0.conv.bias"] = (make, ())
    return rules


def _mage_resnet_rules(target: str, source: str, shortcut: bool) -> _Rules:
    """
    Convolutions without bias, and a shortcut W that reads the block's own output h instead of its input x: h + W h
    instead of h + W x.
    """
    rules = _module_rules(f"{target}.norm1", f"{source}.norm1") | _module_rules(f"{target}.norm2", f"{source}.norm2")
    for name in ("conv1", "conv2"):
        rules[f"{target}.{name}.weight"] = (_same, (f"{source}.{name}.weight",))
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


__all__ = ["load_original"]
