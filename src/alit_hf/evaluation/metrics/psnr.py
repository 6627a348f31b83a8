"""Peak signal-to-noise ratio of pictures, as a module for `evaluate.load`."""

import datasets
import evaluate

from alit_hf.evaluation.pixels import mean_score
from alit_hf.evaluation.scores import psnr


_DESCRIPTION = """
Peak signal-to-noise ratio in dB, for each picture (at most 100) and then the mean over pictures.

Args:
    predictions (`list` of `PIL.Image.Image`): reconstructions.
    references (`list` of `PIL.Image.Image`): originals, each of its reconstruction's size.

Returns:
    `{"psnr": float}`, higher is better.
"""


class PSNR(evaluate.Metric):
    """Peak signal-to-noise ratio of pictures; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"psnr": mean_score(psnr, predictions, references)}
