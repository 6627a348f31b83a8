"""L1 of pictures, as a module for `evaluate.load`."""

import datasets
import evaluate

from alit_hf.evaluation.pixels import mean_score
from alit_hf.model.selection import l1


_DESCRIPTION = """
Mean absolute error of pixels in [0, 1], averaged over each picture and then over pictures.

Args:
    predictions (`list` of `PIL.Image.Image`): reconstructions.
    references (`list` of `PIL.Image.Image`): originals, each of its reconstruction's size.

Returns:
    `{"l1": float}`, lower is better.
"""


class L1(evaluate.Metric):
    """L1 of pictures; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"l1": mean_score(l1, predictions, references)}
