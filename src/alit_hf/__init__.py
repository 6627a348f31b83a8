"""ALIT (Adaptive Length Image Tokenization via Recurrent Allocation) as a Hugging Face model.

Nothing heavy is imported here: the names below are, when they are asked for.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .utils.after_import import AfterImport
from .utils.former_names import FormerNames


if TYPE_CHECKING:
    from .model.configuration_alit import ALITConfig
    from .model.image_processing_alit import ALITImageProcessor
    from .model.modeling_alit import ALITModel, ALITPreTrainedModel
    from .model.modeling_alit_classification import ALITForImageClassification
    from .model.sequences import CodeLogitsProcessor, SequenceVocabulary

__version__ = "0.1.0"

_MODULES = {
    "ALITConfig": "model.configuration_alit",
    "ALITForImageClassification": "model.modeling_alit_classification",
    "ALITImageProcessor": "model.image_processing_alit",
    "ALITModel": "model.modeling_alit",
    "ALITPreTrainedModel": "model.modeling_alit",
    "CodeLogitsProcessor": "model.sequences",
    "SequenceVocabulary": "model.sequences",
}

_FORMER_NAMES = {
    "base_tokenizer": "model.base_tokenizer",
    "configuration_alit": "model.configuration_alit",
    "data_sources": "data.sources",
    "evaluation.efficientnet_lite": "networks.efficientnet_lite",
    "figure": "codes.figure",
    "image_io": "model.image_io",
    "image_processing_alit": "model.image_processing_alit",
    "length_choice": "codes.length_choice",
    "losses.perceptual": "networks.lpips",
    "metrics": "evaluation.metrics",
    "modeling_alit": "model.modeling_alit",
    "modeling_alit_classification": "model.modeling_alit_classification",
    "option_types": "codes.length_choice",
    "picture_codes": "codes.picture_codes",
    "quantizer": "model.quantizer",
    "rollout_pictures": "codes.rollout_pictures",
    "selection": "model.selection",
    "token_file": "codes.token_file",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def pretrained_path() -> str:
    """Folder of the checkpoint that comes with the package, for `from_pretrained`."""
    return str(Path(__file__).parent / "checkpoints" / "alit-mini")


def _register_auto_classes() -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

    from .model.configuration_alit import ALITConfig
    from .model.image_processing_alit import ALITImageProcessor
    from .model.modeling_alit import ALITModel
    from .model.modeling_alit_classification import ALITForImageClassification

    AutoConfig.register("alit", ALITConfig)
    AutoModel.register(ALITConfig, ALITModel)
    AutoModelForImageClassification.register(ALITConfig, ALITForImageClassification)
    AutoImageProcessor.register(
        ALITConfig, image_processor_classes={"pil": ALITImageProcessor, "torchvision": ALITImageProcessor}
    )


def _register_lpips() -> None:
    # From here, as the selection file is copied to the Hub and must not import another folder of the package.
    from .model.selection import Criterion, register_criterion

    def lpips() -> Criterion:
        from .networks.lpips import lpips_criterion

        return lpips_criterion()

    register_criterion("lpips", lpips)


FormerNames({f"{__name__}.{former}": f"{__name__}.{name}" for former, name in _FORMER_NAMES.items()}).install()
AfterImport(
    packages=(__name__, "transformers", "diffusers"),
    functions={
        "transformers.models.auto.configuration_auto": _register_auto_classes,
        f"{__name__}.model.selection": _register_lpips,
    },
).install()

__all__ = [
    "ALITConfig",
    "ALITForImageClassification",
    "ALITImageProcessor",
    "ALITModel",
    "ALITPreTrainedModel",
    "CodeLogitsProcessor",
    "SequenceVocabulary",
    "pretrained_path",
]
