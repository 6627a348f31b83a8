"""Whether attention maps of latent tokens cover segments that people see as one thing (paper section 4, Tab. 2)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from alit_hf.analysis.analysis import Context, ImageBatch
from alit_hf.analysis.attention_analysis import AttentionAnalysis
from alit_hf.analysis.attention_maps import rollout_maps
from alit_hf.analysis.charts import draw_estimates, new_figure, style
from alit_hf.analysis.label_maps import crop_label_map, read_label_map
from alit_hf.analysis.segment_overlap import SHARES, Segments, overlaps, segments_of_label_maps
from alit_hf.analysis.statistics import in_words, mean, not_enough
from alit_hf.analysis.untrained_model import untrained_copy
from alit_hf.evaluation.lengths import code_lengths


_BASELINES = {
    "untrained": "a model with random weights",
    "discs": "discs at random places",
    "scattered": "random positions",
    "center": "a disc in the centre",
}
_MAPS = {"model": "the model", **_BASELINES}
_COLORS = {"model": "C3", "untrained": "C0", "discs": "C2", "scattered": "C1", "center": "0.5"}
_THRESHOLDS = {"top_40": 0.4, "top_60": 0.6, "top_80": 0.8}
_BEST = "best"


@dataclass(kw_only=True)
class Segmentation(AttentionAnalysis):
    """
    Compares thresholded attention maps of latent tokens with segments that people drew.

    The overlap is a mean intersection over union: each segment counts with the map that fits it best, averaged over
    the segments of an annotator, over annotators and over images. A map is thresholded to a share of the grid's
    positions, the highest ones: 40, 60 or 80 %, or the share (in steps of 5 %) that is best for the image.

    The more maps there are to choose from, the better the best one fits. So each length is compared with as many
    unlearned masks of the same area: those of a model with random weights, discs at random places and random
    positions; and with one disc in the centre.
    """

    name = "segmentation"
    default_limit = 200
    columns = ("segments",)
    data_options = {
        "data": "images with a column `segments`, for each annotator the bytes of a PNG of the image's size that "
        "numbers the segments from 1"
    }

    def check(self, context: Context) -> None:
        super().check(context)
        self._untrained = untrained_copy(context.model, context.settings.seed % 2**64)

    def measure_settings(self, context: Context) -> dict:
        source = self.source(context.model.config)
        return {"side": source.side, "layer": source.layer, "seed": context.settings.seed}

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        """The overlap for each kind of map: one list, over lengths and, within each, over `SHARES`."""
        config = context.model.config
        source, grid_size = self.source(config), config.grid_size
        segments = [_read_segments(context, batch, row) for row in range(len(batch.indices))]
        trained, untrained = (
            rollout_maps(model, batch.pixel_values, [source])[source] for model in (context.model, self._untrained)
        )
        measured = []
        for row, index in enumerate(batch.indices):
            generator = _generator(context.settings.seed, index)
            of_image = {name: [] for name in _MAPS}
            for rollout, num_tokens in enumerate(code_lengths(config)):
                maps = {
                    "model": trained[rollout][row],
                    "untrained": untrained[rollout][row],
                    "discs": disc_maps(num_tokens, grid_size, generator),
                    "scattered": scattered_maps(num_tokens, grid_size, generator),
                    "center": center_map(grid_size),
                }
                for name in _MAPS:
                    of_image[name] += overlaps(maps[name], segments[row]).tolist()
            measured.append({_column(name): values for name, values in of_image.items()})
        return measured

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            - `num_images`, and `not_enough_data` with the reason if they are too few.
            - `side`, `layer`: the layer of the attention.
            - `overlap`: the mIoU for each kind of map, length and threshold.
            - `advantage`: for each other kind of map, length and threshold, how much higher the model's mIoU is, with
              an interval from the differences per image.
        """
        lengths, seed = code_lengths(context.model.config), context.settings.seed
        measured = {name: _at_thresholds(_overlaps(table, name)) for name in _MAPS}

        def estimates(values: dict[str, np.ndarray]) -> dict:
            return {
                str(length): {
                    threshold: mean(values[threshold][:, rollout], seed=seed) for threshold in (*_THRESHOLDS, _BEST)
                }
                for rollout, length in enumerate(lengths)
            }

        def differences(baseline: str) -> dict[str, np.ndarray]:
            return {
                threshold: measured["model"][threshold] - values for threshold, values in measured[baseline].items()
            }

        source = self.source(context.model.config)
        return {
            "num_images": len(table),
            "not_enough_data": not_enough(len(table)),
            "side": source.side,
            "layer": source.layer,
            "overlap": {name: estimates(measured[name]) for name in _MAPS},
            "advantage": {name: estimates(differences(name)) for name in _BASELINES},
        }

    def finding(self, results: dict) -> str:
        if results["not_enough_data"] is not None:
            return results["not_enough_data"]
        length = list(results["overlap"]["model"])[-1]
        beaten, unbeaten, unknown = [], [], []
        for name, what in _BASELINES.items():
            advantage = results["advantage"][name][length][_BEST]
            if advantage["not_enough_data"] is not None:
                unknown.append(f"{what} {in_words(advantage)}")
            else:
                (beaten if advantage["low"] > 0 else unbeaten).append(f"{what} (by {in_words(advantage)})")
        overlap = in_words(results["overlap"]["model"][length][_BEST])
        return (
            f"with {length} tokens and the best threshold for each image, attention maps ({results['side']}, layer "
            f"{results['layer']}) fit human segments with a mIoU of {overlap}: "
            + "; ".join(
                f"{verdict} {', '.join(baselines)}"
                for verdict, baselines in (
                    ("better than", beaten),
                    ("not better than", unbeaten),
                    ("not to be compared with", unknown),
                )
                if baselines
            )
        )

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        figure = new_figure(8.2, 3.4)
        by_length, by_share = figure.subplots(1, 2)
        lengths = list(results["overlap"]["model"])
        for name, label in _MAPS.items():
            estimates = {length: of_shares[_BEST] for length, of_shares in results["overlap"][name].items()}
            draw_estimates(by_length, estimates, label, _COLORS[name])
            longest = _overlaps(table, name)[:, -1].mean(axis=0)
            by_share.plot([100 * share for share in SHARES], longest, color=_COLORS[name], label=label)
        by_length.set_xticks([int(length) for length in lengths])
        style(by_length, "latent tokens", "mIoU with human segments", "best threshold for each image")
        style(by_share, "share of positions kept (%)", "", f"one threshold for all images, {lengths[-1]} tokens")
        by_share.legend(fontsize=8, frameon=False)
        return figure


