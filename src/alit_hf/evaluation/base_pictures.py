"""The base tokenizer alone, the upper bound of what latent tokens can reach."""

import torch

from alit_hf.model.modeling_alit import ALITModel


def base_pictures(model: ALITModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Encodes and decodes with the base tokenizer.

    Args:
        model ([`ALITModel`])
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1] on the model's device.

    Returns:
        pictures `(B, 3, H, W)`, not clamped; and the ids `(B, N)` of a VQGAN base, whose quantised codes are decoded,
        or `None` for a KL base.
    """
    base = model.base_tokenizer
    latents = base.encode(pixel_values.to(model.dtype))
    if model.config.base_type == "kl":
        return base.decode(latents), None
    ids = base.codes(latents)
    codes = base.model.quantize.embedding(ids).transpose(1, 2).unflatten(2, latents.shape[-2:])
    return base.decode(codes.to(model.dtype)), ids


__all__ = ["base_pictures"]
