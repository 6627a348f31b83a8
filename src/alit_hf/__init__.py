"""ALIT (Adaptive Length Image Tokenization via Recurrent Allocation) as a Hugging Face model."""

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_alit import ALITConfig
from .image_processing_alit import ALITImageProcessor
from .modeling_alit import ALITModel, ALITPreTrainedModel
from .modeling_alit_classification import ALITForImageClassification
from .selection import Criterion, register_criterion


__version__ = "0.1.0"

AutoConfig.register("alit", ALITConfig)
AutoModel.register(ALITConfig, ALITModel)
AutoModelForImageClassification.register(ALITConfig, ALITForImageClassification)
AutoImageProcessor.register(
    ALITConfig, image_processor_classes={"pil": ALITImageProcessor, "torchvision": ALITImageProcessor}
)


def _lpips_criterion() -> Criterion:
    from .losses.perceptual import lpips_criterion

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
