"""What a run shows: scalars, a progress bar, pictures, validation."""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image, ImageDraw
from torch import nn

from alit_hf.utils.progress import ProgressBar

from ..configuration import PICTURES_FOLDER
from ..stages.stage import Stage


logger = logging.getLogger(__name__)

_CAPTION_HEIGHT = 14


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became infinite or NaN."""


class ScalarWindow:
    """
    Scalars of each step since they were last taken, kept on their device until then so that steps need not wait.

    Args:
        batch_size: images per step.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._clear()

    def _clear(self) -> None:
        self.started = time.monotonic()
        self.steps: set[int] = set()
        self.values: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self.undecodable: list[torch.Tensor] = []

    def add(self, step: int, scalars: dict[str, torch.Tensor], undecodable: torch.Tensor | None = None) -> None:
        """Adds a micro-batch's scalars and the number of its images that could not be decoded."""
        self.steps.add(step)
        for name, value in scalars.items():
            self.values.setdefault(name, []).append((step, value.detach().float()))
        if undecodable is not None:
            self.undecodable.append(undecodable.sum())

    def check_finite(self) -> None:
        """Raises `NonFiniteLossError` with the first step that has non-finite scalars, and their names."""
        bad = {}
        for name, entries in self.values.items():
            finite = torch.stack([value for _, value in entries]).isfinite().tolist()
            if not all(finite):
                bad[name] = entries[finite.index(False)][0]
        if bad:
            first = min(bad.values())
            names = sorted(name for name, step in bad.items() if step == first)
            raise NonFiniteLossError(
                f"Step {first + 1}: {', '.join(names)} became infinite or NaN. The last checkpoint is untouched: "
                "resume from it with a lower learning rate or without mixed precision."
            )

    def take(self, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """Means over the window and all ranks, with images per second; and all ranks' number of undecodable images."""
        self.check_finite()
        means = {
            name: float(accelerator.reduce(torch.stack([value for _, value in entries]).mean(), "mean"))
            for name, entries in self.values.items()
        }
        undecodable = torch.stack(self.undecodable).sum().to(accelerator.device)
        undecodable = int(accelerator.reduce(undecodable, "sum"))
        means["images_per_second"] = len(self.steps) * self.batch_size / (time.monotonic() - self.started)
        self._clear()
        return means, undecodable


class Display:
    """Progress bar, log lines and trackers, on the main process."""

    def __init__(self, accelerator: Accelerator, title: str, max_steps: int, steps: int, output_dir: Path):
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.bar = ProgressBar(total=max_steps, initial=steps, desc=title, unit="step")

    def advance(self) -> None:
        """Advances by one step."""
        self.bar.update()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Logs scalars; the bar also shows `loss` and `images_per_second`."""
        self.accelerator.log(values, step=step)
        if not self.accelerator.is_main_process:
            return
        if "loss" in values:
            self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s")
        readable = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if math.isfinite(value))
        logger.info("step %d: %s", step, readable)

    def pictures(self, columns: dict[str, torch.Tensor], step: int) -> None:
        """Writes a grid with a column for each name, `pictures/STEP.png`, and passes it to trackers."""
        if not self.accelerator.is_main_process:
            return
        grid = picture_grid(columns)
        folder = self.output_dir / PICTURES_FOLDER
        folder.mkdir(exist_ok=True)
        grid.save(folder / f"{step:08d}.png")
        # Accelerate's trackers that take pictures, with the arguments they need for arrays.
        arguments = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
        for tracker in self.accelerator.trackers:
            if tracker.name in arguments:
                tracker.log_images({"pictures": np.asarray(grid)[None]}, step=step, **arguments[tracker.name])

    def close(self) -> None:
        self.bar.close()


@torch.no_grad()
def validation_scores(
    wrapped: nn.Module, stage: Stage, images: torch.Tensor, batch_size: int, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """
    Means of the stage's `score` over images, uint8 `(N, 3, H, W)`, which the ranks divide among them, with the stage's
    current weights; and all values `(N, …)` of its `individual_scores`.
    """
    stage.eval()
    shares = images.tensor_split(accelerator.num_processes)
    # With fewer images than ranks, each rank takes all of them: every rank must take part in the sums.
    own = shares[accelerator.process_index] if len(shares[-1]) else images
    sums: dict[str, torch.Tensor] = {}
    individual: dict[str, list[torch.Tensor]] = {name: [] for name in stage.individual_scores}
    for batch in own.split(batch_size):
        with accelerator.autocast():
            scores = wrapped(batch.to(accelerator.device).float() / 255, "score")
        for name, value in scores.items():
            if name in individual:
                individual[name].append(value.float().cpu())
            else:
                sums[name] = sums.get(name, 0) + value.float().sum(dim=0)
    count = accelerator.reduce(torch.tensor(len(own), device=accelerator.device), "sum")
    means = {name: accelerator.reduce(value, "sum") / count for name, value in sums.items()}
    return means | {name: torch.cat(gather_object(values))[: len(images)] for name, values in individual.items()}


@torch.no_grad()
def picture_columns(stage: nn.Module, images: torch.Tensor, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Images, uint8 `(B, 3, H, W)`, and the stage's reconstructions, as columns of a grid."""
    stage.eval()
    originals = images.to(accelerator.device).float() / 255
    with accelerator.autocast():
        return {"original": originals, **stage(originals, "pictures")}


def picture_grid(columns: dict[str, torch.Tensor]) -> Image.Image:
    """One column for each name, one row for each image; pixels `(B, 3, H, W)`, clamped to [0, 1]."""
    count, _, height, width = next(iter(columns.values())).shape
    grid = Image.new("RGB", (width * len(columns), height * count + _CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(grid)
    for column, (name, pixels) in enumerate(columns.items()):
        draw.text((column * width + 2, 1), name, fill="black")
        pixels = (pixels.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for row, picture in enumerate(pixels):
            grid.paste(Image.fromarray(picture), (column * width, row * height + _CAPTION_HEIGHT))
    return grid
