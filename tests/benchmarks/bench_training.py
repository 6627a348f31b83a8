"""Images a second and peak memory of each training stage.

    python -m pytest -s -m benchmark tests/benchmarks/bench_training.py

On a GPU where there is one. Sizes and losses are those of the default checkpoint, all weights are random, those of
LPIPS included. What is timed is the loop's whole step, data and average of weights included. The peak on a CPU is the
process's, with half a gigabyte of libraries.
"""

import multiprocessing
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from diffusers import VQModel
from random_lpips import random_lpips

from training.configuration import TrainingConfig
from training.engine.loop import Trainer
from training.stages import pixel_loss
from training.stages.distill import DistillStage
from training.stages.registry import STAGES, load_configs


CONFIGS = Path(__file__).parents[2] / "training" / "configs"
# One step at each length of `finetune`.
STEPS, WARM_UP_STEPS, BATCH_SIZE = 8, 1, 8
FIRST_STEP = 10**6  # behind the starts of all parts of the losses
GIB = 2**30


def stage_config(name: str, folder: str) -> TrainingConfig:
    """The default model's, on untrained models and other photos; `fixed` has its `distill`'s."""
    file = CONFIGS / "mini" / ("distill.yaml" if name == "fixed" else f"{name}.yaml")
    overrides = {
        "init_from": "" if name == "base" else f"{folder}/{'alit' if name == 'finetune' else 'base'}",
        "output_dir": f"{folder}/{name}-run",
        "data.train": "package://skimage/data/coffee.png",
        "data.validation": "",
        "optimization.batch_size": BATCH_SIZE,
        "optimization.micro_batch_size": 0,
        "optimization.max_steps": 2 * FIRST_STEP,
        "optimization.max_minutes": 0,
        "logging.trackers": "",
    }
    if name == "fixed":
        overrides |= {"stage": "fixed", "model.max_rollouts": 1, "model.tokens_per_rollout": 256}
    (config,) = load_configs(file, [f"--{field}={value}" for field, value in overrides.items()])
    return config


def measure(name: str, folder: str, results) -> None:
    """Puts the stage's images a second and peak memory in bytes."""
    torch.set_num_threads(2)
    pixel_loss.LPIPS = random_lpips
    trainer = Trainer(stage_config(name, folder))
    trainer.progress.steps = FIRST_STEP
    if name in ("distill", "finetune"):
        rollouts = trainer.stage.model.config.max_rollouts
        trainer.stage.drawn_rollout = lambda: trainer.progress.steps % rollouts
        trainer.stage.drawn_rollouts = lambda: np.ones(1 + trainer.progress.steps % rollouts, dtype=bool)
    on_gpu = trainer.accelerator.device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    for step in range(WARM_UP_STEPS + STEPS):
        if step == WARM_UP_STEPS:
            wait()
            start = time.perf_counter()
        trainer._step()
        trainer.progress.steps += 1
    wait()
    images_per_second = STEPS * BATCH_SIZE / (time.perf_counter() - start)
    trainer.close()
    if on_gpu:
        results.put((images_per_second, torch.cuda.max_memory_allocated()))
    else:
        results.put((images_per_second, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure_alone(name: str, folder: str) -> tuple[float, int]:
    """As `measure`, in a process of its own: peaks do not go down again."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(name, folder, results))
    process.start()
    process.join()
    assert process.exitcode == 0, name
    return results.get()


def prepare(folder: str) -> None:
    """Untrained models for the stages to start from."""
    VQModel(**stage_config("base", folder).model).save_pretrained(f"{folder}/base")
    DistillStage.build(stage_config("distill", folder)).model.save_pretrained(f"{folder}/alit")


def report() -> None:
    """Prints both for each stage."""
    with TemporaryDirectory() as folder:
        prepare(folder)
        print(f"\n{'stage':10} {'images/s':>9} {'peak GiB':>9}   (batch {BATCH_SIZE})")
        for name in STAGES:
            images_per_second, memory = measure_alone(name, folder)
            print(f"{name:10} {images_per_second:9.1f} {memory / GIB:9.2f}")


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
def test_training_stages():
    report()
