"""The stages of training, one a file."""

from .base import BaseStage
from .distill import DistillStage
from .finetune import FinetuneStage
from .fixed import FixedStage
from .stage import Stage


STAGES: dict[str, type[Stage]] = {
    "base": BaseStage,
    "distill": DistillStage,
    "finetune": FinetuneStage,
    "fixed": FixedStage,
}
