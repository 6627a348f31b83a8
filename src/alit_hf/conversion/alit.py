"""Published ALIT checkpoints."""

import functools
import math
from collections.abc import Mapping

import torch

from alit_hf.model.configuration_alit import _PAPER_SIZES, ALITConfig
from alit_hf.model.modeling_alit import ALITModel

from .autoencoders import Names, autoencoder_config, autoencoder_rules
from .mage import mage_vqgan_rules
from .rules import Rules, fill, length, module_rules, same, shape


_LAYOUT = "published ALIT checkpoint"

# Published checkpoints multiply the latents of a KL base by this, and do not divide by it before decoding.
_KL_SCALING_FACTOR = 0.2325


def is_alit(weights: Mapping) -> bool:
    """Whether the names are those of a published ALIT checkpoint, even of a damaged one."""
    return "latent_tokens" in weights or any(name.startswith("base_tokenizer.") for name in weights)


def convert_alit(weights: dict[str, torch.Tensor], num_attention_heads: int | None) -> ALITModel:
    names = Names(_LAYOUT, prefix=_base_prefix(weights))
    config = _infer_config(weights, names, num_attention_heads)
    model = ALITModel(config)
    fill(model, _model_rules(config, names), weights, _LAYOUT)
    return model


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


def _shape(weights: Mapping, key: str, dimensions: int) -> torch.Size:
    return shape(weights, key, dimensions, _LAYOUT)


def _infer_config(weights: Mapping, names: Names, num_attention_heads: int | None) -> ALITConfig:
    rollouts, tokens_per_rollout, width = _shape(weights, "timestep_embedding", 3)
    num_positions = _shape(weights, "encoder_positional_embedding", 2)[0] - 1
    grid_side = math.isqrt(max(num_positions, 0))
    if grid_side**2 != num_positions:
        raise ValueError(
            f"encoder_positional_embedding has {num_positions} positions beside the class token, it must be a square "
            "number of them."
        )
    _, channels, patch_size, _ = _shape(weights, "patch_embed.weight", 4)
    num_encoder_layers = length(weights, "encoder.transformer")
    num_decoder_layers = length(weights, "decoder.transformer")
    mlp_width = _shape(weights, "encoder.transformer.0.mlp.c_fc.weight", 2)[0]
    quantize = "quantize.embedding.weight" in weights
    codebook = {"codebook_size": _shape(weights, "quantize.embedding.weight", 2)[0]} if quantize else {}
    if num_attention_heads is None:
        num_attention_heads = _published_heads(width, num_encoder_layers, num_decoder_layers)
    base = _infer_base_config(weights, names)
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


def _infer_base_config(weights: Mapping, names: Names) -> dict:
    config = autoencoder_config(weights, names)
    codebook = f"{names.prefix}quantize.embedding.weight"
    if codebook not in weights:
        return {"_class_name": "AutoencoderKL", **config, "scaling_factor": _KL_SCALING_FACTOR}
    num_codes, code_dim = _shape(weights, codebook, 2)
    config |= {"num_vq_embeddings": num_codes, "vq_embed_dim": code_dim}
    # diffusers would have one more.
    return {"_class_name": "VQModel", **config, "_decoder_resnets_per_block": config["layers_per_block"]}


def _third(tensor: torch.Tensor, index: int) -> torch.Tensor:
    return tensor.chunk(3)[index]


def _transformer_rules(target: str, source: str, num_layers: int) -> Rules:
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
            rules |= module_rules(f"{target}.{i}.{ours}", f"{source}.{i}.{theirs}")
        for index, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            for name in ("weight", "bias"):
                make = functools.partial(_third, index=index)
                rules[f"{target}.{i}.attention.{projection}.{name}"] = (make, (f"{source}.{i}.attn.in_proj_{name}",))
    return rules


def _model_rules(config: ALITConfig, names: Names) -> Rules:
    row = functools.partial(torch.unsqueeze, dim=0)
    rules = {
        "embeddings.cls_token": (row, ("encoder_class_embedding",)),
        "embeddings.mask_token": (same, ("encoder_mask_token",)),
        "embeddings.position_embeddings": (row, ("encoder_positional_embedding",)),
        "latent_tokens.tokens": (same, ("latent_tokens",)),
        "latent_tokens.position_embeddings": (same, ("latent_token_positional_embedding",)),
        "latent_tokens.rollout_embeddings": (same, ("timestep_embedding",)),
        "decoder.cls_token": (row, ("decoder_class_embedding",)),
        "decoder.mask_token": (same, ("decoder_mask_token",)),
        "decoder.position_embeddings": (row, ("decoder_positional_embedding",)),
        "decoder.latent_position_embeddings": (same, ("decoder.latent_token_positional_embedding",)),
    }
    if config.quantize:
        rules["quantizer.codebook.weight"] = (same, ("quantize.embedding.weight",))
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
        rules |= module_rules(ours, theirs)
    rules |= _transformer_rules("encoder.layers", "encoder.transformer", config.num_encoder_layers)
    rules |= _transformer_rules("decoder.layers", "decoder.transformer", config.num_decoder_layers)

    base_rules = mage_vqgan_rules if config.base_type == "vqgan" else autoencoder_rules
    for name, (make, sources) in base_rules(config.base_tokenizer_config, names).items():
        rules[f"base_tokenizer.model.{name}"] = (make, tuple(names.prefix + source for source in sources))
    return rules
