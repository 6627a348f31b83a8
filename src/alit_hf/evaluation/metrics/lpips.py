"""LPIPS of pictures, as a module for `evaluate.load`."""

import datasets
import evaluate

from alit_hf.evaluation.pixels import mean_score
from alit_hf.networks.lpips import LPIPS


_DESCRIPTION = """
LPIPS version 0.1, mean over pictures.

Args:
    predictions (`list` of `PIL.Image.Image`): reconstructions.
    references (`list` of `PIL.Image.Image`): originals, each of its reconstruction's size.
    net (`str`, defaults to `"alex"`): `"alex"` (AlexNet) or `"vgg"` (VGG16).

Returns:
    `{"lpips_alex": float}` or `{"lpips_vgg": float}`, lower is better.
"""


class LPIPSMetric(evaluate.Metric):
    """LPIPS of pictures; see `description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, 2018",
            inputs_description="",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references, net="alex") -> dict[str, float]:
        network = LPIPS(net, normalize=True)
        return {f"lpips_{net}": mean_score(network, predictions, references)}
