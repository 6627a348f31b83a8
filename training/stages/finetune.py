"""Stage `finetune`: the paper's second stage. Everything trains, base tokenizer included; pixels are the target."""

from pathlib import Path

import numpy as np
import torch

from alit_hf import ALITModel

from ..configuration import TrainingConfig, require
from .adversary import Adversary
from .alit import ALITStage
from .loss_config import FinetuneLossConfig
from .pixel_loss import PixelLoss
from .starting_models import finished_config, finished_model


class FinetuneStage(ALITStage):
    """Trains all of an `ALITModel` on pixels, at one length per step: L1 + LPIPS, later with an adversarial loss."""

    takes_buckets = True
    replaces_base = True

    def __init__(self, model: ALITModel, loss: FinetuneLossConfig, seed: int = 0):
        adversary = Adversary(loss, model.config.max_rollouts) if loss.adversarial_weight > 0 else None
        super().__init__(model, loss, adversary)
        self.seed = seed
        self.pixel_loss = PixelLoss(loss)
        # It predicts what this stage changes.
        model.set_length_criterion(None)
        # There is no halting in this stage.
        model.config.halting_threshold = None
        model.embeddings.mask_token.requires_grad_(False)
        if model.config.max_rollouts == 1:
            model.encoder.layernorm_rollout.requires_grad_(False)

    @classmethod
    def check_config(cls, config: TrainingConfig) -> None:
        require(
            bool(config.init_from), "init_from", config.init_from, "the folder or Hub id of the first stage's model"
        )
        require(not config.model, "model", config.model, "empty, as `init_from` determines it")
        if Path(config.init_from).is_dir():
            finished_config(config)

    @classmethod
    def build(cls, config: TrainingConfig) -> "FinetuneStage":
        stage = cls(finished_model(config), config.loss, config.seed)
        stage.pixel_loss.check_sizes(config.data)
        return stage

    def drawn_rollout(self) -> int:
        """The index of this step's rollout, counted from 0, the same on every rank."""
        random = np.random.default_rng((self.seed, self.step))
        return int(random.integers(self.model.config.max_rollouts))

    def training_loss(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model, rollout = self.model, self.drawn_rollout()
        num_tokens = (rollout + 1) * model.config.tokens_per_rollout
        # A run with buckets has batches of other grids than the model's own.
        output = model(pixel_values, num_tokens=num_tokens, interpolate_pos_encoding=True)
        self.observe([output.token_ids])
        loss, logs = self.pixel_loss(output.reconstruction, pixel_values, self.step)
        logs = {"loss": loss.detach(), **logs, f"l1/{output.num_tokens}": logs["l1"]}
        loss, adversarial_logs = self.with_adversarial_loss(
            loss, output.reconstruction, pixel_values, rollout, model.base_tokenizer.model.decoder.conv_out.weight
        )
        if output.quantizer_loss is not None:
            quantizer_loss = output.quantizer_loss.mean()
            loss = loss + self.loss.quantizer_weight * quantizer_loss
            logs["quantization"] = quantizer_loss.detach()
        if rollout == 0 and model.config.max_rollouts > 1:
            # Unused by the first rollout, but distributed training waits for its gradient anyway.
            loss = loss + 0 * sum(parameter.sum() for parameter in model.encoder.layernorm_rollout.parameters())
        return loss, {**logs, **adversarial_logs}

    def score(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = {}
        for rollout in self.model.rollouts(pixel_values, interpolate_pos_encoding=True):
            for name, value in self.pixel_loss.scores(rollout.reconstruction, pixel_values).items():
                scores[f"{name}/{rollout.num_tokens}"] = value
        return scores
