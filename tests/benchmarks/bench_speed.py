"""One table of what encoding, decoding, tokenizing and training take, with the time of their parts.

    python -m pytest -s -m benchmark tests/benchmarks/bench_speed.py

The last column is what no part accounts for: our own code between them. Encoding and decoding at the paper's `tiny`
size, 256 px, random weights, one image; the rest with the sizes of the default checkpoint. On two CPU threads, or on a
GPU if there is one; `tokenize` on one thread a process, as large work should be divided. The peak on a CPU is the
process's, with half a gigabyte of libraries.
"""

import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import finalize

import datasets
import numpy as np
import pytest
import torch
from diffusers import VQModel
from random_lpips import random_lpips
from timing import seconds, threads

from alit_hf import ALITConfig, ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.codes.length_choice import LengthChoice
from alit_hf.codes.picture_codes import PictureEncoder, to_picture
from alit_hf.data.image_rows import open_rows
from alit_hf.demo.example_photos import example_photo
from alit_hf.model.selection import l1
from alit_hf.token_datasets import tokenizing
from alit_hf.token_datasets.info import TokenDatasetInfo
from training.configuration import TrainingConfig
from training.engine.loop import Trainer
from training.stages import pixel_loss
from training.stages.distill import DistillStage
from training.stages.registry import STAGES, load_configs


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16)
ROLLOUTS = (1, 2, 4, 8)
PREDICTED = 4
REPETITIONS = 3
NUM_PHOTOS, NUM_PARTS, BATCH_SIZE = 2000, 5, 8
NUM_DECODES = 15
CONFIGS = Path(__file__).parents[2] / "training" / "configs"
# One step at each length of `finetune`.
STEPS, WARM_UP_STEPS = 8, 1
FIRST_STEP = 10**6  # behind the starts of all parts of the losses
GIB = 2**30


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Row:
    """A line of the table: seconds of a call, and of its parts by name."""

    job: str
    dtype: str
    seconds: float
    parts: dict[str, float]
    note: str = ""

    @property
    def other(self) -> float:
        return self.seconds - sum(self.parts.values())


@dataclass
class Parts:
    """Seconds spent in functions that are replaced by timed ones. What such a function calls belongs to it."""

    patch: pytest.MonkeyPatch
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inside: bool = False

    def add(self, owner: object, name: str, label: str) -> None:
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            if self._inside:
                return function(*arguments, **options)
            self._inside, start = True, now()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[label] += now() - start
                self._inside = False

        self.patch.setattr(owner, name, timed)

    def add_model(self, model: ALITModel) -> None:
        self.add(model.base_tokenizer, "encode", "base encoder")
        self.add(model.encoder, "forward", "encoder")
        self.add(model.decoder, "forward", "decoder")
        self.add(model.base_tokenizer, "decode", "base decoder")


def best_of(job: str, dtype: torch.dtype, model: ALITModel, call: Callable[[], object]) -> Row:
    """The quickest of some calls, after one that warms up."""
    rows = []
    for _ in range(1 + REPETITIONS):
        with pytest.MonkeyPatch.context() as patch:
            parts = Parts(patch)
            parts.add_model(model)
            start = now()
            call()
            rows.append(Row(job, str(dtype).removeprefix("torch."), now() - start, dict(parts.seconds)))
    return min(rows[1:], key=lambda row: row.seconds)


