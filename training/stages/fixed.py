"""Stage `fixed`: the first stage with one rollout of N tokens, the fixed-length baseline of the paper."""

from ..configuration import TrainingConfig, require
from .distill import DistillStage


class FixedStage(DistillStage):
    """Like `distill`, with all `model.tokens_per_rollout` tokens in one rollout."""

    @classmethod
    def check_config(cls, config: TrainingConfig) -> None:
        rollouts = config.model.get("max_rollouts")
        require(rollouts == 1, "model.max_rollouts", rollouts, "1 for a fixed length")
        super().check_config(config)

    @property
    def rollout_weights(self) -> tuple[float, ...]:
        # The weight of long codes, as there is no shorter one to favour.
        return (1.0,)
