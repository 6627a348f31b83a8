"""The model and image processor that `--model`, `--device` and `--dtype` ask for."""

import os
from collections.abc import Iterable

import diffusers
import torch
import transformers
from transformers import PreTrainedConfig

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.utils.error_reason import reason

from .errors import UsageError


def quiet_libraries() -> None:
    """Turns off logs and loading bars: they report what is checked here, or what users of a command cannot change."""
    for library in (transformers, diffusers):
        library.logging.set_verbosity(library.logging.CRITICAL)
        library.logging.disable_progress_bar()


def load_model(
    name: str | None = None, device: str | None = None, dtype: str = "float32"
) -> tuple[ALITModel, ALITImageProcessor]:
    """
    Args:
        name (`str`, *optional*): a folder or a Hub id. Defaults to the checkpoint that comes with the package.
        device (`str`, *optional*): defaults to the GPU if there is one.
        dtype (`str`, *optional*, defaults to `"float32"`): the name of a torch dtype.

    Returns:
        the model in evaluation mode, and its image processor.

    Raises:
        `UsageError`: if there is no such device or model, its files cannot be used, its weights are not those of its
            configuration, or they are not finite.
    """
    quiet_libraries()
    checked_device = _check_device(device)
    name = pretrained_path() if name is None else name
    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if kind != "alit":
            raise UsageError(f"the model {name} holds no ALIT model" + (f" but one of type {kind}" if kind else ""))
        # Without memory for weights, as a configuration may declare more than the files hold, which would be random.
        _, report = ALITModel.from_pretrained(
            name, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
        if problem := _foreign_weights(report):
            raise UsageError(f"the model {name} cannot be loaded: {problem}")
        model = ALITModel.from_pretrained(name, dtype=getattr(torch, dtype))
        processor = ALITImageProcessor.from_pretrained(name)
    except UsageError:
        raise
    except Exception as error:  # the libraries raise their own and each other's, KeyError and SafetensorError included
        where = "" if os.path.isdir(name) else " is no folder, and from the Hub it"
        raise UsageError(f"the model {name}{where} cannot be loaded: {reason(error)}") from error
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if broken := [weight for weight, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UsageError(f"the model {name} has NaN or infinite values in {dtype}: in its {_first(broken)}")
    return model.eval().to(checked_device), processor


def _foreign_weights(report: dict) -> str | None:
    """How the files' weights are not those of their configuration."""
    if report["missing_keys"]:
        return f"it lacks {_first(report['missing_keys'])}"
    if report["mismatched_keys"]:
        weight, found, expected = min(report["mismatched_keys"])
        return f"its {weight} has shape {tuple(found)}, its configuration makes it {tuple(expected)}"
    return None


def _first(weights: Iterable[str]) -> str:
    return ", ".join(sorted(weights)[:5])


def _check_device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        checked = torch.device(device)
        torch.empty(1, device=checked).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device} cannot be used here: {reason(error)}") from error
    return checked
