"""Where latent tokens look, rollout by rollout, and whether they look at less and less (paper Figs. 3, 11-13)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from alit_hf.analysis.analysis import Context, ImageBatch
from alit_hf.analysis.attention_analysis import AttentionAnalysis
from alit_hf.analysis.attention_figure import MapRow, draw_attention
from alit_hf.analysis.attention_maps import SIDES, AttentionSource, num_layers, rollout_maps
from alit_hf.analysis.sparsity import entropy, top_decile_share
from alit_hf.analysis.statistics import in_words, mean, not_enough
from alit_hf.evaluation.lengths import code_lengths
from alit_hf.evaluation.settings import SettingsError


_MEASURES = {"entropy": entropy, "top_decile_share": top_decile_share}
_SHARPENS = "sharpens"
_UNKNOWN = "cannot be told to sharpen or spread"

# Of entropy, whose range is 1. With many images smaller changes are significant, too, but not visible in maps.
_LEAST_CHANGE = 0.01

_NUM_PICTURES = 2
_TOKENS_OF_PICTURE = 4


@dataclass(kw_only=True)
class Attention(AttentionAnalysis):
    """
    Draws the maps of latent tokens over the first images after every rollout, for the chosen layer, and measures the
    sparsity of maps in all layers: their entropy, and the share of their mass in the top decile of positions. Both are
    means over an image's tokens: over all, and over those of the first rollout, which every later rollout refines.
    """

    name = "attention"
    default_limit = 200

    def check(self, context: Context) -> None:
        super().check(context)
        if context.model.config.max_rollouts < 2:
            raise SettingsError("the model has one rollout, so that nothing changes over rollouts")

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        """Means over tokens under `_column`'s names: one list, over layers and, within each, over rollouts."""
        config = context.model.config
        sources = [AttentionSource(side, layer) for side in SIDES for layer in range(num_layers(config, side))]
        maps = rollout_maps(context.model, batch.pixel_values, sources)
        measured = [{} for _ in batch.indices]
        for side in SIDES:
            of_side = [after_rollout for source in sources if source.side == side for after_rollout in maps[source]]
            for measure, function in _MEASURES.items():
                values = [function(after_rollout) for after_rollout in of_side]
                for tokens, counted in _tokens(config.tokens_per_rollout).items():
                    means = torch.stack([value[:, counted].mean(dim=1) for value in values], dim=1)
                    for row, of_image in enumerate(means.tolist()):
                        measured[row][_column(side, measure, tokens)] = of_image
        return measured

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `num_images`, and `not_enough_data` with the reason if they are too few.
            - `side`, `layer`: the chosen layer.
            - `layers`: for each `side`, `layer`, tokens (`all`, `first`: those of the first rollout) and measure
              (`entropy`, divided by the logarithm of the number of positions, and `top_decile_share`), its mean over
              images `by_length`, and its `change` from the first to the last rollout.
        """
        config, seed = context.model.config, context.settings.seed
        lengths = code_lengths(config)

        def sparsity(side: str, layer: int, measure: str, tokens: str) -> dict:
            values = np.stack(table[_column(side, measure, tokens)]).reshape(len(table), -1, len(lengths))[:, layer]
            return {
                "by_length": {str(length): mean(values[:, k], seed=seed) for k, length in enumerate(lengths)},
                "change": mean(values[:, -1] - values[:, 0], seed=seed),
            }

        source = self.source(config)
        return {
            "num_images": len(table),
            "not_enough_data": not_enough(len(table)),
            "side": source.side,
            "layer": source.layer,
            "layers": [
                {
                    "side": side,
                    "layer": layer,
                    **{
                        tokens: {measure: sparsity(side, layer, measure, tokens) for measure in _MEASURES}
                        for tokens in _tokens(config.tokens_per_rollout)
                    },
                }
                for side in SIDES
                for layer in range(num_layers(config, side))
            ],
        }

    def finding(self, results: dict) -> str:
        if results["not_enough_data"] is not None:
            return results["not_enough_data"]
        chosen = _chosen_layer(results)
        of_all, of_first = (chosen[tokens]["entropy"] for tokens in ("all", "first"))
        few, *_, many = of_all["by_length"]
        start, end = (in_words(of_all["by_length"][length]) for length in (few, many))
        top = chosen["all"]["top_decile_share"]["change"]
        verdicts = [_verdict(layer["all"]["entropy"]["change"]) for layer in results["layers"]]
        unknown = verdicts.count(_UNKNOWN)
        return (
            f"over rollouts the attention of latent tokens ({chosen['side']}, layer {chosen['layer']}) "
            f"{_verdict(of_all['change'])}: entropy (1 is uniform) {start} with {few} tokens, {end} with {many}, "
            f"change {in_words(of_all['change'])}, of the first {few} tokens alone {in_words(of_first['change'])}; "
            f"mass in the top decile of positions changes by {in_words(top)}; it {_SHARPENS} in "
            f"{verdicts.count(_SHARPENS)} of {len(verdicts)} layers of decoder and encoder"
            + (f", in {unknown} it {_UNKNOWN}" if unknown else "")
        )

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        first = table.head(_NUM_PICTURES)
        pictures = [context.data[name].read(index) for name, index in zip(first["data"], first["index"], strict=True)]
        pixel_values = context.processor(pictures, return_tensors="pt").pixel_values
        config = context.model.config
        source = self.source(config)
        maps = rollout_maps(context.model, pixel_values, [source])[source]
        num_shown = min(_TOKENS_OF_PICTURE, config.tokens_per_rollout)
        rows = [
            MapRow(
                pixel_values[picture].permute(1, 2, 0).numpy(),
                f"token {token}",
                np.stack([after_rollout[picture, token].cpu() for after_rollout in maps]),
            )
            for picture in range(len(pictures))
            for token in np.arange(num_shown) * config.tokens_per_rollout // num_shown
        ]
        return draw_attention(rows, code_lengths(config), _chosen_layer(results))


def _verdict(change_of_entropy: dict) -> str:
    if change_of_entropy["not_enough_data"] is not None:
        return _UNKNOWN
    low, high = change_of_entropy["low"], change_of_entropy["high"]
    if low <= 0 <= high or abs(change_of_entropy["value"]) < _LEAST_CHANGE:
        return "hardly changes"
    return _SHARPENS if high < 0 else "spreads"


def _tokens(tokens_per_rollout: int) -> dict[str, slice]:
    """The tokens that means are taken over, by name."""
    return {"all": slice(None), "first": slice(tokens_per_rollout)}


def _column(side: str, measure: str, tokens: str) -> str:
    return f"{side}_{measure}_{tokens}"


def _chosen_layer(results: dict) -> dict:
    return next(
        layer for layer in results["layers"] if (layer["side"], layer["layer"]) == (results["side"], results["layer"])
    )


ANALYSIS = Attention