def ending_at(rollout: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The L1 criterion, met at a rollout (counted from 1) and not before, for one image and a threshold of 0."""
    calls = []

    def criterion(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return l1(reconstruction, original) - 1000 * float(len(calls) == rollout)

    return criterion


def predict_length(model: ALITModel, rollout: int) -> None:
    """Gives the model a predictor by which every image meets a threshold of 0.1 at a rollout (counted from 1)."""
    model.set_length_criterion("l1")
    model.config.length_shortfalls = [0.0] * 99
    with torch.no_grad():
        model.length_predictor.fc2.weight.zero_()
        model.length_predictor.fc2.bias.zero_()
        model.length_predictor.fc2.bias[rollout - 1 :] = -10


@torch.inference_mode()
def encoding_and_decoding(dtype: torch.dtype) -> list[Row]:
    torch.manual_seed(0)
    model = ALITModel(ALITConfig.paper("tiny"))
    predict_length(model, PREDICTED)
    model = model.to(DEVICE, dtype).eval()
    pixels = torch.rand(1, 3, 256, 256, device=DEVICE)
    step = model.config.tokens_per_rollout
    code = model.encode(pixels)
    jobs: dict[str, Callable[[], object]] = {
        f"encode, {rollouts * step} tokens": lambda n=rollouts * step: model.encode(pixels, num_tokens=n)
        for rollouts in (1, PREDICTED, model.config.max_rollouts)
    }
    jobs[f"encode, predicted length of {PREDICTED * step}"] = lambda: model.encode(
        pixels, threshold=0.1, confidence=0.9
    )
    for rollout in ROLLOUTS:
        jobs[f"encode, exact search to rollout {rollout}"] = lambda k=rollout: model.encode(
            pixels, threshold=0.0, criterion=ending_at(k)
        )
    jobs[f"decode, {model.config.max_tokens} tokens"] = lambda: model.decode(code)
    return [best_of(name, dtype, model, call) for name, call in jobs.items()]


@torch.inference_mode()
def base_decoders() -> dict[str, float]:
    """Seconds of the converted base's decoder, and of one that is built with the published number of resnets."""
    config = ALITConfig.paper("tiny").base_tokenizer_config
    converted = ALITModel(ALITConfig.paper("tiny", base_tokenizer_config={**config, "_decoder_resnets_per_block": 2}))
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    # diffusers builds one resnet more than this into each block of a decoder.
    published = VQModel(**{**arguments, "layers_per_block": 1})
    published.to(DEVICE).eval()
    grid = torch.randn(1, 256, 16, 16, device=DEVICE)
    decoders = {
        "converted": converted.base_tokenizer.to(DEVICE).eval().decode,
        "published": lambda codes: published.decoder(published.post_quant_conv(codes)),
    }
    found = defaultdict(list)
    # By turns, as the speed of a machine changes by more than what they may differ.
    for _ in range(1 + NUM_DECODES):
        for name, decode in decoders.items():
            start = now()
            decode(grid)
            found[name].append(now() - start)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


@dataclass
class Tokenized:
    """Images per second of the model alone, of tokenizing, and of the command by numbers of processes."""

    at_hand: float
    here: float
    commands: dict[int, float]


def tokenize(folder: Path) -> tuple[Row, Tokenized]:
    """As `alit tokenize --num-tokens 32`."""
    photo = example_photo("astronaut")
    parts = [folder / f"photos-{part}" for part in range(NUM_PARTS)]
    for number in range(NUM_PHOTOS):
        path = parts[number % NUM_PARTS] / f"{number:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo.crop((number % 64, 0, 448 + number % 64, 448)).save(path)
    with threads(1):
        row, at_hand = tokenize_here(parts, folder / "tokens")
    commands = {count: NUM_PHOTOS / command_seconds(count, parts, folder / f"tokens-{count}") for count in (1, 2)}
    return row, Tokenized(NUM_PHOTOS / at_hand, 1 / row.seconds, commands)


@torch.inference_mode()
def tokenize_here(folders: list[Path], tokens: Path) -> tuple[Row, float]:
    """A line of the table with the most pictures held at once, and what the model alone takes for as many pictures."""
    datasets.disable_progress_bars()
    model = ALITModel.from_pretrained(pretrained_path()).eval().to(DEVICE)
    processor = ALITImageProcessor.from_pretrained(pretrained_path())
    encoder = PictureEncoder(model, LengthChoice(num_tokens=32))
    pictures = [to_picture(example_photo("astronaut"), processor)] * BATCH_SIZE
    encoder.encode(pictures)
    held = {"now": 0, "most": 0}

    def counted(*arguments: Any) -> Any:
        picture = to_picture(*arguments)
        held["now"] += 1
        held["most"] = max(held.values())
        finalize(picture.pixel_values, lambda: held.update(now=held["now"] - 1))
        return picture

    at_hand = total = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "to_picture", counted)
        parts = Parts(patch)
        parts.add_model(model)
        # By turns, as the speed of a machine changes.
        for folder in folders:
            before = dict(parts.seconds)
            start = now()
            for _ in range(NUM_PHOTOS // NUM_PARTS // BATCH_SIZE):
                encoder.encode(pictures)
            at_hand += now() - start
            parts.seconds = defaultdict(float, before)
            rows = open_rows([str(folder)])
            info = TokenDatasetInfo.describe(rows, encoder, processor, 1000)
            start = now()
            tokenizing.tokenize_rows(rows, encoder, processor, info, tokens / folder.name, BATCH_SIZE, num_workers=2)
            total += now() - start
    note = f"at most {held['most']} of {NUM_PHOTOS // NUM_PARTS} pictures in memory"
    per_image = {name: taken / NUM_PHOTOS for name, taken in parts.seconds.items()}
    return Row("tokenize, an image", "float32", total / NUM_PHOTOS, per_image, note), at_hand


def command_seconds(processes: int, folders: list[Path], tokens: Path) -> float:
    """What the command takes beyond the same one afterwards, which finds everything done: without its start."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "-m", "alit_hf.cli"]
    command += ["tokenize", *map(str, folders), "-o", str(tokens), "--num-tokens", "32"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    first, again = (seconds(subprocess.run, command, check=True, env=one_thread) for _ in range(2))
    return first - again


def stage_config(name: str, folder: str, precision: str) -> TrainingConfig:
    """The default model's, on untrained models and other photos; `fixed` has its `distill`'s."""
    file = CONFIGS / "mini" / ("distill.yaml" if name == "fixed" else f"{name}.yaml")
    start = {"base": "", "distill": "base", "fixed": "base", "finetune": "alit", "lengths": "alit"}[name]
    photo = "package://skimage/data/coffee.png"
    overrides = {
        "init_from": start and f"{folder}/{start}",
        "output_dir": f"{folder}/{name}-run",
        "data.train": photo,
        "data.validation": photo if name == "lengths" else "",
        "data.cached_crops": 0,
        "optimization.batch_size": BATCH_SIZE,
        "optimization.micro_batch_size": 0,
        "optimization.max_steps": 2 * FIRST_STEP,
        "optimization.max_minutes": 0,
        "optimization.mixed_precision": precision,
        "logging.trackers": "",
    }
    if name == "fixed":
        overrides |= {"stage": "fixed", "model.max_rollouts": 1, "model.tokens_per_rollout": 256}
    (config,) = load_configs(file, [f"--{field}={value}" for field, value in overrides.items()])
    return config


def timed_batches(batches: Iterator[dict], parts: Parts) -> Iterator[dict]:
    while True:
        start = now()
        batch = next(batches)
        parts.seconds["data"] += now() - start
        yield batch


def measure_stage(name: str, folder: str, precision: str, results) -> None:
    """Puts the seconds of a step, its parts, and the peak memory in bytes."""
    torch.set_num_threads(2)
    pixel_loss.LPIPS = random_lpips
    trainer = Trainer(stage_config(name, folder, precision))
    trainer.progress.steps = FIRST_STEP
    if name in ("distill", "finetune"):
        rollouts = trainer.stage.model.config.max_rollouts
        trainer.stage.drawn_rollout = lambda: trainer.progress.steps % rollouts
        trainer.stage.drawn_rollouts = lambda: np.ones(1 + trainer.progress.steps % rollouts, dtype=bool)
    with pytest.MonkeyPatch.context() as patch:
        parts = Parts(patch)
        parts.add(trainer.stage, "training_loss", "forward")
        parts.add(trainer.accelerator, "backward", "backward")
        for optimizer in trainer.optimizers:
            parts.add(optimizer, "step", "optimizer")
        parts.add(trainer.average, "update", "average")
        trainer.batches = timed_batches(trainer.batches, parts)
        for step in range(WARM_UP_STEPS + STEPS):
            if step == WARM_UP_STEPS:
                parts.seconds.clear()
                start = now()
            trainer._step()
            trainer.progress.steps += 1
        seconds = (now() - start) / STEPS
    trainer.close()
    if DEVICE == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((seconds, {part: total / STEPS for part, total in parts.seconds.items()}, memory))


def training_steps(folder: str) -> list[Row]:
    """A step of each stage, each in a process of its own: peaks do not go down again."""
    VQModel(**stage_config("base", folder, "no").model).save_pretrained(f"{folder}/base")
    DistillStage.build(stage_config("distill", folder, "no")).model.save_pretrained(f"{folder}/alit")
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in STAGES:
        for precision in ("no",) if name == "lengths" else ("no", "bf16"):
            results = context.Queue()
            process = context.Process(target=measure_stage, args=(name, folder, precision, results))
            process.start()
            seconds, parts, memory = results.get()
            process.join()
            note = f"{BATCH_SIZE / seconds:.1f} images/s, peak {memory / GIB:.2f} GiB"
            dtype = "float32" if precision == "no" else "bfloat16"
            rows.append(Row(f"train {name}, a step of {BATCH_SIZE}", dtype, seconds, parts, note))
    return rows


def table(rows: list[Row]) -> str:
    """In Markdown, for docs/benchmarks.md."""
    lines = ["| | dtype | ms | of which | other | |", "|---|---|---|---|---|---|"]
    for row in rows:
        parts = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in row.parts.items())
        other = f"{1000 * row.other:.1f} ({row.other / row.seconds:.1%})"
        lines.append(f"| {row.job} | {row.dtype} | {1000 * row.seconds:.0f} | {parts} | {other} | {row.note} |")
    return "\n".join(lines)


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_speed():
    with threads(2), TemporaryDirectory() as folder:
        encoded = [row for dtype in DTYPES for row in encoding_and_decoding(dtype)]
        bases = base_decoders()
        row, tokenized = tokenize(Path(folder))
        rows = [*encoded, row, *training_steps(folder)]
    print(f"\n{table(rows)}\n")
    print("base decoder, ms: " + ", ".join(f"{name} {1000 * value:.0f}" for name, value in bases.items()))
    print(f"images/s: model alone {tokenized.at_hand:.1f}, tokenize {tokenized.here:.1f}, command with", end=" ")
    print(", ".join(f"{count} process(es) {value:.1f}" for count, value in tokenized.commands.items()))
    by_name = {row.job: row for row in encoded if row.dtype == "float32"}
    for rollout in ROLLOUTS:
        row = by_name[f"encode, exact search to rollout {rollout}"]
        assert row.other <= 0.1 * sum(row.parts.values())
    predicted, fixed = (by_name[f"encode, {kind}"] for kind in ("predicted length of 128", "128 tokens"))
    assert predicted.seconds <= 1.1 * fixed.seconds
    assert bases["converted"] <= 1.03 * bases["published"]
    assert tokenized.here >= 0.9 * tokenized.at_hand
    assert tokenized.commands[2] >= 1.7 * tokenized.commands[1]
