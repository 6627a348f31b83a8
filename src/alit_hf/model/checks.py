"""
What the model's methods ask of their arguments. Each check raises a `ValueError` that names the argument, its value
and what it may be, and gives the argument in the form that the model works with.

While a graph is traced values are not known: checks of values become assertions in the graph, which raise a
`RuntimeError` when it runs.
"""

import math
import reprlib

import torch
from transformers.utils import is_tracing

from .configuration_alit import ALITConfig
from .length_prediction import least_calibration_size
from .outputs import GridOutput, OffGridTokens
from .selection import Criterion, with_unit
from .sequences import PADDING_ID


# How far bicubic resizing of floats leaves [0, 1] at corners of black and white. Pixels that are normalised by a mean
# and standard deviation begin at -1 or below.
_OVERSHOOT = 0.25


def check_num_tokens(config: ALITConfig, num_tokens: int | None, threshold: float | torch.Tensor | None = None) -> int:
    """The number of rollouts that give a code of `num_tokens`; all of them for `None`."""
    if num_tokens is not None and threshold is not None:
        raise ValueError(f"`num_tokens` is {num_tokens} and `threshold` is {threshold}: only one may be given.")
    step, longest = config.tokens_per_rollout, config.max_tokens
    if num_tokens is None:
        return config.max_rollouts
    if not isinstance(num_tokens, int) or isinstance(num_tokens, bool):
        raise ValueError(f"`num_tokens` is {num_tokens!r}, it must be an integer.")
    if num_tokens % step or not step <= num_tokens <= longest:
        raise ValueError(
            f"`num_tokens` is {num_tokens}, it must be a multiple of {step} between {step} and {longest}."
        )
    return num_tokens // step


