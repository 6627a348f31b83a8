"""Token selection criteria (TSC): what decides, image by image, how many tokens are enough (paper section 3)."""

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F

from .layers import image_by_image


Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""
A token selection criterion: `(reconstruction (B, 3, H, W), original (B, 3, H, W)) -> (B,) scores`. Attributes of the
callable say what differs from the usual: `higher_is_better` (`bool`, defaults to `False`), `min_threshold` (`float`,
below which a threshold is refused; by default none is) and `unit` (`str`, shown behind scores).
"""


def _each_alone(criterion: Criterion) -> Criterion:
    @wraps(criterion)
    def wrapper(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        return image_by_image(criterion, reconstruction, original)

    return wrapper


@_each_alone
def l1(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each image, in units of pixels in [0, 1]: `(B, 3, H, W)` twice to `(B,)`."""
    return (reconstruction.float() - original.float()).abs().flatten(1).mean(dim=1)


@_each_alone
def l2(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, in squared units of pixels in [0, 1]: `(B, 3, H, W)` twice to `(B,)`."""
    return F.mse_loss(reconstruction.float(), original.float(), reduction="none").flatten(1).mean(dim=1)


def psnr(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """
    Peak signal-to-noise ratio of each image in dB, infinite for equal images: `(B, 3, H, W)` twice to `(B,)`. Higher
    is better: `threshold=25` asks for more than 25 dB.
    """
    return -10 * torch.log10(l2(reconstruction, original))


psnr.higher_is_better = True
# Every picture would meet a negative one: it is meant for the negative PSNR, which lower-is-better code compares.
psnr.min_threshold = 0
psnr.unit = "dB"

# A factory for each name: criteria that need a network load it when they are first asked for.
_FACTORIES: dict[str, Callable[[], Criterion]] = {"l1": lambda: l1, "l2": lambda: l2, "psnr": lambda: psnr}


def register_criterion(name: str, factory: Callable[[], Criterion]) -> None:
    """
    Makes `name` known to `ALITModel.encode(criterion=name)`.

    Args:
        name (`str`): the criterion's name.
        factory (`Callable`): called without arguments when the criterion is used; returns a callable
            `(reconstruction (B, 3, H, W), original (B, 3, H, W)) -> (B,) scores`. Lower is better, unless the callable
            has an attribute `higher_is_better` that is true.
    """
    _FACTORIES[name] = factory


def criterion_names() -> list[str]:
    """Names that `resolve_criterion` knows."""
    return sorted(_FACTORIES)


def resolve_criterion(criterion: str | Criterion) -> Criterion:
    """
    Args:
        criterion (`str` or `Callable`): a name of `criterion_names()`, or a callable
            `(reconstruction, original) -> (B,) scores`.

    Raises:
        `ValueError`: for an unknown name or something that is no callable.
    """
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str) or criterion not in _FACTORIES:
        raise ValueError(
            f"`criterion` is {criterion!r}, it must be one of {criterion_names()} or a callable "
            "(reconstruction, original) -> (B,) scores."
        )
    return _FACTORIES[criterion]()


def score_images(criterion: Criterion, reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """
    Scores each image of a batch, float32 `(B,)`.

    Raises:
        `ValueError`: where the criterion does not give one score an image.
    """
    scores = criterion(reconstruction, original)
    if not isinstance(scores, torch.Tensor) or scores.shape != (len(original),):
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"`criterion` returned {got}, it must return one score an image, shape ({len(original)},).")
    return scores.to(original.device, torch.float32)


def meets_threshold(
    criterion: Criterion, score: torch.Tensor | float, threshold: torch.Tensor | float
) -> torch.Tensor | bool:
    """Whether scores are strictly on the good side of a threshold."""
    return score > threshold if is_higher_better(criterion) else score < threshold


def good_side(criterion: Criterion) -> str:
    """Where scores meet a threshold, for messages: `"below"` or `"above"`."""
    return "above" if is_higher_better(criterion) else "below"


def with_unit(criterion: Criterion, value: str) -> str:
    """A score or a threshold, for messages: `"25 dB"`."""
    return f"{value} {getattr(criterion, 'unit', '')}".rstrip()


def is_higher_better(criterion: Criterion) -> bool:
    """Whether a higher score of the criterion is a better one."""
    return bool(getattr(criterion, "higher_is_better", False))


__all__ = [
    "Criterion",
    "criterion_names",
    "good_side",
    "is_higher_better",
    "l1",
    "l2",
    "meets_threshold",
    "psnr",
    "register_criterion",
    "resolve_criterion",
    "score_images",
    "with_unit",
]
