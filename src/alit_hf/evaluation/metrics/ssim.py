"""Structural similarity of pictures, as a module for `evaluate.load`."""

import datasets
import evaluate

from alit_hf.evaluation.pixels import mean_score
from alit_hf.evaluation.scores import ssim


_DESCRIPTION = """
Structural similarity (Gaussian window of 11 pixels, sigma 1.5), mean over pictures.

Args:
    predictions (`list` of `PIL.Image.Image`): reconstructions.
    references (`list` of `PIL.Image.Image`): originals, each of its reconstruction's size.

Returns:
    `{"ssim": float}`, at most 1, higher is better.
"""


class SSIM(evaluate.Metric):
    """Structural similarity of pictures; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Wang et al., Image quality assessment: from error visibility to structural similarity, 2004",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"ssim": mean_score(ssim, predictions, references)}
