"""ALIT (Adaptive Length Image Tokenization via Recurrent Allocation) as a Hugging Face model."""

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .model.configuration_alit import ALITConfig
from .model.image_processing_alit import ALITImageProcessor
from .model.modeling_alit import ALITModel, ALITPreTrainedModel
from .model.modeling_alit_classification import ALITForImageClassification
from .model.selection import Criterion, register_criterion
from .utils.former_names import FormerNames


__version__ = "0.1.0"

_FORMER_NAMES = {
    **{
        name: f"model.{name}"
        for name in (
            "base_tokenizer",
            "configuration_alit",
            "image_io",
            "image_processing_alit",
            "modeling_alit",
            "modeling_alit_classification",
            "quantizer",
            "selection",
        )
    },
    **{
        name: f"codes.{name}"
        for name in ("figure", "length_choice", "picture_codes", "rollout_pictures", "token_file")
    },
    "data_sources": "data.sources",
    "evaluation.efficientnet_lite": "networks.efficientnet_lite",
    "losses.perceptual": "networks.lpips",
    "metrics": "evaluation.metrics",
    "option_types": "utils.option_types",
}
FormerNames({f"{__name__}.{former}": f"{__name__}.{name}" for former, name in _FORMER_NAMES.items()}).install()

AutoConfig.register("alit", ALITConfig)
AutoModel.register(ALITConfig, ALITModel)
AutoModelForImageClassification.register(ALITConfig, ALITForImageClassification)
AutoImageProcessor.register(
    ALITConfig, image_processor_classes={"pil": ALITImageProcessor, "torchvision": ALITImageProcessor}
)


def _lpips_criterion() -> Criterion:
    from .networks.lpips import lpips_criterion

    return lpips_criterion()


# From here, as the selection file is copied to the Hub and must not import a sub-package.
register_criterion("lpips", _lpips_criterion)


def pretrained_path() -> str:
    """Folder of the checkpoint that comes with the package, for `from_pretrained`."""
    return str(Path(__file__).parent / "checkpoints" / "alit-mini")


__all__ = [
    "ALITConfig",
    "ALITForImageClassification",
    "ALITImageProcessor",
    "ALITModel",
    "ALITPreTrainedModel",
    "pretrained_path",
]
