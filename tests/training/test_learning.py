"""Whether a tiny model learns from a random start, and a collapse is told: real training on synthetic pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image

from training.engine.loop import train
from training.engine.monitoring import Display


HELD_OUT = 32


def picture(seed: int) -> Image.Image:
    """Four quadrants, dark or bright, under noise: 16 kinds, which 4 tokens can tell apart."""
    random = np.random.default_rng(seed)
    quadrants = np.kron(20 + 200 * random.integers(0, 2, (2, 2)), np.ones((16, 16)))
    return Image.fromarray(np.uint8(quadrants + random.uniform(0, 30, (32, 32)))).convert("RGB")


@pytest.fixture
def learning(config, tmp_path, monkeypatch):
    """Distils a random base that tells pictures apart; gives the last validation."""
    for name, seeds in (("train", range(512)), ("held-out", range(1000, 1000 + HELD_OUT))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            picture(seed).save(tmp_path / name / f"{seed:04d}.png")
    torch.manual_seed(1)
    base = VQModel(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 16],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        vq_embed_dim=4,
        num_vq_embeddings=64,
    )
    pixels = pixels_of(tmp_path / "train")[:64]
    with torch.no_grad():
        vectors = base.encode(pixels).latents.permute(0, 2, 3, 1).flatten(0, 2)
        base.quantize.embedding.weight.copy_(vectors[torch.randperm(len(vectors))[:64]])
    base.save_pretrained(tmp_path / "base")

    logged: dict[str, float] = {}
    monkeypatch.setattr(Display, "scalars", lambda _, values, step: logged.update(values))

    def run(**fields) -> dict[str, float]:
        sizes = {
            "hidden_size": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "max_rollouts": 1,
            "codebook_size": 64,
            "codebook_dim": 6,
        }
        common = {
            "init_from": str(tmp_path / "base"),
            "data__train": [str(tmp_path / "train")],
            "data__validation": [str(tmp_path / "held-out")],
            "data__validation_images": HELD_OUT,
            "data__crop_scale": 1.0,
            "data__cached_crops": 1,
            "loss__rollouts": "drawn",
            "loss__halting": False,
            "loss__label_smoothing": 0.0,
            "loss__revive_every": 20,
            "optimization__batch_size": 32,
            "optimization__optimizer": "muon",
            "optimization__muon_learning_rate": 0.05,
            "optimization__warmup_steps": 10,
            "optimization__max_grad_norm": 1.0,
            "logging__validate_every": 40,
            "logging__pictures_every": 0,
        }
        train(config("distill", **{f"model__{name}": size for name, size in sizes.items()}, **common, **fields))
        return {name.removeprefix("validation/"): value for name, value in logged.items()}

    return run


def pixels_of(folder: Path) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 for path in sorted(folder.iterdir())]
    )


def same_for_all_pictures(tmp_path) -> float:
    """R² of the best guess that does not look at the picture: the mean code of each position."""
    base = VQModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        codes = base.quantize(base.encode(pixels_of(tmp_path / "held-out")).latents)[0]
    error = (codes - codes.mean(dim=0)).square().mean()
    return float(1 - error / (codes - codes.mean(dim=(0, 2, 3), keepdim=True)).square().mean())


@pytest.mark.timeout(300)
def test_a_random_start_learns_once_quantisation_waits(learning, tmp_path, caplog):
    found = learning(optimization__max_steps=150, loss__quantize_from=100, loss__latent_noise=0.1)
    blind = same_for_all_pictures(tmp_path)
    assert blind < 0.3
    assert found["r2/4"] > blind + 0.2
    assert found["spread/4"] > 0.5
    assert found["ids/4"] > 16
    assert "say nothing" not in caplog.text


@pytest.mark.timeout(300)
def test_quantising_from_the_first_step_collapses_and_says_so(learning, tmp_path, caplog):
    found = learning(optimization__max_steps=100)
    assert found["r2/4"] < same_for_all_pictures(tmp_path) + 0.05
    assert found["spread/4"] < 0.05
    warnings = [record for record in caplog.records if "say nothing" in record.message]
    assert len(warnings) == 1
    assert "start anew with a later `loss.quantize_from`" in warnings[0].message
