"""Configurations and models small enough for hundreds of runs, and yet with every part and nothing degenerate."""

import torch

from alit_hf import ALITConfig, ALITModel


VARIANTS = [(base, quantize) for base in ("vqgan", "kl") for quantize in (True, False)]
VARIANT_NAMES = [f"{base}-{'quantised' if quantize else 'continuous'}" for base, quantize in VARIANTS]

_LEVELS = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
BASE_TOKENIZERS = {
    # Latent channels and embedding dimension differ, so that mixing them up does not go unnoticed.
    "vqgan": {"_class_name": "VQModel", "latent_channels": 4, "vq_embed_dim": 6, "num_vq_embeddings": 24, **_LEVELS},
    "kl": {"_class_name": "AutoencoderKL", "latent_channels": 5, "scaling_factor": 0.25, **_LEVELS},
}


def tiny_config(base: str = "vqgan", quantize: bool = True, **fields) -> ALITConfig:
    """32 px in patches of 4, an 8x8 grid, 4 rollouts of 3 tokens. The wide initialisation makes outputs differ much
    between images and rollouts, as a trained model's do."""
    tiny = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "num_attention_heads": 4,
        "mlp_ratio": 2,
        "initializer_range": 0.2,
        "tokens_per_rollout": 3,
        "max_rollouts": 4,
        "codebook_size": 64,
        "codebook_dim": 5,
        "quantize": quantize,
        "base_tokenizer_config": BASE_TOKENIZERS[base],
    }
    return ALITConfig(**{**tiny, **fields})


def tiny_model(base: str = "vqgan", quantize: bool = True, seed: int = 1, **fields) -> ALITModel:
    """The model of `tiny_config` with the random weights of `seed`, in evaluation mode."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = ALITModel(tiny_config(base, quantize, **fields)).eval()
        if model.config.base_type == "vqgan":
            # Fresh base codes are so close to each other that all pictures are the same.
            model.base_tokenizer.codebook.mul_(20)
    return model


def tiny_images(batch_size: int = 2, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures `(batch_size, 3, height, width)` in [0, 1] that differ in brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch_size, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    contrast = torch.linspace(0.2, 1, batch_size).view(-1, 1, 1, 1)
    return (pixels * contrast + 0.02 * torch.rand(pixels.shape, generator=generator)).clamp(0, 1)
