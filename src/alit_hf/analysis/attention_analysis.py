"""Shared parts of attention analyses: the choice of a layer, and a model that returns its weights."""

import argparse
from dataclasses import dataclass

from alit_hf.evaluation.settings import SettingsError
from alit_hf.model.configuration_alit import ALITConfig
from alit_hf.utils.option_types import whole_number

from .analysis import Analysis, Context
from .attention_maps import SIDES, AttentionSource, num_layers


@dataclass(kw_only=True)
class AttentionAnalysis(Analysis):
    """
    An analysis of one layer's attention. It switches the model to eager attention, the only kind that returns weights.

    Args:
        side (`str`): one of `SIDES`.
        layer (`int`, *optional*): the layer's index, from 0. Defaults to the last one.
    """

    side: str = "decoder"
    layer: int | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--side",
            choices=SIDES,
            default="decoder",
            help="attention of grid positions to latent tokens in the distillation decoder, or of latent tokens to "
            "grid positions in the encoder (default: %(default)s)",
        )
        parser.add_argument("--layer", metavar="N", type=whole_number, help="from 0 (default: the last layer)")

    def source(self, config: ALITConfig) -> AttentionSource:
        """The layer chosen by the options."""
        return AttentionSource(self.side, num_layers(config, self.side) - 1 if self.layer is None else self.layer)

    def check(self, context: Context) -> None:
        try:
            self.source(context.model.config).check(context.model.config)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        context.model.set_attn_implementation("eager")


__all__ = ["AttentionAnalysis"]
