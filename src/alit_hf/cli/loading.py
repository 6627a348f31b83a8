"""The model and image processor that `--model`, `--device` and `--dtype` ask for."""

import os
import platform

import diffusers
import torch
import transformers
from transformers import PreTrainedConfig

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.utils.error_reason import reason
from alit_hf.utils.processes import Processes

from .errors import UsageError
from .printing import print_note


def quiet_libraries() -> None:
    """Turns off logs and loading bars: they report what is checked here, or what users of a command cannot change."""
    for library in (transformers, diffusers):
        library.logging.set_verbosity(library.logging.CRITICAL)
        library.logging.disable_progress_bar()


def load_model(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    processes: Processes | None = None,
) -> tuple[ALITModel, ALITImageProcessor]:
    """
    Args:
        name (`str`, *optional*): a folder or a Hub id. Defaults to the checkpoint that comes with the package.
        device (`str`, *optional*): defaults to the GPU if there is one.
        dtype (`str`, *optional*, defaults to `"float32"`): the name of a torch dtype; or `"auto"`, which is bfloat16
            if the devices of all processes compute it natively, and float32 otherwise. The first process then says on
            stderr which.
        processes ([`Processes`], *optional*): the processes that load the model. Defaults to this one alone.

    Returns:
        the model in evaluation mode, and its image processor.

    Raises:
        `UsageError`: if there is no such device or model, or its files cannot be used.
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
        model, report = ALITModel.from_pretrained(name, dtype=getattr(torch, dtype), output_loading_info=True)
        processor = ALITImageProcessor.from_pretrained(name)
    except UsageError:
        raise
    except Exception as error:  # the libraries raise their own and each other's, KeyError and SafetensorError included
        where = "" if os.path.isdir(name) else " is no folder, and from the Hub it"
        raise UsageError(f"the model {name}{where} cannot be loaded: {reason(error)}") from error
    if report["missing_keys"]:
        # They would be initialised at random.
        raise UsageError(
            f"the model {name} cannot be loaded: it lacks {', '.join(sorted(report['missing_keys'])[:5])}"
        )
    return model.eval().to(checked_device), processor


def _choose_dtype(device: torch.device, processes: Processes) -> str:
    """What `--dtype auto` means, the same on all processes."""
    is_native = all(processes.gather([_computes_bfloat16(device)]))
    dtype = "bfloat16" if is_native else "float32"
    if processes.rank == 0:
        print_note(f"--dtype auto: {dtype}, as {device.type} has {'' if is_native else 'no '}native bfloat16")
    return dtype


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16. Everywhere else it is emulated, slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        # That of oneDNN is true for any AVX-512.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _check_device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        checked = torch.device(device)
        torch.empty(1, device=checked).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device} cannot be used here: {reason(error)}") from error
    return checked
