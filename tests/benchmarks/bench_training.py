"""Images a second and peak memory of each training stage, and the memory that the paper's `small` model needs.

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

import pytest
import torch
from diffusers import VQModel
from random_lpips import random_lpips
from torch.autograd.graph import saved_tensors_hooks

from alit_hf import ALITConfig, ALITModel
from training.configuration import TrainingConfig, load_configs
from training.loop import Trainer
from training.stages import STAGES, pixel_loss
from training.stages.distill import DistillLossConfig, DistillStage


CONFIGS = Path(__file__).parents[2] / "training" / "configs"
# One step at each length of `finetune`.
STEPS, WARM_UP_STEPS, BATCH_SIZE = 8, 1, 8
FIRST_STEP = 10**6  # behind the starts of all parts of the losses
GIB = 2**30
SMALL_BATCH_SIZE, GPU_MEMORY = 32, 24 * GIB


def stage_config(name: str, folder: str) -> TrainingConfig:
    """The default checkpoint's, on untrained models and other photos; `fixed` has its `distill`'s."""
    file = {"base": "mini-base", "distill": "mini-distill", "fixed": "mini-distill", "finetune": "mini-finetune"}[name]
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
    (config,) = load_configs(CONFIGS / f"{file}.yaml", [f"--{field}={value}" for field, value in overrides.items()])
    return config


def measure(name: str, folder: str, results) -> None:
    """Puts the stage's images a second and peak memory in bytes."""
    torch.set_num_threads(2)
    pixel_loss.LPIPS = random_lpips
    trainer = Trainer(stage_config(name, folder))
    trainer.progress.steps = FIRST_STEP
    if name == "finetune":
        trainer.stage.drawn_rollout = lambda: trainer.progress.steps % trainer.stage.model.config.max_rollouts
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


def bytes_of_small_distillation() -> dict[str, float]:
    """
    Memory of a step of `distill` at the paper's `small` size: all eight rollouts, bf16 autocast, gradient
    checkpointing. Activations are measured for one image, and grow with the batch.
    """
    config = ALITConfig.paper("small")
    model = ALITModel(config)
    stage = DistillStage(model, DistillLossConfig()).train()
    model.gradient_checkpointing_enable()
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def keep_inputs(_module, inputs) -> None:
        # What checkpointing keeps is hidden from the hooks of autograd.
        keep(inputs[0])
        alive.append(inputs[0])

    layers = [*model.encoder.layers, *model.decoder.layers]
    alive: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(keep_inputs) for layer in layers]
    pixel_values = torch.rand(1, 3, 256, 256)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in stage.parameters()}
    with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = stage(pixel_values, "training_loss")
    activations = sum(size for pointer, size in saved.items() if pointer not in parameters)
    for hook in hooks:
        hook.remove()
    del loss
    alive.clear()
    saved.clear()

    # What the recomputation of a layer holds for a moment, at the longest sequence.
    layers[0].gradient_checkpointing = False
    hidden_states = torch.rand(1, 1 + config.num_positions + config.max_tokens, config.hidden_size, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layers[0](hidden_states)
    recomputed = sum(size for pointer, size in saved.items() if pointer not in parameters)
    del output

    trained = sum(parameter.nbytes for parameter in stage.parameters() if parameter.requires_grad)
    everything = sum(parameter.nbytes for parameter in stage.parameters())
    return {
        "weights": everything,
        "average of weights": everything,
        "gradients": trained,
        "AdamW": 2 * trained,
        "weights in bf16": everything / 2,
        "activations": SMALL_BATCH_SIZE * activations,
        # The gradients of what is recomputed are as large as it.
        "recomputation": 2 * SMALL_BATCH_SIZE * recomputed,
    }


def report() -> float:
    """Prints everything; gives the bytes of a step at the paper's size."""
    with TemporaryDirectory() as folder:
        prepare(folder)
        print(f"\n{'stage':10} {'images/s':>9} {'peak GiB':>9}   (batch {BATCH_SIZE})")
        for name in STAGES:
            images_per_second, memory = measure_alone(name, folder)
            print(f"{name:10} {images_per_second:9.1f} {memory / GIB:9.2f}")
    parts = bytes_of_small_distillation()
    print(f"\ndistill of the paper's small model, batch {SMALL_BATCH_SIZE}, in GiB (computed from measured sizes)")
    for name, size in {**parts, "together": sum(parts.values())}.items():
        print(f"{name:20} {size / GIB:6.2f}")
    return sum(parts.values())


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
def test_training_stages():
    assert report() < 0.9 * GPU_MEMORY
