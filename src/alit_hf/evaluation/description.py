"""What a results file says about the model, the device and the libraries behind it."""

import importlib.metadata
import platform

import torch
from PIL import Image

from alit_hf import __version__
from alit_hf.codes.token_file import model_fingerprint
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.utils.public_names import public_name

from .settings import SettingsError


_NEEDED_OF_PROCESSORS = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
}


def describe_model(model: ALITModel) -> dict:
    """Name, fingerprint of the weights, and sizes."""
    config = model.config
    return {
        "name": public_name(config.name_or_path),
        "fingerprint": model_fingerprint(model).hex(),
        # Without the length predictor, which has no part in what is measured.
        "parameters": sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if not name.startswith("length_predictor.")
        ),
        "image_size": list(config.image_height_width),
        "tokens_per_rollout": config.tokens_per_rollout,
        "max_rollouts": config.max_rollouts,
        "quantize": config.quantize,
        "codebook_size": config.codebook_size if config.quantize else None,
        "halting_threshold": config.halting_threshold,
    }


def describe_device(device: torch.device) -> str:
    """The name of the GPU, or the device type and its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def describe_versions(*libraries: str) -> dict[str, str]:
    """Versions of this package, Python and the libraries."""
    return {"alit_hf": __version__, "python": platform.python_version()} | {
        library: importlib.metadata.version(library) for library in libraries
    }


def describe_crop(model: ALITModel, processor: ALITImageProcessor) -> str:
    """Which part of an image the model sees."""
    height, width = model.config.image_height_width
    kernel = Image.Resampling(processor.resample).name.lower()
    return f"shortest edge to {processor.size['shortest_edge']} pixels ({kernel}), centre {width} x {height}"


def check_crop(model: ALITModel, processor: ALITImageProcessor) -> None:
    """
    Raises:
        `SettingsError`: if the processor does not resize images to the model's size, with pixels in [0, 1].
    """
    for name, needed in _NEEDED_OF_PROCESSORS.items():
        if getattr(processor, name) != needed:
            raise SettingsError(f"the image processor has {name}={getattr(processor, name)}, it must be {needed}")
    height, width = model.config.image_height_width
    crop = processor.crop_size
    if (crop["height"], crop["width"]) != (height, width):
        raise SettingsError(
            f"the image processor crops to {crop['width']} x {crop['height']} pixels, the model needs {width} x "
            f"{height}"
        )


__all__ = ["check_crop", "describe_crop", "describe_device", "describe_model", "describe_versions"]
