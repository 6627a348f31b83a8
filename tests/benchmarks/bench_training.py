"""Images a second and peak memory of each training stage, and the memory that the paper's `small` model needs.

    python tests/benchmarks/bench_training.py

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
from torch.autograd.graph import saved_tensors_hooks

from alit_hf import ALITConfig, ALITModel
from training.configuration import TrainingConfig, load_configs
from training.optimization import adamw
from training.stages import STAGES
from training.stages.distill import DistillLossConfig, DistillStage


CONFIGS = Path(__file__).parents[2] / "training" / "configs"
STEPS, WARM_UP_STEPS, BATCH_SIZE = 4, 1, 8
GIB = 2**30
SMALL_BATCH_SIZE, GPU_MEMORY = 32, 24 * GIB


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


if __name__ == "__main__":
    report()
