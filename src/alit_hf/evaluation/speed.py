"""Images per second, measured separately so that the scores do not depend on it."""

import time
from collections.abc import Callable, Sequence

import torch

from alit_hf.model.modeling_alit import ALITModel

from .base_pictures import base_pictures
from .lengths import code_lengths


# A CPU gains little from larger batches, and takes minutes to encode one adaptively.
_MAX_IMAGES_ON_CPU = 2


@torch.inference_mode()
def measure_speed(model: ALITModel, pixel_values: torch.Tensor, thresholds: Sequence[float]) -> dict:
    """
    Times encoding and decoding of one batch (on a CPU, its first two images), after an untimed warm-up.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1] on the model's device.
        thresholds (`Sequence[float]`): thresholds at which adaptive encoding is timed.

    Returns:
        `{"num_images": …, "lengths": {"32": rates, …}, "adaptive": [rates, …], "base": {"images_per_second": …}}`
        where rates are `{"encode_images_per_second": …, "decode_images_per_second": …}`.
    """
    config = model.config
    if pixel_values.device.type == "cpu":
        pixel_values = pixel_values[:_MAX_IMAGES_ON_CPU]

    def rate(function: Callable[[], object]) -> tuple[float, object]:
        _wait_for(pixel_values.device)
        start = time.perf_counter()
        result = function()
        _wait_for(pixel_values.device)
        return len(pixel_values) / (time.perf_counter() - start), result

    def rates(**length) -> dict[str, float]:
        # Only a model with dynamic halting draws random numbers.
        generator = torch.Generator(model.device).manual_seed(0)
        encoding, code = rate(lambda: model.encode(pixel_values, generator=generator, **length))
        decoding, _ = rate(lambda: model.decode(code))
        return {"encode_images_per_second": encoding, "decode_images_per_second": decoding}

    rates(num_tokens=config.max_tokens)
    return {
        "num_images": len(pixel_values),
        "lengths": {str(length): rates(num_tokens=length) for length in code_lengths(config)},
        "adaptive": [rates(threshold=threshold) for threshold in thresholds],
        "base": {"images_per_second": rate(lambda: base_pictures(model, pixel_values))[0]},
    }


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


__all__ = ["measure_speed"]
