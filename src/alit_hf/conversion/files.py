"""Weights out of files of others. Nothing in a file is executed."""

import collections
import os
import pickle
import re
import types
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from alit_hf.utils.error_reason import reason


# Names of the loss networks that the published training kept inside the model.
_LOSS_NAMES = re.compile(r"loss|discriminator|lpips|perceptual|vgg|(?:^|[._])gans?(?:[._]|$)", re.IGNORECASE)

# All that a state dict of dense tensors is pickled with; torch reads the storages.
_PICKLED_WEIGHTS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}


class _Inert(dict):
    """What stands for an object of another class: it takes everything that a pickle does to it, and does nothing."""

    __hash__ = object.__hash__

    def __new__(cls, *arguments, **named_arguments):
        return super().__new__(cls)

    def __init__(self, *arguments, **named_arguments):
        super().__init__()

    def _ignore(self, *arguments, **named_arguments) -> "_Inert":
        return self

    __call__ = __setstate__ = append = extend = add = _ignore


class _InertUnpickler(pickle.Unpickler):
    """Reads tensors in containers, and puts inert objects where a pickle names anything else: nothing is imported."""

    def find_class(self, module: str, name: str) -> Callable:
        known = _PICKLED_WEIGHTS.get((module, name))
        if known is None:
            return type(name, (_Inert,), {})
        # A pickle may set attributes of what it gets, and must not reach the function itself.
        return known if isinstance(known, type) else lambda *arguments: known(*arguments)


def read_weights(path_or_state_dict: str | os.PathLike | Mapping) -> dict[str, torch.Tensor]:
    """
    The weights of a file or of its contents: averaged ones where there are any, without the prefixes of distributed
    training and without losses. See [`load_original`].

    Raises:
        `ValueError`: if they are not dense tensors by names, or the file cannot be read safely.
        `OSError`: if it cannot be read at all.
    """
    return _without_losses(_select_weights(_read(path_or_state_dict)))


def _read(path_or_state_dict: str | os.PathLike | Mapping) -> Mapping:
    if isinstance(path_or_state_dict, Mapping):
        return path_or_state_dict
    if not isinstance(path_or_state_dict, (str, os.PathLike)):
        raise ValueError(
            f"`path_or_state_dict` is a {type(path_or_state_dict).__name__}, it must be a path or a state dict."
        )
    path = os.fspath(path_or_state_dict)
    try:
        checkpoint = load_file(path) if path.endswith(".safetensors") else _read_pickled(path)
    except OSError:
        raise
    except Exception as error:  # what the readers raise on foreign or damaged files is not documented
        # Of these torch says to run what is in the file.
        is_pickle = isinstance(error, (pickle.UnpicklingError, EOFError))
        why = "it is no checkpoint, or damaged, or it would have to be executed" if is_pickle else reason(error)
        raise ValueError(f"`path_or_state_dict` is {path!r}, which cannot be read as weights: {why}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"`path_or_state_dict` is {path!r}, which holds a {type(checkpoint).__name__}, not a state dict."
        )
    return checkpoint


def _read_pickled(path: str) -> Any:
    is_archive = zipfile.is_zipfile(path)
    how = {"weights_only": True}
    # Training leaves objects of any class beside the weights, such as Lightning's callbacks, and torch then refuses
    # the whole file. The check also refuses TorchScript, which torch would otherwise load as such.
    if is_archive and torch.serialization.get_unsafe_globals_in_checkpoint(path):
        inert_pickle = types.SimpleNamespace(__name__=__name__, Unpickler=_InertUnpickler)
        how = {"weights_only": False, "pickle_module": inert_pickle}
    # Mapped, tensors cannot take more memory than the file has bytes.
    return torch.load(path, map_location="cpu", mmap=is_archive, **how)


def _select_weights(checkpoint: Mapping) -> dict[str, torch.Tensor]:
    """The weights to convert, without the prefixes of distributed training."""
    # In this order, so that the model's own weights complete an average of only some.
    names = ("state_dict", "model", "ema")
    parts = [(name, checkpoint[name]) for name in names if checkpoint.get(name) is not None]
    weights = {}
    for name, part in parts or [("path_or_state_dict", checkpoint)]:
        if not isinstance(part, Mapping) or isinstance(part, _Inert):
            raise ValueError(f"`{name}` of the checkpoint is a {type(part).__name__}, it must be a state dict.")
        for key, value in part.items():
            if not isinstance(key, str):
                raise ValueError(f"`{name}` holds the key {key!r}, keys must be names of weights.")
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"`{name}` holds a {type(value).__name__} under {key!r}, it must be a tensor.")
            if value.layout != torch.strided or value.is_quantized:
                raise ValueError(f"`{name}` holds a sparse or quantised tensor under {key!r}, it must be a dense one.")
            weights[re.sub(r"^(module\.)+", "", key)] = value
    return weights


def _without_losses(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # A module that contains a loss network is a loss as a whole, including its nameless scalars. Only the base
    # tokenizer may be a model that was trained with a loss inside.
    loss_modules = {key.split(".")[0] for key in weights if _LOSS_NAMES.search(key)} - {"base_tokenizer"}
    return {
        key: value
        for key, value in weights.items()
        if not _LOSS_NAMES.search(key) and key.split(".")[0] not in loss_modules
    }


__all__ = ["read_weights"]