def check_pixels(config: ALITConfig, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> None:
    channels, patch = config.num_channels, config.patch_size
    if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
        kind = pixel_values.dtype if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
        raise ValueError(f"`pixel_values` is {kind}, it must be a floating point tensor with values in [0, 1].")
    shape = tuple(pixel_values.shape)
    if pixel_values.ndim != 4 or shape[0] < 1 or shape[1] != channels:
        raise ValueError(f"`pixel_values` has shape {shape}, it must be (batch, {channels}, height, width).")
    if interpolate_pos_encoding:
        if any(side < patch or side % patch for side in shape[2:]):
            raise ValueError(f"`pixel_values` has shape {shape}, each side must be a positive multiple of {patch}.")
    elif shape[2:] != config.image_height_width:
        raise ValueError(
            f"`pixel_values` has shape {shape}, height and width must be {config.image_height_width} "
            "(or set `interpolate_pos_encoding=True`)."
        )


def check_range(pixel_values: torch.Tensor, training: bool) -> None:
    """Waits for a device once, and in training, where no step may wait, not at all."""
    if is_tracing():
        _assert_range(pixel_values)
        return
    if training:
        # Other devices have no assertion that does not wait.
        if pixel_values.device.type in ("cpu", "cuda"):
            try:
                _assert_range(pixel_values)
            except RuntimeError as error:  # at once on a CPU; a GPU ends the program later
                raise ValueError(str(error)) from error
        return
    lowest, highest = torch.stack([pixel_values.amin(), pixel_values.amax()]).tolist()
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError("`pixel_values` has NaN or infinite values, all must be finite.")
    if lowest < -_OVERSHOOT or highest > 1 + _OVERSHOOT:
        raise ValueError(
            f"`pixel_values` has values from {lowest:g} to {highest:g}, they must be in [0, 1], as "
            "ALITImageProcessor gives them: without a mean and standard deviation."
        )


def _assert_range(pixel_values: torch.Tensor) -> None:
    inside = (pixel_values >= -_OVERSHOOT) & (pixel_values <= 1 + _OVERSHOOT)
    torch._assert_async(inside.all(), "`pixel_values` must be finite and in [0, 1].")


def check_base_latents(config: ALITConfig, base_latents: torch.Tensor | None, pixel_values: torch.Tensor) -> None:
    if base_latents is None:
        return
    batch_size, _, height, width = pixel_values.shape
    patch = config.patch_size
    expected = (batch_size, config.base_embed_dim, height // patch, width // patch)
    if not isinstance(base_latents, torch.Tensor) or tuple(base_latents.shape) != expected:
        got = tuple(base_latents.shape) if isinstance(base_latents, torch.Tensor) else type(base_latents).__name__
        raise ValueError(f"`base_latents` is {got}, it must be a tensor of shape {expected}.")


def check_threshold(
    threshold: float | torch.Tensor | None,
    criterion: Criterion,
    batch_size: int = 1,
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """The threshold of each image, float32 `(B,)`."""
    if threshold is None:
        return None
    try:
        threshold = torch.as_tensor(threshold, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`threshold` is {threshold!r}, it must be one number or one an image.") from error
    if threshold.shape not in ((), (batch_size,)):
        raise ValueError(
            f"`threshold` has shape {tuple(threshold.shape)}, it must be one number or one an image, ({batch_size},)."
        )
    if threshold.isnan().any():
        raise ValueError(f"`threshold` is {threshold.tolist()}, it must not be NaN.")
    lowest = getattr(criterion, "min_threshold", -math.inf)
    if (threshold < lowest).any():
        raise ValueError(
            f"`threshold` is {with_unit(criterion, f'{threshold.min():g}')}, for this criterion it must be at least "
            f"{with_unit(criterion, f'{lowest:g}')}."
        )
    return threshold.expand(batch_size)


def check_confidence(
    config: ALITConfig, confidence: float | None, threshold: float | torch.Tensor | None, criterion: object
) -> None:
    """Whether the model's length predictor can promise `confidence`."""
    if confidence is None:
        return
    given = f"`confidence` is {confidence!r}"
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ValueError(f"{given}, it must be a number above 0 and below 1.")
    if threshold is None:
        raise ValueError(f"{given}, it must come with a `threshold`.")
    if config.length_shortfalls is None:
        lacks = "no length predictor" if config.length_criterion is None else "a length predictor without calibration"
        raise ValueError(
            f"{given}, but this model has {lacks}: train one by the stage `lengths` of training/train.py."
        )
    if criterion != config.length_criterion:
        raise ValueError(
            f"`criterion` is {criterion!r}, but the length predictor of this model was trained for "
            f"{config.length_criterion!r}: leave out `confidence`, or train another by the stage `lengths` of "
            "training/train.py."
        )
    calibrated, needed = len(config.length_shortfalls), least_calibration_size(confidence)
    if calibrated < needed:
        raise ValueError(
            f"{given}, but the length predictor was calibrated on {calibrated} pictures, which allow at most "
            f"{calibrated / (calibrated + 1):.4g}: {confidence} takes {needed}."
        )


def check_calibrated_size(config: ALITConfig, pixel_values: torch.Tensor) -> None:
    if tuple(pixel_values.shape[2:]) != config.image_height_width:
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}, but the length predictor was calibrated on "
            f"pictures of height and width {config.image_height_width}: leave out `confidence`."
        )


def check_halting_threshold(halting_threshold: float | None) -> None:
    if halting_threshold is not None and not halting_threshold > 0:
        raise ValueError(f"`halting_threshold` is {halting_threshold}, it must be above 0 or None.")


def check_attention_mask(attention_mask: None) -> None:
    if attention_mask is not None:
        raise ValueError("`attention_mask` is given, but every token attends to every other: it must be None.")


def check_attention_weights(config: ALITConfig, **kwargs) -> None:
    """Whether attention gives the weights that `kwargs` ask for."""
    for name in ("output_attentions", "output_decoder_attentions"):
        if kwargs.get(name) and config._attn_implementation != "eager":
            raise ValueError(
                f"`{name}` is set, but {config._attn_implementation} attention has no weights to return: "
                'load the model with `attn_implementation="eager"` or call `set_attn_implementation("eager")`.'
            )


def unpack_code(
    code: GridOutput, latents: None, num_tokens: None, grid_size: None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.LongTensor | int | None, tuple[int, int]]:
    """Ids, or else latents, with their lengths and grid, of what `encode` gives and of one rollout."""
    for name, value in (("latents", latents), ("num_tokens", num_tokens), ("grid_size", grid_size)):
        if value is not None:
            raise ValueError(f"`{name}` is given beside a whole {type(code).__name__}, which has its own: give one.")
    if code.base_latents is None:
        raise ValueError(
            f"The {type(code).__name__} has no `base_latents`, whose shape tells the grid: give `decode` its "
            "`token_ids` and `grid_size`."
        )
    # In a graph all codes are as long as their tensor.
    num_tokens = None if is_tracing() else code.num_tokens
    return code.token_ids, code.latents if code.token_ids is None else None, num_tokens, code.grid_size


def check_grid_size(config: ALITConfig, grid_size: tuple[int, int] | None, codes: torch.Tensor) -> tuple[int, int]:
    """The grid of `codes`, which are ids or latents."""
    if grid_size is None:
        if isinstance(codes, OffGridTokens):
            rows, columns = config.grid_size
            raise ValueError(
                f"`grid_size` is None, but the grid of these codes is not the trained one, ({rows}, {columns}), and "
                "they do not tell it: give `decode` the whole output of `encode`, or its `grid_size` with them."
            )
        return config.grid_size
    sides = tuple(grid_size) if isinstance(grid_size, (list, tuple)) else ()
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"`grid_size` is {grid_size!r}, it must be (rows, columns), integers of at least 1.")
    return sides


def check_codes(
    config: ALITConfig,
    token_ids: torch.LongTensor | None,
    latents: torch.Tensor | None,
    num_tokens: torch.LongTensor | int | None,
) -> tuple[torch.LongTensor | None, torch.LongTensor | int]:
    """
    Ids `(B, T)` as int64, if codes are given as ids, and the lengths of the codes: `(B,)`, or one number where a graph
    is traced that has one length for all.
    """
    if (token_ids is None) == (latents is None):
        given = "both" if latents is not None else "neither"
        raise ValueError(f"One of `token_ids` and `latents` must be given, got {given}.")
    if token_ids is None:
        return None, _check_latents(config, latents, num_tokens)
    return _check_token_ids(config, token_ids, num_tokens)


def _check_token_ids(
    config: ALITConfig, token_ids: torch.LongTensor, num_tokens: torch.LongTensor | int | None
) -> tuple[torch.LongTensor, torch.LongTensor | int]:
    if not config.quantize:
        raise ValueError("`token_ids` were given, but this model's latents are continuous: give `latents`.")
    if not isinstance(token_ids, torch.Tensor) or token_ids.ndim != 2 or not _is_integer(token_ids):
        raise ValueError(
            f"`token_ids` is {_briefly(token_ids)}, it must be an integer tensor of shape (batch, tokens)."
        )
    token_ids = token_ids.long()
    if is_tracing() and not isinstance(num_tokens, torch.Tensor):
        length = _check_one_length(config, num_tokens, token_ids)
        known = (token_ids >= 0) & (token_ids < config.codebook_size)
        padding = token_ids[:, length:] == PADDING_ID
        torch._assert_async(
            known[:, :length].all() & padding.all(),
            f"`token_ids` must be {length} ids in [0, {config.codebook_size}) each, and {PADDING_ID} behind them.",
        )
        return token_ids, length
    filled = token_ids != PADDING_ID
    found = filled.sum(dim=1)
    inside = torch.arange(token_ids.shape[1], device=token_ids.device) < found.unsqueeze(1)
    if not torch.equal(filled, inside):
        raise ValueError(f"`token_ids` has {PADDING_ID} before an id, it may only be behind the last one.")
    lengths = _check_lengths(config, found if num_tokens is None else num_tokens, token_ids)
    if not torch.equal(lengths, found):
        raise ValueError(
            f"`num_tokens` is {lengths.tolist()}, but `token_ids` has {found.tolist()} ids that are not "
            f"{PADDING_ID}: a code is not a prefix of a longer one, ids and lengths must belong together."
        )
    used = token_ids[inside]
    if used.min() < 0 or used.max() >= config.codebook_size:
        raise ValueError(
            f"`token_ids` has values from {int(used.min())} to {int(used.max())}, they must be in "
            f"[0, {config.codebook_size}) before the padding of {PADDING_ID}."
        )
    return token_ids, lengths


def _check_latents(
    config: ALITConfig, latents: torch.Tensor, num_tokens: torch.LongTensor | int | None
) -> torch.LongTensor | int:
    """Lengths of codes given as factorised latents, as `check_codes`."""
    dim = config.codebook_dim
    if not isinstance(latents, torch.Tensor) or latents.ndim != 3 or latents.shape[-1] != dim:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"`latents` is {got}, it must be a tensor of shape (batch, tokens, {dim}).")
    if not latents.is_floating_point():
        raise ValueError(f"`latents` is {latents.dtype}, it must be a floating point tensor.")
    if is_tracing() and not isinstance(num_tokens, torch.Tensor):
        return _check_one_length(config, num_tokens, latents)
    if num_tokens is None and latents.shape[1] and (latents[:, -1] == 0).all(dim=-1).any():
        raise ValueError(
            "`latents` has zeros behind an image's last token, as `encode` pads them: give `num_tokens` with them."
        )
    lengths = _check_lengths(config, latents.shape[1] if num_tokens is None else num_tokens, latents)
    inside = torch.arange(latents.shape[1], device=latents.device) < lengths.unsqueeze(1)
    if not torch.isfinite(latents[inside]).all():
        raise ValueError("`latents` has NaN or infinite values, all must be finite.")
    return lengths


