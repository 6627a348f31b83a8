"""A contact sheet of any pictures at every length (paper Fig. 14)."""

import argparse
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from alit_hf.analysis.analysis import Analysis, Context, ImageBatch
from alit_hf.analysis.errors import describe_errors, error_matrix
from alit_hf.codes.figure import draw_panels, frame_caption, rollout_panels
from alit_hf.codes.length_choice import DEFAULT_THRESHOLD, add_threshold_argument
from alit_hf.codes.rollout_pictures import RolloutPicture, payload_bytes, rollout_pictures
from alit_hf.evaluation.lengths import code_lengths, smallest_satisfying
from alit_hf.evaluation.rounding import rounded


@dataclass(kw_only=True)
class Unfamiliar(Analysis):
    """
    Shows each picture at every length, in a row, and frames the length that a threshold chooses. It estimates nothing,
    so a single picture is enough.

    Args:
        threshold (`float`): L1 below which a picture has enough tokens.
    """

    name = "unfamiliar"
    default_limit = 8
    data_options = {"data": "the pictures to show"}

    threshold: float = DEFAULT_THRESHOLD

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_threshold_argument(parser)

    def measure(self, context: Context, batch: ImageBatch) -> list[dict[str, Any]]:
        originals = context.processor.postprocess(batch.pixel_values)
        return [
            _picture_row(original, rollout_pictures(context.model, context.processor, pixel_values.unsqueeze(0)))
            for original, pixel_values in zip(originals, batch.pixel_values, strict=True)
        ]

    def summarize(self, context: Context, table: pd.DataFrame) -> dict:
        """
        Returns:
            what `describe_errors` returns, and for each of `pictures` the name, `l1` at each length, `num_tokens` (the
            smallest length below the threshold, else the full one) and `satisfied` (whether it is below).
        """
        errors, lengths = error_matrix(table), code_lengths(context.model.config)
        chosen, satisfied = smallest_satisfying(errors, self.threshold)
        return {
            **describe_errors(errors, lengths, self.threshold),
            "pictures": [
                {
                    "image": table["image"][row],
                    "l1": {str(length): rounded(error) for length, error in zip(lengths, errors[row], strict=True)},
                    "num_tokens": lengths[chosen[row]],
                    "satisfied": bool(satisfied[row]),
                }
                for row in range(len(table))
            ],
        }

    def finding(self, results: dict) -> str:
        of_lengths = list(results["l1"].items())
        (shortest, with_few), (longest, with_many) = of_lengths[0], of_lengths[-1]
        satisfied = sum(picture["satisfied"] for picture in results["pictures"])
        return (
            f"{satisfied} of {results['num_images']} pictures reach an L1 below {self.threshold:g}; on average it is "
            f"{with_few:.3f} at {shortest} tokens and {with_many:.3f} at {longest}"
        )

    def draw(self, context: Context, table: pd.DataFrame, results: dict) -> Figure:
        config = context.model.config
        rows = []
        for picture, stored in zip(results["pictures"], table.to_dict("records"), strict=True):
            rollouts = [
                RolloutPicture(
                    num_tokens=num_tokens,
                    token_ids=None,
                    picture=_from_png(png),
                    l1=l1,
                    psnr=psnr,
                    payload_bytes=payload_bytes(config, num_tokens) if config.quantize else None,
                )
                for num_tokens, png, l1, psnr in zip(
                    code_lengths(config), stored["pictures"], stored["l1"], stored["psnr"], strict=True
                )
            ]
            picked = next(rollout for rollout in rollouts if rollout.num_tokens == picture["num_tokens"])
            rows.append(rollout_panels(Path(picture["image"]).name, _from_png(stored["original"]), rollouts, picked))
        return draw_panels(rows, frame_caption(self.threshold))


def _picture_row(original: Image.Image, rollouts: list[RolloutPicture]) -> dict[str, Any]:
    if not all(math.isfinite(rollout.l1) for rollout in rollouts):
        raise ValueError("the model's pictures have NaN or infinite errors")
    return {
        "l1": [rollout.l1 for rollout in rollouts],
        "psnr": [rollout.psnr for rollout in rollouts],
        "original": _to_png(original),
        "pictures": [_to_png(rollout.picture) for rollout in rollouts],
    }


def _to_png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _from_png(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


ANALYSIS = Unfamiliar
