"""A picture at every length: its reconstruction after each rollout, and which one a threshold picks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from alit_hf.model.checks import check_confidence
from alit_hf.model.configuration_alit import ALITConfig
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.length_prediction import bound_margin
from alit_hf.model.modeling_alit import ALITModel
from alit_hf.model.selection import l1, psnr


@dataclass(frozen=True)
class RolloutPicture:
    """
    A picture after one rollout.

    Args:
        num_tokens (`int`): length of its code.
        token_ids (`torch.LongTensor` of shape `(num_tokens,)`): its ids; `None` if latents are continuous.
        picture (`PIL.Image.Image`): what the code decodes to.
        l1 (`float`): mean absolute error in units of pixels in [0, 1], as `encode` compares it with a threshold.
        psnr (`float`): peak signal-to-noise ratio in dB.
        payload_bytes (`int`): bytes of the bit-packed ids, without the other 33 of an `.alit` file; `None` if latents
            are continuous.
        l1_bound (`float`, *optional*): what the length predictor bounds `l1` by, for a confidence.
    """

    num_tokens: int
    token_ids: torch.LongTensor | None
    picture: Image.Image
    l1: float
    psnr: float
    payload_bytes: int | None
    l1_bound: float | None = None


def payload_bytes(config: ALITConfig, num_tokens: int) -> int:
    """Bytes that hold `num_tokens` bit-packed ids of a model's latent codebook."""
    return (num_tokens * config.bits_per_token + 7) // 8


@torch.inference_mode()
def rollout_pictures(
    model: ALITModel, processor: ALITImageProcessor, pixel_values: torch.Tensor, confidence: float | None = None
) -> list[RolloutPicture]:
    """
    Runs all rollouts of one image.

    Args:
        model ([`ALITModel`]): in evaluation mode.
        processor ([`ALITImageProcessor`]): turns pixels into pictures.
        pixel_values (`torch.Tensor` of shape `(1, 3, H, W)`): pixels in [0, 1], from the processor.
        confidence (`float`, *optional*): adds the bounds of the model's length predictor, of L1.

    Returns:
        one [`RolloutPicture`] for each length, shortest first.

    Raises:
        `ValueError`: for another shape, a size that the model does not take, or a confidence that its length predictor
            cannot promise.
    """
    if len(pixel_values) != 1:
        raise ValueError(f"`pixel_values` has shape {tuple(pixel_values.shape)}, it must be one image.")
    check_confidence(model.config, confidence, 0.0, "l1")
    pixel_values = pixel_values.to(model.device)
    # As in `alit encode`: only a model with dynamic halting draws random numbers.
    generator = torch.Generator(model.device).manual_seed(0)
    pictures, bounds = [], [None] * model.config.max_rollouts
    for rollout in model.rollouts(pixel_values, generator=generator):
        if confidence is not None and not pictures:
            logs = model.length_predictor.predict(rollout.last_hidden_state)[0]
            bounds = (logs + bound_margin(model.config.length_shortfalls, confidence)).exp().tolist()
        quantized = rollout.token_ids is not None
        pictures.append(
            RolloutPicture(
                num_tokens=rollout.num_tokens,
                token_ids=rollout.token_ids[0].cpu() if quantized else None,
                picture=processor.postprocess(rollout.reconstruction)[0],
                l1=l1(rollout.reconstruction, pixel_values).item(),
                psnr=psnr(rollout.reconstruction, pixel_values).item(),
                payload_bytes=payload_bytes(model.config, rollout.num_tokens) if quantized else None,
                l1_bound=bounds[len(pictures)],
            )
        )
    return pictures


def pick_rollout(pictures: Sequence[RolloutPicture], threshold: float, is_predicted: bool = False) -> RolloutPicture:
    """
    The picture of the length that `ALITModel.encode(threshold=threshold)` gives: the first below, else the last; or,
    with `is_predicted`, of the length that it gives for the confidence of the bounds.
    """
    scores = [rollout.l1_bound if is_predicted else rollout.l1 for rollout in pictures]
    return next((rollout for rollout, score in zip(pictures, scores, strict=True) if score < threshold), pictures[-1])


__all__ = ["RolloutPicture", "payload_bytes", "pick_rollout", "rollout_pictures"]
