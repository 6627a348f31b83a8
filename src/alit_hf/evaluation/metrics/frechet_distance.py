"""Fréchet distance of pictures, as a module for `evaluate.load`."""

import datasets
import evaluate
import torch

from alit_hf.evaluation.frechet import FEATURE_NETWORKS, check_num_images, result_name
from alit_hf.evaluation.pixels import picture_pairs
from alit_hf.evaluation.tally import FrechetDistances


_DESCRIPTION = """
Fréchet distance between the distributions of a network's features over reconstructions and over originals.

Args:
    predictions (`list` of `PIL.Image.Image`): reconstructions.
    references (`list` of `PIL.Image.Image`): originals, each of its reconstruction's size.
    network (`str`, defaults to `"efficientnet-lite0"`): or `"inception"`, which makes it the rFID.

Returns:
    `{"frechet_efficientnet_lite0": float}` or `{"rfid": float}`, lower is better.
"""


class FrechetDistance(evaluate.Metric):
    """Fréchet distance of pictures; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references, network="efficientnet-lite0") -> dict[str, float]:
        features = FEATURE_NETWORKS[network]()
        check_num_images(len(predictions))
        distances = FrechetDistances(features.num_features, ["predictions"], torch.device("cpu"))
        with torch.inference_mode():
            for picture, original in picture_pairs(predictions, references):
                distances.add("predictions", features(original), features(picture))
        return {result_name(features): distances.compute()["predictions"]}
