"""Codebook perplexity, as a module for `evaluate.load`."""

import datasets
import evaluate

from alit_hf.evaluation.tally import count_codes
from alit_hf.losses.codebook import perplexity


_DESCRIPTION = """
Exponential of the entropy of the codes' frequencies: C if all are equally frequent, 1 if only one occurs.

Args:
    predictions (`list` of `list[int]`): token ids of each image; negative ones (padding) do not count.
    codebook_size (`int`): number of codes C.

Returns:
    `{"codebook_perplexity": float}` in [1, C].
"""


class CodebookPerplexity(evaluate.Metric):
    """Codebook perplexity; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.List(datasets.Value("int64"))}),
        )

    def _compute(self, predictions, codebook_size) -> dict[str, float]:
        return {"codebook_perplexity": perplexity(count_codes(predictions, codebook_size)).item()}
