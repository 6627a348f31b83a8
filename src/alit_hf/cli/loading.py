"""The model and image processor that `--model`, `--device` and `--dtype` ask for."""

import os
from collections.abc import Iterable

import diffusers
import torch
import transformers
from transformers import PreTrainedConfig

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.utils.error_reason import reason
from alit_hf.utils.native_bfloat16 import computes_bfloat16
from alit_hf.utils.processes import Processes
from alit_hf.utils.progress import adopt_library_bars

from .errors import UsageError
from .printing import print_note


def quiet_libraries() -> None:
    """
    Turns off logs: they report what is checked here, or what users of a command cannot change. Bars become this
    package's, but for those of downloads.
    """
    for library in (transformers, diffusers):
        library.logging.set_verbosity(library.logging.CRITICAL)
    diffusers.logging.disable_progress_bar()
    adopt_library_bars()


def load_model(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    processes: Processes | None = None,
    image_size: list[int] | None = None,
) -> tuple[ALITModel, ALITImageProcessor]:
    """
    Args:
        name (`str`, *optional*): a folder or a Hub id. Defaults to the checkpoint that comes with the package.
        device (`str`, *optional*): defaults to the GPU if there is one.
        dtype (`str`, *optional*, defaults to `"float32"`): the name of a torch dtype; or `"auto"`, which is bfloat16
            if the devices of all processes compute it natively, and float32 otherwise. The first process then says on
            stderr which.
        processes ([`Processes`], *optional*): the processes that load the model. Defaults to this one alone.
        image_size (`list[int]`, *optional*): height and width in pixels, or one number for squares, that the model is
            brought to by interpolating its position tables. Defaults to the trained size.

    Returns:
        the model in evaluation mode, and its image processor, which brings pictures to the same size.

    Raises:
        `UsageError`: if there is no such device or model, its files cannot be used, its weights are not those of its
            configuration, they are not finite, or the model cannot have that image size.
    """
    quiet_libraries()
    checked_device = _check_device(device)
    if dtype == "auto":
        dtype = _choose_dtype(checked_device, processes or Processes())
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
    if image_size is not None:
        try:
            model.set_image_size(image_size[0] if len(image_size) == 1 else image_size)
        except ValueError as error:
            raise UsageError(f"--image-size: {error}") from error
        fitting = ALITImageProcessor.for_config(model.config)
        processor.size, processor.crop_size = fitting.size, fitting.crop_size
    return model.eval().to(checked_device), processor


def _choose_dtype(device: torch.device, processes: Processes) -> str:
    """What `--dtype auto` means, the same on all processes."""
    is_native = all(processes.gather([computes_bfloat16(device)]))
    dtype = "bfloat16" if is_native else "float32"
    if processes.rank == 0:
        print_note(f"--dtype auto takes {dtype}")
    return dtype


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
