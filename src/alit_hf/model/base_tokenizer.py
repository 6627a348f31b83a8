"""One interface over the two kinds of base tokenizer: diffusers' `VQModel` (VQGAN) and `AutoencoderKL`."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, VQModel
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_alit import ALITConfig
from .layers import image_by_image
from .quantizer import embedding_table


_BASE_CLASSES = {"vqgan": VQModel, "kl": AutoencoderKL}


def to_range(pixel_values: torch.Tensor, pixel_range: tuple[float, float]) -> torch.Tensor:
    """Pixels in [0, 1] as a base tokenizer wants them."""
    low, high = pixel_range
    return pixel_values if (low, high) == (0, 1) else pixel_values * (high - low) + low


def from_range(pixel_values: torch.Tensor, pixel_range: tuple[float, float]) -> torch.Tensor:
    """Undoes `to_range`."""
    low, high = pixel_range
    return pixel_values if (low, high) == (0, 1) else (pixel_values - low) / (high - low)


class ALITBaseTokenizer(PreTrainedModel):
    """
    The 2D tokenizer that ALIT distils: image to grid of latents and back (paper section 2).

    `model` is the diffusers module. It sits in a `PreTrainedModel` of its own so that the weights that are missing
    from a checkpoint are initialised as diffusers would and not by the parent's rules.
    """

    config: ALITConfig
    base_model_prefix = "base_tokenizer"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ALITConfig):
        super().__init__(config)
        arguments = {key: value for key, value in config.base_tokenizer_config.items() if not key.startswith("_")}
        base_class = _BASE_CLASSES[config.base_type]
        try:
            self.model = base_class(**arguments)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`base_tokenizer_config` is {config.base_tokenizer_config}, which diffusers' {base_class.__name__} "
                f"cannot be built from: {error}"
            ) from error
        resnets = config.base_tokenizer_config.get("_decoder_resnets_per_block")
        if resnets is not None:
            for block in self.model.decoder.up_blocks:
                del block.resnets[resnets:]
        self._pixel_range = config.base_tokenizer_config.get("_pixel_range", (0, 1))
        # Such autoencoders overflow in float16.
        self._is_upcast = bool(config.base_tokenizer_config.get("force_upcast"))
        if self._is_upcast:
            self._keep_in_fp32_modules = ["base_tokenizer"]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Embedding):
            # As diffusers' VectorQuantizer; torch's own default would be far from the encoder's outputs.
            init.uniform_(module.weight, -1.0 / module.num_embeddings, 1.0 / module.num_embeddings)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()

    @property
    def codebook(self) -> torch.Tensor:
        """Base codes (base codebook size, E), the parameter itself. VQGAN base only."""
        return self.model.quantize.embedding.weight

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1].

        Returns:
            continuous latents `(B, E, H / patch_size, W / patch_size)`: before the quantisation of a VQGAN base; the
            posterior's mode, shifted and scaled as the base's configuration says, for a KL base.
        """
        pixel_values = to_range(pixel_values, self._pixel_range)
        if self.config.base_type == "vqgan":
            return self._run(lambda pixels: self.model.encode(pixels).latents, pixel_values)
        modes = self._run(lambda pixels: self.model.encode(pixels).latent_dist.mode(), pixel_values)
        shift, scale = self._shift_and_scale(modes)
        return (modes - shift) * scale

    def _run(self, function: Callable, batch: torch.Tensor) -> torch.Tensor:
        outputs = image_by_image(function, batch.to(self.model.dtype) if self._is_upcast else batch)
        return outputs.to(batch.dtype) if self._is_upcast else outputs

    def _shift_and_scale(self, latents: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """What diffusers' pipelines bring the latents of a KL base to zero mean and unit variance with."""
        config = self.model.config
        shift, scale = config.shift_factor or 0.0, config.scaling_factor
        if config.latents_mean is not None:
            shift = latents.new_tensor(config.latents_mean)[:, None, None]
        if config.latents_std is not None:
            scale = scale / latents.new_tensor(config.latents_std)[:, None, None]
        return shift, scale

    def codes(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Args:
            latents (`torch.Tensor` of shape `(B, E, rows, columns)`): from `encode`.

        Returns:
            indices of the nearest base codes `(B, rows * columns)`, int64, in raster order. VQGAN base only.
        """
        with torch.autocast(latents.device.type, enabled=False):
            vectors = latents.float().flatten(2).transpose(1, 2)
            codebook = embedding_table(self.model.quantize.embedding, latents.device).float()
            return image_by_image(lambda image: torch.cdist(image, codebook[None]).argmin(dim=-1), vectors)

    def expected_latents(self, decoder_output: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """
        The latents that the distillation decoder's output stands for: the expected base code under its softmax
        (VQGAN base, so that gradient reaches logits and codebook), or the output itself (KL base).

        Args:
            decoder_output (`torch.Tensor` of shape `(B, rows * columns, base_output_dim)`)
            grid_size (`tuple[int, int]`): rows and columns.

        Returns:
            latents `(B, E, rows, columns)`, ready for `decode`.
        """
        latents = decoder_output
        if self.config.base_type == "vqgan":
            codebook = embedding_table(self.model.quantize.embedding, decoder_output.device)
            probabilities = decoder_output.softmax(dim=-1, dtype=torch.float32).to(codebook.dtype)
            latents = image_by_image(lambda image: image @ codebook, probabilities)
        return latents.transpose(1, 2).unflatten(2, grid_size)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Args:
            latents (`torch.Tensor` of shape `(B, E, rows, columns)`): base codes or latents, as `expected_latents`
                gives them; they are not quantised again.

        Returns:
            pixels `(B, 3, H, W)`, nominally in [0, 1], not clamped.
        """
        if self.config.base_type == "kl":
            if self.config.unscale_base_latents:
                shift, scale = self._shift_and_scale(latents)
                latents = latents / scale + shift
            pixels = self._run(lambda codes: self.model.decode(codes).sample, latents)
        else:
            # Not `model.decode`, which takes soft codes for ids where the base's config has `lookup_from_codebook`.
            spatial = self.model.config.norm_type == "spatial"
            pixels = self._run(
                lambda codes: self.model.decoder(self.model.post_quant_conv(codes), codes if spatial else None),
                latents,
            )
        return from_range(pixels, self._pixel_range)


__all__ = ["ALITBaseTokenizer"]
