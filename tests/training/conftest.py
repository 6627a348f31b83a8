"""Small photos, base tokenizers and configurations for tests of training."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, VQModel
from PIL import Image
from random_lpips import random_lpips

from training.configuration import TrainingConfig
from training.stages.registry import config_from_dict


BLOCKS = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
VQ_MODEL = {**BLOCKS, "vq_embed_dim": 4, "num_vq_embeddings": 16}
ALIT_MODEL = {
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "tokens_per_rollout": 4,
    "max_rollouts": 3,
    "codebook_size": 16,
    "codebook_dim": 4,
}


@pytest.fixture(autouse=True, scope="session")
def _frozen_libraries():
    """A run ends with a collection of garbage, which takes long over the libraries' objects; these stay anyway."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps its state for the whole process; each test is to start without."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def _random_lpips(monkeypatch):
    """The pretrained weights have to be downloaded; for what is tested here, random ones do."""
    monkeypatch.setattr("training.stages.pixel_loss.LPIPS", random_lpips)


def smooth_picture(seed: int, size: tuple[int, int] = (56, 48)) -> Image.Image:
    """Blurred noise, so that neighbouring pixels are alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> Path:
    """A folder of 20 pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(20):
        smooth_picture(number).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def vq_base(tmp_path_factory) -> str:
    torch.manual_seed(1)
    folder = str(tmp_path_factory.mktemp("vq"))
    model = VQModel(**VQ_MODEL)
    # As spread as the encoder's outputs, so that more than one code is in use.
    model.quantize.embedding.weight.data.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def kl_base(tmp_path_factory) -> str:
    torch.manual_seed(1)
    folder = str(tmp_path_factory.mktemp("kl"))
    AutoencoderKL(**BLOCKS).save_pretrained(folder)
    return folder


@pytest.fixture
def values(photo_folder, tmp_path, vq_base):
    """Makes plain values of a tiny run's configuration: a stage's name, then fields by dotted name."""

    def make(stage: str, /, **fields: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "stage": stage,
            "output_dir": str(tmp_path / stage),
            "data": {"train": [str(photo_folder)], "image_size": 32, "crop_scale": 0.75, "in_memory": True},
            "optimization": {"batch_size": 4, "learning_rate": 1e-3, "max_steps": 6, "ema_decay": 0.9},
            "logging": {"log_every": 2, "checkpoint_every": 0, "trackers": []},
        }
        if stage == "base":
            made["model"] = dict(VQ_MODEL)
            made["loss"] = {"perceptual_net": "alex", "codebook_start": 2, "revive_every": 2}
        elif stage in ("distill", "fixed"):
            made["model"] = dict(ALIT_MODEL) | ({"max_rollouts": 1} if stage == "fixed" else {})
            made["init_from"] = vq_base
            made["loss"] = {"revive_every": 2}
        else:
            made["loss"] = {"perceptual_net": "alex"}
        for name, value in fields.items():
            *sections, last = name.split("__")
            target = made
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = value
        return made

    return make


@pytest.fixture
def config(values):
    """As `values`, checked."""

    def make(stage: str, /, **fields: Any) -> TrainingConfig:
        return config_from_dict(values(stage, **fields))

    return make
