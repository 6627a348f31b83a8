"""Codebook usage, as a module for `evaluate.load`."""

import datasets
import evaluate

from alit_hf.evaluation.tally import count_codes
from alit_hf.losses.codebook import codebook_usage


_DESCRIPTION = """
Share of the codebook's codes that occur.

Args:
    predictions (`list` of `list[int]`): token ids of each image; negative ones (padding) do not count.
    codebook_size (`int`): number of codes C.

Returns:
    `{"codebook_usage": float}` in [0, 1].
"""


class CodebookUsage(evaluate.Metric):
    """Codebook usage; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.List(datasets.Value("int64"))}),
        )

    def _compute(self, predictions, codebook_size) -> dict[str, float]:
        return {"codebook_usage": codebook_usage(count_codes(predictions, codebook_size)).item()}
