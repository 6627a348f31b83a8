"""Token selection criteria (TSC): what decides, image by image, how many tokens are enough (paper section 3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def l1(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each image, in units of pixels in [0, 1]: `(B, 3, H, W)` twice to `(B,)`."""
    return (reconstruction.float() - original.float()).abs().flatten(1).mean(dim=1)


def l2(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image, in squared units of pixels in [0, 1]: `(B, 3, H, W)` twice to `(B,)`."""
    return F.mse_loss(reconstruction.float(), original.float(), reduction="none").flatten(1).mean(dim=1)


def negative_psnr(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """
    Minus the peak signal-to-noise ratio of each image in dB: `(B, 3, H, W)` twice to `(B,)`. Negative because a lower
    score is a better one: `threshold=-25` asks for more than 25 dB.
    """
    return 10 * torch.log10(l2(reconstruction, original))


# A factory for each name: criteria that need a network load it when they are first asked for.
_FACTORIES: dict[str, Callable[[], Criterion]] = {
    "l1": lambda: l1,
    "l2": lambda: l2,
    "psnr": lambda: negative_psnr,
}


def register_criterion(name: str, factory: Callable[[], Criterion]) -> None:
    """
    Makes `name` known to `ALITModel.encode(criterion=name)`.

    Args:
        name (`str`): the criterion's name.
        factory (`Callable`): called without arguments when the criterion is used; returns a callable
            `(reconstruction (B, 3, H, W), original (B, 3, H, W)) -> (B,) scores`, lower is better.
    """
    _FACTORIES[name] = factory


def criterion_names() -> list[str]:
    """Names that `resolve_criterion` knows."""
    return sorted(_FACTORIES)


def resolve_criterion(criterion: str | Criterion) -> Criterion:
    """
    Args:
        criterion (`str` or `Callable`): a name of `criterion_names()`, or a callable
            `(reconstruction, original) -> (B,) scores` where lower is better.

    Raises:
        `ValueError`: for an unknown name or something that is no callable.
    """
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str) or criterion not in _FACTORIES:
        raise ValueError(
            f"`criterion` is {criterion!r}, it must be one of {criterion_names()} or a callable "
            "(reconstruction, original) -> (B,) scores, lower is better."
        )
    return _FACTORIES[criterion]()


def is_higher_better(criterion: str) -> bool:
    """Whether a higher score of the criterion of that name is a better one."""
    return False


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


__all__ = [
    "criterion_names",
    "is_higher_better",
    "l1",
    "l2",
    "negative_psnr",
    "register_criterion",
    "resolve_criterion",
    "score_images",
]
