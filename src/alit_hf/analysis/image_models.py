"""Models for tasks of interest, by name: classifiers and depth models (paper appendix A.2)."""

import hashlib
import json
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, AutoModelForImageClassification

from alit_hf.evaluation.settings import SettingsError
from alit_hf.networks.efficientnet_lite import EFFICIENTNET_NAMES, EfficientNetLite, imagenet_classes


class Classifier(Protocol):
    """A frozen classifier; `class_names` are in the order of its logits."""

    name: str
    class_names: list[str]
    fingerprint: str
    """Fingerprint of everything that logits depend on, as another model may be at the same path later."""

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Float32 `(B, classes)` of pictures `(B, 3, H, W)`, which are clamped to [0, 1]."""
        ...


class _EfficientNetClassifier:
    """One of `EFFICIENTNET_NAMES`."""

    def __init__(self, name: str, device: torch.device):
        self.name = name
        self.class_names = imagenet_classes()
        self._network = EfficientNetLite(name).to(device)
        self.fingerprint = fingerprint_of(self._network)

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self._network.classify(self._network(pixel_values.float().clamp(0, 1)))


class _AutoModel:
    """A model from the Hub or a folder, with its image processor."""

    def __init__(self, auto_class: Any, name: str, device: torch.device):
        self._processor = AutoImageProcessor.from_pretrained(name)
        model, report = auto_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        if report["missing_keys"]:
            # They would be initialised at random.
            raise ValueError(f"it lacks {', '.join(sorted(report['missing_keys'])[:5])}")
        self._model = model.eval().to(device)
        self.fingerprint = fingerprint_of(self._model, self._processor.to_dict())

    @property
    def config(self) -> Any:
        return self._model.config

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        # As 8-bit pictures, so that the processor resizes and normalises as in the model's training.
        levels = (pixel_values.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        inputs = self._processor(list(levels), input_data_format="channels_first", return_tensors="pt")
        return self._model(**inputs.to(self._model.device))


class _AutoClassifier:
    """A classifier from transformers."""

    def __init__(self, name: str, device: torch.device):
        self.name = name
        self._model = _AutoModel(AutoModelForImageClassification, name, device)
        self.fingerprint = self._model.fingerprint
        labels = self._model.config.id2label
        # ImageNet's names are lists of synonyms; data sets use the first.
        self.class_names = [labels[number].split(", ")[0] for number in range(len(labels))]

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self._model(pixel_values).logits


class DepthModel:
    """
    A frozen monocular depth model from transformers.

    Args:
        name (`str`): a Hub id or a folder.
        device (`torch.device`): device to run on.
    """

    def __init__(self, name: str, device: torch.device):
        self._model = _AutoModel(AutoModelForDepthEstimation, name, device)
        self.fingerprint = self._model.fingerprint

    def depth(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Depth or disparity, as the model predicts it, `(B, h, w)` of pictures `(B, 3, H, W)`, clamped to [0, 1]."""
        return self._model(pixel_values).predicted_depth.float()


def fingerprint_of(network: nn.Module, processor: dict | None = None) -> str:
    """Identifies a network's weights and its image processor's settings."""
    digest = hashlib.sha256(json.dumps(processor, sort_keys=True, default=str).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def relative_depth_error(depth: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """
    The mean absolute difference between two predictions `(B, h, w)`, as a share of the original's mean absolute value,
    `(B,)`.

    Raises:
        `ValueError`: if the original's is 0 everywhere, or a prediction has NaN or infinite values.
    """
    error = (depth - original).abs().flatten(1).mean(dim=1) / original.abs().flatten(1).mean(dim=1)
    if not torch.isfinite(error).all():
        raise ValueError("the depth model predicts NaN, infinite values, or 0 everywhere")
    return error


def finite_logits(classifier: Classifier, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    The logits of `classifier.logits`.

    Raises:
        `ValueError`: if they are not finite.
    """
    logits = classifier.logits(pixel_values)
    if not torch.isfinite(logits).all():
        raise ValueError(f"the logits of {classifier.name} have NaN or infinite values")
    return logits


def load_classifier(name: str, device: torch.device) -> Classifier:
    """
    Args:
        name (`str`): one of `EFFICIENTNET_NAMES`, or a Hub id or folder for `AutoModelForImageClassification`.

    Raises:
        `SettingsError`: if it cannot be loaded, or has fewer than two classes.
    """
    classifier_class = _EfficientNetClassifier if name in EFFICIENTNET_NAMES else _AutoClassifier
    classifier = _load(classifier_class, "classifier", name, device)
    if len(classifier.class_names) < 2:
        # With one class, every picture would keep its class.
        raise SettingsError(f"the classifier {name} has {len(classifier.class_names)} class, it must have 2 or more")
    return classifier


def load_depth_model(name: str, device: torch.device) -> DepthModel:
    """
    Args:
        name (`str`): a Hub id or a folder for `AutoModelForDepthEstimation`.

    Raises:
        `SettingsError`: if it cannot be loaded.
    """
    return _load(DepthModel, "depth model", name, device)


def _load(model_class: Any, what: str, name: str, device: torch.device) -> Any:
    try:
        return model_class(name, device)
    except Exception as error:  # the libraries raise their own and each other's, KeyError and SafetensorError included
        raise SettingsError(f"the {what} {name} cannot be loaded: {error}") from error


__all__ = [
    "Classifier",
    "DepthModel",
    "finite_logits",
    "load_classifier",
    "load_depth_model",
    "relative_depth_error",
]
