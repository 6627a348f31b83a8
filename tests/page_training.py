"""`training/train.py` as pages call it, cut down to steps of a moment."""

import argparse
import gc
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from diffusers import VQModel
from tiny_config import BASE_TOKENIZERS
from tiny_model import save_tiny_model

from training.configuration import TrainingConfig, parse_size
from training.engine.loop import train
from training.stages.registry import load_configs


_SCRIPT = "training/train.py"
_SIZES = {
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "tokens_per_rollout": 4,
    "max_rollouts": 2,
    "codebook_size": 16,
    "codebook_dim": 4,
}


def launch(arguments: Sequence[str]) -> int:
    """
    Stands for `accelerate`: runs what `launch` is given in this process, one step on two small images for each stage.
    What the command line says of data and models that are there holds; the rest is replaced.
    """
    subcommand, script, *rest = arguments
    assert (subcommand, script) == ("launch", _SCRIPT), arguments
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    known, overrides = parser.parse_known_args(rest)
    # A run ends with a collection of garbage, which takes long over the libraries' objects; these stay anyway.
    gc.freeze()
    # Accelerate keeps its state for the whole process, and each command is to start without.
    AcceleratorState._reset_state(True)
    for config in load_configs(known.config, overrides):
        _cut_down(config)
        if not config.resume:
            # A page's commands are alternatives, which need not leave each other's output alone.
            shutil.rmtree(config.output_dir, ignore_errors=True)
        train(config)
    AcceleratorState._reset_state(True)
    return 0


def _cut_down(config: TrainingConfig) -> None:
    if config.stage == "base" and not config.init_from:
        config.model = {name: value for name, value in BASE_TOKENIZERS["vqgan"].items() if name != "_class_name"}
    elif config.stage in ("distill", "fixed"):
        config.model = dict(_SIZES)
    if config.stage != "base" and not Path(config.init_from).exists():
        config.init_from = _stand_in(config.stage)
    if hasattr(config.loss, "perceptual_net"):
        config.loss.perceptual_net = "alex"

    data = config.data
    data.image_size, data.buckets = _quarter(data.image_size), [_quarter(size) for size in data.buckets]
    data.num_workers = 0
    data.validation_images = 2
    if not Path(data.train[0]).exists():
        data.train = ["photos/"]
    if data.validation and not Path(data.validation[0]).exists():
        data.validation = ["photos/"]

    optimization = config.optimization
    if optimization.base_learning_rate:
        optimization.learning_rate, optimization.base_learning_rate = optimization.peak_learning_rate, 0.0
    optimization.batch_size, optimization.micro_batch_size = 2, 0
    optimization.max_steps, optimization.epochs = 1, 0
    optimization.warmup_steps, optimization.warmup_epochs = 0, 0
    config.logging.trackers = []
    config.validate()


def _quarter(size: int | list[int]) -> list[int]:
    """Smaller, but still as different from others as it was, and large enough for LPIPS."""
    return [max(32, side // 4) for side in parse_size("size", size)]


def _stand_in(stage: str) -> str:
    """A folder with a model of random weights that the stage can start from."""
    torch.manual_seed(0)
    if stage == "finetune":
        return save_tiny_model(Path("stand-in-alit"))
    VQModel.from_config(BASE_TOKENIZERS["vqgan"]).save_pretrained("stand-in-base")
    return "stand-in-base"