def _check_one_length(config: ALITConfig, num_tokens: int | None, codes: torch.Tensor) -> int:
    """The length of all `codes` `(B, T, ...)`, T for `None`."""
    num_tokens = codes.shape[1] if num_tokens is None else num_tokens
    check_num_tokens(config, num_tokens)
    if num_tokens > codes.shape[1]:
        raise ValueError(f"`num_tokens` is {num_tokens}, but the codes have {codes.shape[1]} tokens.")
    return num_tokens


def _check_lengths(config: ALITConfig, num_tokens: torch.LongTensor | int, codes: torch.Tensor) -> torch.LongTensor:
    """Lengths `(B,)` that exist and fit `codes` `(B, T, ...)`."""
    batch_size, available = codes.shape[:2]
    step, longest = config.tokens_per_rollout, min(config.max_tokens, available)
    if batch_size < 1:
        raise ValueError(f"The batch of codes has shape {tuple(codes.shape)}, it must hold at least one image.")
    try:
        lengths = torch.as_tensor(num_tokens, device=codes.device)
    except (TypeError, ValueError, RuntimeError):
        lengths = torch.empty(0, 0)
    if not _is_integer(lengths) or lengths.shape not in ((), (batch_size,)):
        raise ValueError(
            f"`num_tokens` is {_briefly(num_tokens)}, it must be an integer or an integer tensor of shape "
            f"({batch_size},)."
        )
    lengths = lengths.long()
    if (lengths % step).any() or lengths.min() < step or lengths.max() > longest:
        raise ValueError(
            f"`num_tokens` is {lengths.tolist()}, each must be a multiple of {step} between {step} and {longest}."
        )
    return lengths.expand(batch_size)


def _is_integer(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _briefly(value: object) -> str:
    """For messages: shape and dtype of a tensor, the beginning of anything else."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else reprlib.repr(value)


__all__ = [
    "check_attention_mask",
    "check_attention_weights",
    "check_base_latents",
    "check_calibrated_size",
    "check_codes",
    "check_confidence",
    "check_grid_size",
    "check_halting_threshold",
    "check_num_tokens",
    "check_pixels",
    "check_range",
    "check_threshold",
    "unpack_code",
]
