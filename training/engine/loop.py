"""The loop that all stages share."""

import itertools
import logging
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list, set_seed

from alit_hf.data.image_rows import open_rows
from alit_hf.utils.error_reason import reason
from alit_hf.utils.native_bfloat16 import computes_bfloat16
from alit_hf.utils.processes import is_first_process
from alit_hf.utils.sole_use import sole_use

from ..configuration import TrainingConfig, require
from ..hub.model_card import RunRecord
from ..hub.publishing import Publisher
from ..images.batches import (
    BatchSplit,
    TrainingImages,
    check_undecodable,
    load_validation,
    open_source,
    training_batches,
)
from ..images.frozen_cache import cached_outputs
from ..stages.adversary import Adversary
from ..stages.registry import STAGES
from ..stages.sharding import prepare, whole
from .averaging import WeightAverage
from .checkpointing import MODEL_FOLDER, Checkpointer, Progress, checkpoints, steps_of
from .interruption import Interruption
from .monitoring import Display, ScalarWindow, picture_columns, validation_scores
from .optimization import learning_rate_share, optimizers, own_settings, set_learning_rates
from .resuming import find_start, permitted_changes


logger = logging.getLogger(__name__)

_PICTURES = 8


class InterruptedTrainingError(RuntimeError):
    """SIGTERM or SIGINT was received; a checkpoint was written."""


class CannotStartError(ValueError):
    """The configuration does not fit the data, the files or the number of ranks."""


def train(config: TrainingConfig) -> None:
    """
    Trains one stage from a checked configuration to the end, starting from scratch or from a checkpoint.

    Writes to `output_dir`: `config.yaml`, checkpoints, the trackers' logs, pictures, and `model`, which
    `from_pretrained` loads.

    Raises:
        `CannotStartError`: before anything is written, if data or models are not what the configuration says, if a
            resumed run would change what may not change, or if another run writes to `output_dir`.
        `NonFiniteLossError`, `InterruptedTrainingError`, `UndecodableImagesError`, `CheckpointError`: see there.
    """
    with ExitStack() as stack:
        try:
            if _is_finished(config):
                logger.info("%s is finished: %s", config.stage, Path(config.output_dir) / MODEL_FOLDER)
                return
            # The other processes of the run wait for the first.
            if is_first_process():
                _enter(stack, config.output_dir)
            trainer = Trainer(config)
        except ValueError as error:
            raise CannotStartError(str(error)) from error
        stack.callback(trainer.close)
        trainer.run()


def _enter(stack: ExitStack, output_dir: str) -> None:
    try:
        stack.enter_context(sole_use(Path(output_dir)))
    except OSError as error:
        raise ValueError(f"`output_dir` is {output_dir!r}, it cannot be used: {reason(error)}") from error


