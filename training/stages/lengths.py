"""Stage `lengths`: the length predictor of a finished model, everything else frozen; calibrated on held-out images."""

import math
from pathlib import Path
from typing import Any

import torch

from alit_hf import ALITModel
from alit_hf.model.length_prediction import bound_margin, largest_shortfall, least_calibration_size, to_logs
from alit_hf.model.selection import criterion_names, is_higher_better, resolve_criterion, score_images

from ..configuration import TrainingConfig, require
from .alit import ALITStage
from .loss_config import LengthsLossConfig
from .stage import Replaced
from .starting_models import finished_config, finished_model


# Confidences whose margins are logged.
_CONFIDENCES = (0.8, 0.9, 0.95)


class LengthsStage(ALITStage):
    """
    Trains the head that predicts the criterion's value at every length from the first rollout. The targets are the
    values that the model itself gives. Every validation calibrates the head on all held-out images.
    """

    has_frozen_part = True
    layer_classes = ()
    individual_scores = ("shortfall",)

    def __init__(self, model: ALITModel, loss: LengthsLossConfig):
        model.requires_grad_(False)
        model.set_length_criterion(loss.criterion)
        super().__init__(model, loss)
        # In a tuple, as a network would become a part of the stage.
        self._criterion = (resolve_criterion(loss.criterion),)

    @classmethod
    def check_config(cls, config: TrainingConfig) -> None:
        require(bool(config.init_from), "init_from", config.init_from, "the folder or Hub id of a finished model")
        require(not config.model, "model", config.model, "empty, as `init_from` determines it")
        if Path(config.init_from).is_dir():
            finished_config(config)
        criterion, names = config.loss.criterion, criterion_names()
        require(criterion in names, "loss.criterion", criterion, f"one of {names}")
        held_out = config.data.validation
        require(bool(held_out), "data.validation", held_out, "the images to calibrate on")
        precision = config.optimization.mixed_precision
        require(precision == "no", "optimization.mixed_precision", precision, "'no': codes are computed in float32")

    @classmethod
    def build(cls, config: TrainingConfig) -> "LengthsStage":
        return cls(finished_model(config), config.loss)

    @torch.no_grad()
    def frozen_outputs(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The predictor's features and the true scores at every length as logs, `(B, 4 * W + K)`."""
        features, logs = None, []
        for rollout in self.model.rollouts(pixel_values):
            if features is None:
                features = self.model.length_predictor.features(rollout.last_hidden_state)
            scores = score_images(self._criterion[0], rollout.reconstruction, pixel_values)
            logs.append(to_logs(scores, self._higher_is_better))
        return torch.cat([features, torch.stack(logs, dim=1)], dim=1)

    @property
    def frozen_shape(self) -> tuple[int, ...]:
        return (self.model.length_predictor.num_features + self.model.config.max_rollouts,)

    def frozen_weights(self) -> dict[str, torch.Tensor]:
        weights = self.model.state_dict()
        return {name: weights[name] for name in weights if not name.startswith("length_predictor.")}

    def frozen_settings(self) -> dict[str, Any]:
        return {**self.model.config.to_dict(), "length_shortfalls": None}

    @property
    def _higher_is_better(self) -> bool:
        return is_higher_better(self._criterion[0])

    def _predicted_and_true(self, frozen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logs of the scores at every length, each `(B, K)`."""
        features, true = frozen.split(
            [self.model.length_predictor.num_features, self.model.config.max_rollouts], dim=1
        )
        return self.model.length_predictor(features), true

    def training_loss(
        self, pixel_values: torch.Tensor, frozen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        predicted, true = self._predicted_and_true(self.frozen_outputs(pixel_values) if frozen is None else frozen)
        loss = (predicted - true).square().mean()
        return loss, {"loss": loss.detach()}

    def end_step(self) -> list[Replaced]:
        # A calibration is of the weights before the step.
        self.model.config.length_shortfalls = None
        return []

    def score(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted, true = self._predicted_and_true(self.frozen_outputs(pixel_values))
        return {
            "square": (predicted - true).square().mean(dim=1),
            "shortfall": largest_shortfall(predicted, true),
        }

    def validation(self, scores: dict[str, torch.Tensor], num_pictures: int) -> dict[str, float]:
        """
        Calibrates the predictor. Logged: the root mean squared error of its logs, and what confidences add to them.
        """
        # Rounded upwards, which keeps the promise.
        shortfalls = sorted(math.ceil(shortfall * 1e6) / 1e6 for shortfall in scores["shortfall"].tolist())
        self.model.config.length_shortfalls = shortfalls
        margins = {
            f"margin/{confidence}": bound_margin(shortfalls, confidence)
            for confidence in _CONFIDENCES
            if len(shortfalls) >= least_calibration_size(confidence)
        }
        return {"error": float(scores["square"].sqrt()), **margins}
