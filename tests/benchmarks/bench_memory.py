"""Memory of a training step at the paper's sizes, computed without a GPU.

    PYTHONPATH=. python tests/benchmarks/bench_memory.py

A whole step runs on tensors that have sizes but no values, and the bytes of every storage are counted from its making
to its end. Not in it: CUDA's own context, workspaces of cuDNN and cuBLAS, gaps that the allocator leaves.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from weakref import finalize

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from alit_hf import ALITConfig, ALITModel
from alit_hf.model import base_tokenizer
from alit_hf.networks.lpips import LPIPS
from training.configuration import OptimizationConfig
from training.engine.averaging import WeightAverage
from training.engine.optimization import optimizers
from training.stages import pixel_loss
from training.stages.distill import DistillStage
from training.stages.finetune import FinetuneStage
from training.stages.loss_config import DistillLossConfig, FinetuneLossConfig
from training.stages.stage import Stage


GIB = 2**30
GPU_MEMORY = 24 * GIB
SIZES = ("tiny", "small", "base", "semilarge")


def distill(model: ALITModel) -> DistillStage:
    """All eight rollouts."""
    return DistillStage(model, DistillLossConfig())


def finetune(model: ALITModel) -> FinetuneStage:
    """The longest code, L1 and LPIPS with VGG16, no discriminator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_loss, "LPIPS", functools.partial(LPIPS, pretrained=False))
        stage = FinetuneStage(model, FinetuneLossConfig())
    stage.drawn_rollout = lambda: model.config.max_rollouts - 1
    # Tensors without values cannot move, not even to where they are.
    stage.pixel_loss.lpips.to = lambda device: None
    return stage


BATCH_SIZES = {distill: 32, finetune: 8}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are made inside: those alive now, and the most that ever were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tree_map_only(torch.Tensor, self._count, result)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = True
            self._add(storage.nbytes())
            finalize(storage, self._add, -storage.nbytes())

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def most_during(self, function) -> int:
        """Calls the function; the most bytes that were alive meanwhile."""
        self.most = self.now
        function()
        return self.most


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The base tokenizer takes the whole batch at once, and autocast leaves normalisations in float32."""

    def in_float32(function):
        def normalised(inputs, *arguments, **options):
            with torch.autocast("cpu", enabled=False):
                return function(inputs.float(), *arguments, **options)

        return normalised

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_tokenizer, "_image_by_image", lambda function, batch: function(batch))
        patch.setattr(F, "layer_norm", in_float32(F.layer_norm))
        patch.setattr(F, "group_norm", in_float32(F.group_norm))
        yield


def bytes_of_a_step(make_stage: Callable[[ALITModel], Stage], size: str, batch_size: int) -> dict[str, float]:
    """
    Bytes of a step at 256 px with bf16 autocast and gradient checkpointing, by part: weights and what goes with them,
    what forward keeps for backward, and the most that was alive at once in each phase, all parts included.
    """
    with FakeTensorMode(), as_on_a_gpu(), LiveBytes() as live:
        model = ALITModel(ALITConfig.paper(size))
        stage = make_stage(model).train()
        model.gradient_checkpointing_enable()
        weights = live.now
        average = WeightAverage(stage, decay=0.999)
        averaged = live.now - weights
        trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        (optimizer,) = optimizers(stage, OptimizationConfig(learning_rate=1e-4, max_steps=1))
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        losses = []

        def forward() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses.append(stage(pixel_values, "training_loss")[0])

        def backward() -> None:
            losses.pop().backward()

        def update() -> None:
            torch.nn.utils.clip_grad_norm_(trained, 3.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update()

        update()  # makes AdamW's moments, which all later steps find
        moments = live.now - weights - averaged
        pixel_values = torch.rand(batch_size, 3, 256, 256)
        before = live.now
        peaks = {"forward": live.most_during(forward)}
        kept = live.now - before
        peaks |= {"backward": live.most_during(backward), "update": live.most_during(update)}
    return {"weights": weights, "average": averaged, "AdamW": moments, "kept": kept, **peaks}


def report() -> dict[str, float]:
    """Prints a table a stage; gives the most that a step needs, in bytes, by stage and size."""
    needed = {}
    for make_stage, batch_size in BATCH_SIZES.items():
        stage = make_stage.__name__
        print(f"\n{stage}, VQGAN base, 256 px, batch {batch_size}, bf16, gradient checkpointing, in GiB")
        for size in SIZES:
            parts = bytes_of_a_step(make_stage, size, batch_size)
            parts["needed"] = needed[stage, size] = max(parts[phase] for phase in ("forward", "backward", "update"))
            if size == SIZES[0]:
                print(f"{'':10}" + "".join(f"{name:>10}" for name in parts))
            print(f"{size:10}" + "".join(f"{value / GIB:10.2f}" for value in parts.values()), flush=True)
    return needed


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
def test_distillation_of_the_small_model_fits_a_24_gb_gpu():
    """With room for what is not counted."""
    assert report()["distill", "small"] < 0.8 * GPU_MEMORY


if __name__ == "__main__":
    report()
