"""The interface between training stages and the loop."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..configuration import TrainingConfig, require
from .adversary import Adversary


@dataclass(kw_only=True)
class Replaced:
    """Rows (bool, `(C,)`) of a parameter that were replaced rather than moved by the optimiser."""

    parameter: nn.Parameter
    rows: torch.Tensor


class Stage(nn.Module):
    """
    A stage of training: its loss, trainable parameters and logs, but nothing about devices, files or ranks.

    The loop wraps the stage itself for distributed training, so everything that uses its parameters goes through
    `forward`. Parameters with `requires_grad` off are not trained.

    Args:
        model: what is trained.
        adversary: trained alongside the stage with an optimiser of its own, and therefore not a submodule.
    """

    has_frozen_part: bool = False
    """Whether `training_loss` takes what `frozen_outputs` returns for the same pixels, computed once."""

    takes_buckets: bool = False
    """Whether batches may have sizes of their own, `data.buckets`."""

    replaces_base: bool = False
    """Whether the model may get another base tokenizer, `base_from`."""

    layer_classes: tuple[str, ...] = ()
    """Classes of transformer layers that train: Muon moves their matrices, and FSDP2 gathers them one at a time."""

    individual_scores: tuple[str, ...] = ()
    """Names of `score` whose values for all held-out images are passed to `validation`, and not their means."""

    step: int = 0
    """The current step, counted from 0; set by the loop."""

    share_done: float = 0.0
    """The share of the run before this step, in [0, 1); set by the loop."""

    warmed_up: bool = False
    """Whether the learning rate's warm-up is over; set by the loop."""

    def __init__(self, model: nn.Module, adversary: Adversary | None = None):
        super().__init__()
        self.model = model
        self._adversary = (adversary,)  # in a tuple, as attributes that are modules become submodules
        self.adversary_batch: tuple[torch.Tensor, torch.Tensor, int] | None = None
        """Arguments of the adversary's own step after `forward`; None if it has none."""

    @property
    def adversary(self) -> Adversary | None:
        return self._adversary[0]

    @classmethod
    def check_config(cls, config: TrainingConfig) -> None:
        """Raises `ValueError` for an impossible run. Must not compute or load anything."""

    @staticmethod
    def check_start(config: TrainingConfig, name: str, start: int) -> None:
        """Raises `ValueError` if the run ends before its codebook starts, at the step given by the field `name`."""
        settings = config.optimization
        most = settings.max_steps
        require(start == 0 or most == 0 or start < most, name, start, f"below optimization.max_steps, which is {most}")
        minutes = settings.max_minutes
        require(start == 0 or minutes == 0, name, start, "0 if optimization.max_minutes may end the run before it")

    @staticmethod
    def check_latents(config: TrainingConfig, name: str, start: int, an_image: int, codes: int) -> None:
        """Raises `ValueError` if the steps before the start of a codebook give fewer latents than it has codes."""
        most = start * config.optimization.batch_size * an_image
        require(most >= codes, name, start, f"later: the steps before it give {most} latents for {codes} codes")

    @classmethod
    def build(cls, config: TrainingConfig) -> "Stage":
        """Builds the stage from a configuration, with its networks loaded or initialised."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: torch.Tensor,
        purpose: Literal["training_loss", "frozen_outputs", "score", "pictures"],
        **arguments: torch.Tensor,
    ):
        """Calls the method of that name on float pixels `(B, 3, H, W)` in [0, 1]."""
        return getattr(self, purpose)(pixel_values, **arguments)

    def training_loss(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, a scalar, and detached scalars to log."""
        raise NotImplementedError

    def frozen_outputs(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the stage takes from its frozen part, `(B, *frozen_shape)`, if it `has_frozen_part`."""
        raise NotImplementedError

    @property
    def frozen_shape(self) -> tuple[int, ...]:
        """The shape of `frozen_outputs` for one image."""
        raise NotImplementedError

    def frozen_weights(self) -> dict[str, torch.Tensor]:
        """The weights that `frozen_outputs` depends on."""
        raise NotImplementedError

    def frozen_settings(self) -> Any:
        """What else it depends on, as JSON knows it."""
        raise NotImplementedError

    def end_step(self) -> list[Replaced]:
        """Called after each optimiser step, without gradients."""
        return []

    def gather_counts(self) -> None:
        """
        Called on all ranks before a checkpoint, which has the buffers of the first one: moves there what each rank has
        counted for itself.
        """

    def leave_counts_to_first_rank(self) -> None:
        """Called on all ranks after loading a checkpoint: drops copies of what `gather_counts` has gathered."""

    def summary(self) -> dict[str, torch.Tensor]:
        """Further scalars to log, computed only when logging."""
        return {}

    def score(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named scores `(B, …)` of held-out images."""
        raise NotImplementedError

    def validation(self, scores: dict[str, torch.Tensor], num_pictures: int) -> dict[str, float]:
        """The values to log, from the means of `score` over all held-out images, and its `individual_scores`."""
        return {name: float(mean) for name, mean in scores.items()}

    def warnings(self, validation: dict[str, float], num_pictures: int) -> dict[str, str]:
        """Problems that `validation` reveals, by kind, each with the likely cause and what to change."""
        return {}

    def pictures(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named reconstructions `(B, 3, H, W)` to look at."""
        raise NotImplementedError

    def save_pretrained(self, folder: str, weights: dict[str, torch.Tensor]) -> None:
        """
        Writes the stage's model as a folder that `from_pretrained` loads.

        Args:
            folder: created if missing.
            weights: the state dict of `model` to write, whole tensors.
        """
        raise NotImplementedError

    def compiled_parts(self) -> list[nn.Module]:
        """The modules worth compiling with `torch.compile`."""
        raise NotImplementedError

    def with_adversarial_loss(
        self,
        reconstruction_loss: torch.Tensor,
        reconstruction: torch.Tensor,
        pixel_values: torch.Tensor,
        rollout: int,
        last_layer: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss with the adversarial part, if the stage has one in this step, and its terms to log."""
        self.adversary_batch = None
        if self.adversary is None or not self.adversary.plays(self.step):
            return reconstruction_loss, {}
        self.adversary_batch = (pixel_values, reconstruction.detach().float(), rollout)
        adversarial, logs = self.adversary.weighted_generator_loss(
            reconstruction_loss, reconstruction, rollout, last_layer
        )
        return reconstruction_loss + adversarial, logs