class Trainer:
    """One run: everything it needs, prepared at construction, and the loop. See `train`."""

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.settings = settings = config.optimization
        self.output_dir = Path(config.output_dir)
        self.accelerator = accelerator = Accelerator(
            # Without this, Accelerate treats several CPU ranks as separate single-process runs.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=settings.mixed_precision,
            log_with=config.logging.trackers or None,
            project_dir=str(self.output_dir),
            # Code counts differ between ranks until they are summed.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if settings.mixed_precision == "bf16" and not computes_bfloat16(accelerator.device):
            logger.warning(
                "`optimization.mixed_precision` is 'bf16', but this %s is not known to have instructions for it: "
                "where bfloat16 is emulated, 'no' is many times faster.",
                accelerator.device.type,
            )
        self.split = BatchSplit(
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size or settings.batch_size // accelerator.num_processes,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
        )
        accelerator.gradient_accumulation_steps = self.split.micro_batches
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            # Muon needs the whole gradient of a matrix.
            optimizer = settings.optimizer
            require(optimizer == "adamw", "optimization.optimizer", optimizer, "'adamw' if weights are sharded")
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            weight = getattr(config.loss, "adversarial_weight", 0)
            # Accelerate would send the discriminator's backward pass to the stage's engine.
            require(weight == 0, "loss.adversarial_weight", weight, "0 with DeepSpeed: use DDP or FSDP2")
            # It takes these from the prepared loader, which this loop does not have.
            accelerator.state.deepspeed_plugin.deepspeed_config |= {
                "train_micro_batch_size_per_gpu": self.split.micro_batch_size,
                "gradient_accumulation_steps": self.split.micro_batches,
            }
        checkpoint, changed = _of_first_process(accelerator, lambda: find_start(config))
        self.publisher = Publisher(config) if config.push_to_hub and accelerator.is_main_process else None

        # First, as decoding all training images can take long.
        self.held_out = load_validation(config.data) if config.data.validation else {}
        images = None
        self.max_steps, self.warmup_steps = settings.max_steps, settings.warmup_steps
        if config.data.streaming:
            # The batches open it again, but a wrong source is to be found before anything is written.
            open_source(config.data, "train", open_rows)
        else:
            images = TrainingImages(config.data, config.seed, settings.batch_size)
            steps_per_epoch = max(1, len(images) // settings.batch_size)
            self.max_steps = self.max_steps or settings.epochs * steps_per_epoch
            self.warmup_steps = self.warmup_steps or settings.warmup_epochs * steps_per_epoch

        set_seed(config.seed)
        self.stage = stage = STAGES[config.stage].build(config).to(accelerator.device)
        if settings.channels_last:
            stage.to(memory_format=torch.channels_last)
        if settings.compile:
            for part in stage.compiled_parts():
                part.compile()
        self.wrapped, self.optimizers = prepare(
            accelerator, stage, optimizers(stage, settings, stage.layer_classes), stage.layer_classes
        )
        self.opponent = _Opponent(stage.adversary, config, accelerator) if stage.adversary is not None else None
        self.trainable = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        self.average = WeightAverage(stage, settings.ema_decay)
        num_images = None if images is None else len(images)
        self.progress = Progress(num_images=num_images)
        self.warned: set[str] = set()
        self.checkpointer = Checkpointer(accelerator, self.wrapped, stage, self.average, self.progress, config)
        if checkpoint is not None:
            with own_settings([*self.optimizers, *([] if self.opponent is None else [self.opponent.optimizer])]):
                self.checkpointer.load(checkpoint)
            before, self.progress.num_images = self.progress.num_images, num_images
            # Another number would put them in another order.
            require(
                before in (None, num_images),
                "data.train",
                config.data.train,
                f"the same {before} images as before, not {num_images}",
            )
            logger.info("Resumed from %s", checkpoint)
            for change in changed:
                logger.info("Changed on resuming: `%s` is %r, it was %r", change.name, change.now, change.before)
        self.checkpointer.prepare_folder()
        if config.data.cached_crops:
            # Now that the frozen part has its final weights.
            images.frozen = cached_outputs(
                config, accelerator, self.wrapped, stage, images, self.split.micro_batch_size
            )
        pin_memory = accelerator.device.type == "cuda"
        self.batches = training_batches(config.data, images, config.seed, self.split, self.progress.steps, pin_memory)
        self.window = ScalarWindow(settings.batch_size)
        accelerator.init_trackers("alit")
        logger.info(
            "%s: %.2f M trainable parameters, %s images, %d steps of %d",
            config.stage,
            sum(parameter.numel() for parameter in self.trainable) / 1e6,
            "streamed" if images is None else len(images),
            self.max_steps,
            settings.batch_size,
        )

    @property
    def share_done(self) -> float:
        """The share of the run that is over, 1 or more at its end."""
        timed = self.progress.seconds / (60 * self.settings.max_minutes) if self.settings.max_minutes else 0.0
        return max(self.progress.steps / self.max_steps, timed)

    def run(self) -> None:
        """The loop, up to the exported model."""
        every, progress = self.config.logging, self.progress
        display = Display(self.accelerator, self.config.stage, self.max_steps, progress.steps, self.output_dir)
        with Interruption() as interruption:
            while self.share_done < 1:
                started = time.monotonic()
                self._step()
                progress.steps += 1
                interrupted, progress.seconds = interruption.agree(progress.seconds + time.monotonic() - started)
                display.advance()

                finished = self.share_done >= 1
                if finished or _is_time(progress.steps, every.log_every):
                    self._show(self._scalars(), display)
                if self.held_out and (finished or _is_time(progress.steps, every.validate_every)):
                    self._validate(display)
                if self.held_out and (finished or _is_time(progress.steps, every.pictures_every)):
                    with self.average.applied():
                        images = self.held_out[self.config.data.height_width][:_PICTURES]
                        columns = picture_columns(self.wrapped, images, self.accelerator)
                    display.pictures(columns, progress.steps)
                if finished or interrupted or _is_time(progress.steps, every.checkpoint_every):
                    self.window.check_finite()
                    checkpoint = self.checkpointer.save()
                    logger.info("Wrote %s", checkpoint)
                    if not (finished or interrupted) and _is_time(progress.steps, self.config.push_every):
                        self._push(checkpoint / MODEL_FOLDER)
                if interrupted and not finished:
                    name = signal.Signals(interrupted).name
                    raise InterruptedTrainingError(
                        f"Stopped by {name} after {progress.steps} of {self.max_steps} steps."
                    )
        display.close()
        exported = self.checkpointer.export()
        logger.info("Wrote %s", exported)
        self._push(exported)
        if self.publisher is not None:
            self.publisher.finish()

    def close(self) -> None:
        """Ends trackers and releases everything, so that another run can follow in this process."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        # Loaders' workers and wrapped modules must be gone before the process group is.
        del self.batches, self.wrapped, self.optimizers, self.opponent, self.checkpointer
        self.accelerator.free_memory()

    def _validate(self, display: Display) -> None:
        """Scores all held-out images at each size."""
        found, warnings = {}, {}
        for size, images in self.held_out.items():
            with self.average.applied():
                scores = validation_scores(
                    self.wrapped, self.stage, images, self.split.micro_batch_size, self.accelerator
                )
            scores = self.stage.validation(scores, len(images))
            warnings |= self.stage.warnings(scores, len(images))
            prefix = self.config.data.validation_prefix(size)
            found |= {prefix + name: value for name, value in scores.items()}
        self._show(found, display)
        self._warn(warnings)

    def _show(self, values: dict[str, float], display: Display) -> None:
        display.scalars(values, self.progress.steps)
        self.progress.logged |= {name: (value, self.progress.steps) for name, value in values.items()}

    def _warn(self, warnings: dict[str, str]) -> None:
        """Warns once of each kind: a problem persists over many validations."""
        for kind, warning in warnings.items():
            if kind not in self.warned:
                logger.warning("%s", warning)
                self.warned.add(kind)

    def _push(self, model_folder: Path) -> None:
        if self.publisher is not None:
            progress = self.progress
            record = RunRecord(
                steps=progress.steps,
                seconds=progress.seconds,
                undecodable=progress.undecodable,
                values=dict(progress.logged),
            )
            self.publisher.push(model_folder, record)

    def _step(self) -> None:
        """One optimiser step of the stage, and of its adversary if it takes part."""
        accelerator, stage, step = self.accelerator, self.stage, self.progress.steps
        stage.step, stage.share_done = step, self.share_done
        stage.warmed_up = step + 1 >= self.warmup_steps
        self._set_learning_rate()
        # Each step has its own random seed, so resuming needs no generator state.
        set_seed(self.config.seed + step * self.split.num_ranks + self.split.rank)
        stage.train()
        accumulated = [self.wrapped] if self.opponent is None else [self.wrapped, self.opponent.wrapped]
        for batch in itertools.islice(self.batches, self.split.micro_batches):
            with accelerator.accumulate(*accumulated):
                pixel_values = batch["pixel_values"].to(accelerator.device, non_blocking=True).float() / 255
                with accelerator.autocast():
                    loss, scalars = self.wrapped(pixel_values, "training_loss", **self._cached(batch))
                accelerator.backward(loss)
                self.window.add(step, scalars, batch["undecodable"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.trainable, self.settings.max_grad_norm)
                    if isinstance(norm, torch.Tensor):  # DeepSpeed clips on its own and returns a number or None
                        self.window.add(step, {"gradient_norm": whole(norm)})
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                if stage.adversary_batch is not None:
                    self.window.add(step, self.opponent.step(*stage.adversary_batch))
        self.average.update()
        for replaced in stage.end_step():
            self.average.take_over(replaced.parameter, replaced.rows)

    def _cached(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Cached arguments, which the training loss then need not compute."""
        frozen = batch.get("frozen")
        return {} if frozen is None else {"frozen": frozen.to(self.accelerator.device, non_blocking=True)}

    def _set_learning_rate(self) -> None:
        warmed_up = (self.progress.steps + 1) / max(1, self.warmup_steps)
        share = learning_rate_share(warmed_up, self.share_done)
        self.learning_rate = self.settings.peak_learning_rate * share
        rates = [self.learning_rate, self.settings.muon_learning_rate * share]
        set_learning_rates(self.optimizers, rates[: len(self.optimizers)])
        if self.opponent is not None:
            self.opponent.set_learning_rate(self.learning_rate)

    def _scalars(self) -> dict[str, float]:
        """The scalars to log, from the steps since the last call."""
        scalars, undecodable = self.window.take(self.accelerator)
        self.progress.undecodable += undecodable
        seen = self.progress.steps * self.settings.batch_size
        check_undecodable(self.progress.undecodable, seen, self.config.data.max_undecodable)
        scalars |= {name: float(value) for name, value in self.stage.summary().items()}
        return scalars | {"undecodable": self.progress.undecodable, "learning_rate": self.learning_rate}


class _Opponent:
    """The stage's adversary with an optimiser of its own."""

    def __init__(self, adversary: Adversary, config: TrainingConfig, accelerator: Accelerator):
        self.accelerator = accelerator
        self.max_grad_norm = config.optimization.max_grad_norm
        self.learning_rate_share = config.loss.discriminator_learning_rate
        adversary.to(accelerator.device)
        # AdamW alone, as a discriminator has no transformer layers.
        self.wrapped, (self.optimizer,) = prepare(
            accelerator, adversary, optimizers(adversary, config.optimization), []
        )

    def set_learning_rate(self, stage_learning_rate: float) -> None:
        set_learning_rates([self.optimizer], [stage_learning_rate * self.learning_rate_share])

    def step(self, pixel_values: torch.Tensor, reconstruction: torch.Tensor, rollout: int) -> dict[str, torch.Tensor]:
        """One micro-batch, and the optimiser's step after the last one of the batch; returns scalars to log."""
        loss, scalars = self.wrapped(pixel_values, reconstruction, rollout)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return scalars


def _is_finished(config: TrainingConfig) -> bool:
    """Whether resuming would only load data and models."""
    folder, max_steps = Path(config.output_dir), config.optimization.max_steps
    existing = checkpoints(folder)
    if config.resume != "latest" or config.push_to_hub or max_steps == 0 or not existing:
        return False
    newest, model = existing[-1], folder / MODEL_FOLDER
    is_exported = model.is_dir() and model.stat().st_mtime >= newest.stat().st_mtime
    if not is_exported or steps_of(newest) < max_steps:
        return False
    permitted_changes(config, folder)
    return True


def _of_first_process(accelerator: Accelerator, call: Callable[[], Any]) -> Any:
    """What the first process finds, or the `ValueError` that it meets, on all processes."""
    outcome = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = call()
        except ValueError as error:
            outcome[1] = str(error)
    found, problem = broadcast_object_list(outcome)
    if problem is not None:
        raise ValueError(problem)
    return found


def _is_time(steps: int, every: int) -> bool:
    return every > 0 and steps % every == 0
