"""Images a second and peak memory of each training stage.

    PYTHONPATH=. python tests/benchmarks/bench_training.py

On a GPU where there is one. Sizes are those of the default checkpoint, weights and images are random.
"""

import multiprocessing
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from diffusers import VQModel

from training.configuration import TrainingConfig, load_configs
from training.optimization import adamw
from training.stages import STAGES
from training.stages.distill import DistillStage


CONFIGS = Path(__file__).parents[2] / "training" / "configs"
STEPS, WARM_UP_STEPS, BATCH_SIZE = 4, 1, 8
GIB = 2**30


def stage_config(name: str, folder: str) -> TrainingConfig:
    """The default checkpoint's, on untrained models; `fixed` has its `distill`'s."""
    file = {"base": "mini-base", "distill": "mini-distill", "fixed": "mini-distill", "finetune": "mini-finetune"}[name]
    overrides = ["--init_from", "" if name == "base" else f"{folder}/{'alit' if name == 'finetune' else 'base'}"]
    if name == "fixed":
        overrides += ["--stage", "fixed", "--model.max_rollouts", "1", "--model.tokens_per_rollout", "256"]
    if name in ("base", "finetune"):
        overrides += ["--loss.perceptual_weight", "0"]
    (config,) = load_configs(CONFIGS / f"{file}.yaml", overrides)
    return config


def measure(name: str, folder: str, results) -> None:
    """Puts the stage's images a second and peak memory in bytes."""
    torch.set_num_threads(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = stage_config(name, folder)
    stage = STAGES[name].build(config).to(device).train()
    optimizer = adamw(stage, config.optimization)
    pixel_values = torch.rand(BATCH_SIZE, 3, config.data.image_size, config.data.image_size, device=device)
    for step in range(WARM_UP_STEPS + STEPS):
        if step == WARM_UP_STEPS:
            _wait(device)
            start = time.perf_counter()
        stage.step = 10**6 + step  # behind every warm-up
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, _ = stage(pixel_values, "training_loss")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    _wait(device)
    images_per_second = STEPS * BATCH_SIZE / (time.perf_counter() - start)
    if device == "cuda":
        results.put((images_per_second, torch.cuda.max_memory_allocated()))
    else:
        results.put((images_per_second, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_alone(name: str, folder: str) -> tuple[float, int]:
    """As `measure`, in a process of its own: peaks do not go down again."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(name, folder, results))
    process.start()
    found = results.get(timeout=600)
    process.join()
    return found


def prepare(folder: str) -> None:
    """Untrained models for the stages to start from."""
    VQModel(**stage_config("base", folder).model).save_pretrained(f"{folder}/base")
    DistillStage.build(stage_config("distill", folder)).model.save_pretrained(f"{folder}/alit")


def report() -> None:
    """Prints a line a stage."""
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


if __name__ == "__main__":
    report()
