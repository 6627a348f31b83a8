"""Bits per image, as a module for `evaluate.load`."""

import datasets
import evaluate

from alit_hf.evaluation.tally import count_codes


_DESCRIPTION = """
Mean number of bits of an image's packed ids; storing the number of tokens is not counted.

Args:
    predictions (`list` of `list[int]`): token ids of each image; negative ones (padding) do not count.
    codebook_size (`int`): number of codes C.

Returns:
    `{"bits_per_image": float}`.
"""


class BitsPerImage(evaluate.Metric):
    """Bits per image; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.List(datasets.Value("int64"))}),
        )

    def _compute(self, predictions, codebook_size) -> dict[str, float]:
        num_tokens = count_codes(predictions, codebook_size).sum().item()
        return {"bits_per_image": num_tokens * (codebook_size - 1).bit_length() / len(predictions)}
