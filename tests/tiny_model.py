"""A model that loads and runs in a blink, with random weights, for tests of what is around it."""

from pathlib import Path

import torch

from alit_hf import ALITConfig, ALITImageProcessor, ALITModel


def tiny_config(**kwargs) -> ALITConfig:
    """32 px, 8x8 grid, 3 rollouts of 4 tokens of 6 bits."""
    fields = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_attention_heads": 4,
        "tokens_per_rollout": 4,
        "max_rollouts": 3,
        "codebook_size": 64,
        "codebook_dim": 4,
        "base_tokenizer_config": {
            "_class_name": "VQModel",
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "block_out_channels": [8, 8, 8],
            "layers_per_block": 1,
            "latent_channels": 8,
            "vq_embed_dim": 8,
            "num_vq_embeddings": 32,
            "norm_num_groups": 4,
            "mid_block_add_attention": False,
        },
    }
    return ALITConfig(**{**fields, **kwargs})


def save_tiny_model(folder: Path, seed: int = 0, **kwargs) -> str:
    """Saves model and image processor; gives the folder as `from_pretrained` and `--model` take it."""
    torch.manual_seed(seed)
    config = tiny_config(**kwargs)
    ALITModel(config).save_pretrained(folder)
    ALITImageProcessor.for_config(config).save_pretrained(folder)
    return str(folder)