def _generator(seed: int, index: int) -> torch.Generator:
    """A generator that is different for each image and seed."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _read_segments(context: Context, batch: ImageBatch, row: int) -> Segments:
    images, index, pngs = context.data[batch.data], batch.indices[row], batch.columns["segments"][row]
    try:
        if not isinstance(pngs, list):
            raise ValueError(f"`segments` is {type(pngs).__name__}, it must be a list of PNG files' bytes")
        size = images.read(index).size
        label_maps = [crop_label_map(read_label_map(png, size), context.processor) for png in pngs]
        return segments_of_label_maps(label_maps, context.model.config.grid_size)
    except ValueError as error:
        raise ValueError(f"{images.name(index)}: {error}") from error


def _column(name: str) -> str:
    return f"overlap_{name}"


def _overlaps(table: pd.DataFrame, name: str) -> np.ndarray:
    """What `measure` stored for one kind of map, `(N, K, len(SHARES))`."""
    return np.stack(table[_column(name)]).reshape(len(table), -1, len(SHARES))


def _at_thresholds(values: np.ndarray) -> dict[str, np.ndarray]:
    """Overlaps `(N, K, len(SHARES))` at each threshold, `(N, K)`."""
    return {name: values[..., SHARES.index(share)] for name, share in _THRESHOLDS.items()} | {
        _BEST: values.max(axis=2)
    }


def scattered_maps(num_maps: int, grid_size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Maps `(num_maps, rows, columns)` whose highest values are at random positions."""
    return torch.rand(num_maps, *grid_size, generator=generator)


def disc_maps(num_maps: int, grid_size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Maps `(num_maps, rows, columns)` that fall off around random places: thresholded, they are discs."""
    return _discs(torch.rand(num_maps, 2, generator=generator) * torch.tensor(grid_size), grid_size)


def center_map(grid_size: tuple[int, int]) -> torch.Tensor:
    """One map `(1, rows, columns)` that falls off around the image's centre."""
    return _discs(torch.tensor([grid_size]) / 2, grid_size)


def _discs(centers: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Negative squared distances of the positions' centres from `centers` `(num_maps, 2)`, in grid positions."""
    rows, columns = (torch.arange(size) + 0.5 for size in grid_size)
    return -((rows[:, None] - centers[:, :1, None]) ** 2 + (columns - centers[:, 1:, None]) ** 2)


ANALYSIS = Segmentation
