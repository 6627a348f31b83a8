"""ALIT model configuration."""

import copy
import functools
import math
import os
import reprlib
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .image_io import MAX_IMAGE_PIXELS


# The paper's models by name: width, layers of the distillation encoder and of the decoder, attention heads.
_PAPER_SIZES = {"tiny": (512, 8, 8), "small": (1024, 8, 8), "base": (768, 12, 12), "semilarge": (1024, 16, 16)}

# The base tokenizers of the published checkpoints, as diffusers configurations (256 px, 16x16 grid).
_PAPER_BASE_TOKENIZERS = {
    "vqgan": {
        "_class_name": "VQModel",
        "down_block_types": ["DownEncoderBlock2D"] * 5,
        "up_block_types": ["UpDecoderBlock2D"] * 5,
        "block_out_channels": [128, 128, 256, 256, 512],
        "layers_per_block": 2,
        "latent_channels": 256,
        "vq_embed_dim": 256,
        "num_vq_embeddings": 1024,
        "norm_num_groups": 32,
        "mid_block_add_attention": False,
    },
    "kl": {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"] * 5,
        "block_out_channels": [128, 128, 256, 256, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "norm_num_groups": 32,
        "scaling_factor": 0.2325,
    },
}

# What a saved folder says of the code in it.
_AUTO_MAP = {
    "AutoConfig": "configuration_alit.ALITConfig",
    "AutoModel": "modeling_alit.ALITModel",
    "AutoModelForImageClassification": "modeling_alit_classification.ALITForImageClassification",
    "AutoImageProcessor": "image_processing_alit.ALITImageProcessor",
}

_BASE_TYPES = {"VQModel": "vqgan", "AutoencoderKL": "kl"}

# A configuration may come from strangers, and what it declares is built before any weights are compared with it. The
# limits are far above what the paper trains.
MAX_PARAMETERS = 2**32
MAX_POSITIONS = 2**16  # 4096x4096 pixels at patch 16
MAX_TOKENS = 2**16 - 1  # what an `.alit` file counts
_MAX_LAYERS = 1000
_MAX_LABELS = 2**20


def _with_value_errors(config_class):
    """`@strict` raises exception classes of its own; callers of a config expect a `ValueError`."""

    def with_value_errors(method):
        @functools.wraps(method)
        def wrapper(self, *args, **kwargs):
            try:
                method(self, *args, **kwargs)
            except StrictDataclassError as error:
                raise ValueError(str(error.__cause__)) from error

        return wrapper

    config_class.__init__ = with_value_errors(config_class.__init__)
    config_class.__setattr__ = with_value_errors(config_class.__setattr__)
    config_class.validate = with_value_errors(config_class.validate)
    return config_class


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PARAMETERS


def _are_numbers(values: Any, count: int) -> bool:
    """Whether these are so many finite numbers."""
    return isinstance(values, list) and len(values) == count and all(map(_is_finite, values))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@_with_value_errors
@strict
class ALITConfig(PreTrainedConfig):
    r"""
    Configuration of an [`ALITModel`]: a base 2D tokenizer, a recurrent distillation encoder that turns its grid into a
    growing list of 1D latent tokens, and a distillation decoder that rebuilds the grid from them (arXiv 2411.02393,
    section 2). The defaults give the paper's `tiny` model on a VQGAN base.

    Args:
        image_size (`int` or `list[int]`, *optional*, defaults to 256):
            Trained image size in pixels: one number for squares, or `(height, width)`. A multiple of `patch_size`.
        patch_size (`int`, *optional*, defaults to 16):
            Pixels per grid position and side. Equals the base tokenizer's downsampling factor.
        num_channels (`int`, *optional*, defaults to 3):
            Colour channels of the images.
        hidden_size (`int`, *optional*, defaults to 512):
            Width W of the distillation encoder and decoder. A multiple of `num_attention_heads`, larger than the
            base tokenizer's embedding dimension.
        num_encoder_layers (`int`, *optional*, defaults to 8):
            Transformer layers of the distillation encoder.
        num_decoder_layers (`int`, *optional*, defaults to 8):
            Transformer layers of the distillation decoder.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Attention heads in every layer.
        mlp_ratio (`int` or `float`, *optional*, defaults to 4):
            Hidden width of the MLPs as a multiple of `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the MLPs, a name of `transformers.activations`.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norms.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability of the attention weights in training.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of layers. Class, mask, position and latent embeddings start at
            the published `hidden_size**-0.5`.
        tokens_per_rollout (`int`, *optional*, defaults to 32):
            Latent tokens L that each rollout adds.
        max_rollouts (`int`, *optional*, defaults to 8):
            Number of rollouts K; a code has between L and K·L latent tokens.
        codebook_size (`int`, *optional*, defaults to 4096):
            Entries C of the latent codebook (2 to 65536). Without meaning when `quantize` is off.
        codebook_dim (`int`, *optional*, defaults to 12):
            Dimension D of the factorised latents that are quantised and decoded.
        quantize (`bool`, *optional*, defaults to `True`):
            Whether latents are quantised to ids; off for continuous latent tokens.
        commitment_cost (`float`, *optional*, defaults to 0.25):
            Weight of the commitment term in the quantizer's loss.
        halting_threshold (`float`, *optional*):
            Dynamic halting at inference: after a rollout, grid positions that are already explained are masked
            (VQ base: with probability p where the true base code has probability p ≥ threshold, 0.55 in the paper;
            KL base: where the mean absolute latent error is below the threshold, 0.025). `None` turns it off.
        base_tokenizer_config (`dict`, *optional*):
            A diffusers `VQModel` or `AutoencoderKL` configuration, its class under `"_class_name"`, and the range of
            pixels that it was trained on under `"_pixel_range"` (`[0, 1]` if missing). `None` is the paper's VQGAN.
        unscale_base_latents (`bool`, *optional*, defaults to `True`):
            KL base only: whether the base's `scaling_factor` and shift of latents are undone before they are decoded.
            Off for converted published checkpoints, which were trained without.
        length_criterion (`str`, *optional*):
            Token selection criterion that the model's length predictor was trained for, see
            [`ALITModel.set_length_criterion`]. `None`: the model has none.
        length_shortfalls (`list[float]`, *optional*):
            The length predictor's calibration: for each picture of the calibration by how much the prediction was too
            good, in natural logarithms, in ascending order. `None`: it is not calibrated.

    Raises:
        `ValueError`: where a field has the wrong type or the fields do not fit together.

    Example:

    ```python
    >>> from alit_hf import ALITConfig, ALITModel

    >>> config = ALITConfig.paper("tiny", base="vqgan", quantize=True)
    >>> config.max_tokens, config.grid_size
    (256, (16, 16))
    ```"""

    model_type = "alit"
    attribute_map = {"num_hidden_layers": "num_encoder_layers"}

    image_size: int | list[int] | tuple[int, ...] = 256
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 512
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    num_attention_heads: int = 8
    mlp_ratio: int | float = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-5
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    tokens_per_rollout: int = 32
    max_rollouts: int = 8
    codebook_size: int = 4096
    codebook_dim: int = 12
    quantize: bool = True
    commitment_cost: float | int = 0.25
    halting_threshold: float | int | None = None
    base_tokenizer_config: dict | None = None
    unscale_base_latents: bool = True
    length_criterion: str | None = None
    length_shortfalls: list[float] | None = None

    def __post_init__(self, **kwargs):
        base = self.base_tokenizer_config
        # A copy, because the lists in it can be changed in place; lists and not tuples, because JSON has no tuples.
        base = copy.deepcopy(dict(_PAPER_BASE_TOKENIZERS["vqgan"] if base is None else base))
        # diffusers adds the folder that a base was loaded from, which is no business of those who get the model.
        self.base_tokenizer_config = {name: _as_list(value) for name, value in base.items() if name != "_name_or_path"}
        self.image_size = _as_list(self.image_size)
        num_labels = kwargs.get("num_labels")
        # It becomes a table of that many names, before anything is validated.
        if isinstance(num_labels, int) and num_labels > _MAX_LABELS:
            raise ValueError(f"`num_labels` is {num_labels}, it must be at most {_MAX_LABELS}.")
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any):
        """
        As in every configuration, with the code of all classes beside it: `auto_map` names each that is there,
        whichever model is saved.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for file in Path(__file__).parent.glob("*.py"):
            if file.name != "__init__.py":
                shutil.copy(file, folder)
        # Remote code lies in several folders, of which the model has copied its own.
        self.auto_map = {
            auto_class: name
            for auto_class, name in _AUTO_MAP.items()
            if (folder / f"{name.partition('.')[0]}.py").exists()
        }
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def validate_architecture(self):
        """Raises where the fields do not fit together."""
        for name in (
            "patch_size",
            "num_channels",
            "hidden_size",
            "num_encoder_layers",
            "num_decoder_layers",
            "num_attention_heads",
            "tokens_per_rollout",
            "max_rollouts",
            "codebook_dim",
        ):
            if not _is_count(getattr(self, name)):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, it must be at least 1 and at most {MAX_PARAMETERS}."
                )
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"`image_size` is {self.image_size}, it must be one number or (height, width).")
        if any(side < self.patch_size or side % self.patch_size for side in self.image_height_width):
            raise ValueError(
                f"`image_size` is {self.image_size}, each side must be a positive multiple of `patch_size` "
                f"({self.patch_size})."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}, it must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r}, it must be one of {sorted(ACT2FN)}.")
        if not 1 <= self.mlp_ratio * self.hidden_size < math.inf:
            raise ValueError(
                f"`mlp_ratio` is {self.mlp_ratio}, it must be a number that leaves a hidden width above 0."
            )
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}, it must be above 0.")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"`attention_dropout` is {self.attention_dropout}, it must be at least 0 and below 1.")
        if not 2 <= self.codebook_size <= 2**16:
            raise ValueError(f"`codebook_size` is {self.codebook_size}, it must be between 2 and 65536.")
        if not 0 <= self.commitment_cost < math.inf:
            raise ValueError(f"`commitment_cost` is {self.commitment_cost}, it must be at least 0.")
        if self.halting_threshold is not None and not self.halting_threshold > 0:
            raise ValueError(f"`halting_threshold` is {self.halting_threshold}, it must be above 0 or None.")
        shortfalls = self.length_shortfalls
        if shortfalls is not None:
            ascending = all(map(math.isfinite, shortfalls)) and shortfalls == sorted(shortfalls)
            if not shortfalls or not ascending or self.length_criterion is None:
                raise ValueError(
                    f"`length_shortfalls` is {reprlib.repr(shortfalls)} and `length_criterion` is "
                    f"{self.length_criterion!r}, they must be finite numbers in ascending order and a criterion."
                )
        self._validate_base_tokenizer()
        self._validate_totals()

    def _validate_totals(self):
        """Before anything is allocated."""
        height, width = self.image_height_width
        layers_per_block = self.base_tokenizer_config.get("layers_per_block", 1)
        for name, value, largest in (
            ("num_encoder_layers", self.num_encoder_layers, _MAX_LAYERS),
            ("num_decoder_layers", self.num_decoder_layers, _MAX_LAYERS),
            ("layers_per_block", layers_per_block, _MAX_LAYERS),
            ("max_rollouts` times `tokens_per_rollout", self.max_tokens, MAX_TOKENS),
        ):
            if value > largest:
                raise ValueError(f"`{name}` is {value}, it must be at most {largest}.")
        if self.num_positions > MAX_POSITIONS or height * width > MAX_IMAGE_PIXELS:
            raise ValueError(
                f"`image_size` is {self.image_size} with {self.num_positions} positions, it must have at most "
                f"{MAX_IMAGE_PIXELS} pixels and {MAX_POSITIONS} positions."
            )
        if _num_weights(self) > MAX_PARAMETERS:
            sizes = (
                "hidden_size",
                "mlp_ratio",
                "num_encoder_layers",
                "num_decoder_layers",
                "codebook_dim",
                "patch_size",
            )
            found = [f"`{name}` is {getattr(self, name)}" for name in sizes]
            found.append(f"`block_out_channels` {self.base_tokenizer_config['block_out_channels']}")
            raise ValueError(
                f"The model would have more than {MAX_PARAMETERS} parameters, which is the limit: {', '.join(found)}."
            )

    def _validate_base_tokenizer(self):
        base = self.base_tokenizer_config

        def refuse(name: str, allowed: str):
            raise ValueError(f"`base_tokenizer_config` has `{name}` {base.get(name)!r}, it must be {allowed}.")

        class_names = list(_BASE_TYPES)
        if base.get("_class_name") not in class_names:
            refuse("_class_name", f"one of {class_names}")
        for name in ("layers_per_block", "latent_channels", "norm_num_groups", "num_vq_embeddings"):
            if not _is_count(base.get(name, 1)):
                refuse(name, f"an integer of at least 1 and at most {MAX_PARAMETERS}")
        if base.get("vq_embed_dim") is not None and not _is_count(base["vq_embed_dim"]):
            refuse("vq_embed_dim", f"an integer of at least 1 and at most {MAX_PARAMETERS}, or None")
        # diffusers' decoders have one resnet more in a block than `layers_per_block`, the published VQGAN's have not.
        most = base.get("layers_per_block", 1) + 1
        resnets = base.get("_decoder_resnets_per_block", most)
        if not _is_count(resnets) or resnets > most:
            refuse("_decoder_resnets_per_block", f"an integer from 1 to {most}")
        scaling_factor = base.get("scaling_factor", 1)
        if not isinstance(scaling_factor, (int, float)) or not 0 < scaling_factor < math.inf:
            refuse("scaling_factor", "a number above 0")
        if base.get("shift_factor") is not None and not _is_finite(base["shift_factor"]):
            refuse("shift_factor", "a number or None")
        for name in ("latents_mean", "latents_std"):
            if base.get(name) is not None and not _are_numbers(base[name], base.get("latent_channels", 4)):
                refuse(name, "a list of one number for each of its `latent_channels`, or None")
        if min(base.get("latents_std") or [1]) <= 0:
            refuse("latents_std", "above 0")
        pixel_range = base.get("_pixel_range", [0, 1])
        if not _are_numbers(pixel_range, 2) or not pixel_range[0] < pixel_range[1]:
            refuse("_pixel_range", "a list of the values of black and white pixels, the smaller first")
        channels, groups = base.get("block_out_channels"), base.get("norm_num_groups", 32)
        if not isinstance(channels, list) or not channels or not all(map(_is_count, channels)):
            refuse("block_out_channels", "a list of the channels of each level")
        if any(width % groups for width in channels):
            refuse("block_out_channels", f"multiples of its `norm_num_groups` ({groups})")
        for name in ("down_block_types", "up_block_types"):
            if not isinstance(base.get(name), list) or len(base[name]) != len(channels):
                refuse(name, f"a list of one block for each of the {len(channels)} levels in `block_out_channels`")
        for name in ("in_channels", "out_channels"):
            if base.get(name, 3) != self.num_channels:
                refuse(name, f"`num_channels` ({self.num_channels}; where it is missing, it is 3)")
        downsampling = 2 ** (len(channels) - 1)
        if downsampling != self.patch_size:
            raise ValueError(
                f"`patch_size` is {self.patch_size}, it must equal the base tokenizer's downsampling factor "
                f"({downsampling}, for {len(channels)} levels)."
            )
        if self.base_embed_dim >= self.hidden_size:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}, it must be larger than the base tokenizer's embedding "
                f"dimension ({self.base_embed_dim})."
            )

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Trained image size in pixels as (height, width)."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the base tokenizer's grid at the trained image size."""
        height, width = self.image_height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def num_positions(self) -> int:
        """Positions of the base tokenizer's grid at the trained image size."""
        rows, columns = self.grid_size
        return rows * columns

    @property
    def max_tokens(self) -> int:
        """Latent tokens of the longest code, K·L."""
        return self.max_rollouts * self.tokens_per_rollout

    @property
    def num_layer_runs(self) -> int:
        """Layers that the distillation encoder runs for the longest code: all of them in every rollout."""
        return self.max_rollouts * self.num_encoder_layers

    @property
    def bits_per_token(self) -> int:
        """Bits that store one id of the latent codebook."""
        return math.ceil(math.log2(self.codebook_size))

    @property
    def base_type(self) -> str:
        """`"vqgan"` (discrete base codes) or `"kl"` (continuous base latents)."""
        return _BASE_TYPES[self.base_tokenizer_config["_class_name"]]

    @property
    def base_embed_dim(self) -> int:
        """Channels E of the base tokenizer's latents."""
        base = self.base_tokenizer_config
        default = 3 if self.base_type == "vqgan" else 4
        latent_channels = base.get("latent_channels", default)
        return (base.get("vq_embed_dim") or latent_channels) if self.base_type == "vqgan" else latent_channels

    @property
    def base_output_dim(self) -> int:
        """What the distillation decoder predicts at each position: logits over base codes, or base latents."""
        if self.base_type == "kl":
            return self.base_embed_dim
        return self.base_tokenizer_config.get("num_vq_embeddings", 256)

    @classmethod
    def paper(cls, name: str, base: str = "vqgan", quantize: bool = True, **kwargs: Any) -> "ALITConfig":
        """
        The configuration of one of the paper's models.

        Args:
            name (`str`):
                `"tiny"` (width 512, 8 layers, 8 heads), `"small"` (1024, 8, 8), `"base"` (768, 12, 12) or
                `"semilarge"` (1024, 16, 16).
            base (`str`, *optional*, defaults to `"vqgan"`):
                Base tokenizer, `"vqgan"` or `"kl"`.
            quantize (`bool`, *optional*, defaults to `True`):
                Whether latent tokens are discrete.
            kwargs:
                Further fields, over those of the paper.

        Raises:
            `ValueError`: for an unknown name or base.
        """
        if not isinstance(name, str) or name not in _PAPER_SIZES:
            raise ValueError(f"`name` is {name!r}, it must be one of {list(_PAPER_SIZES)}.")
        if not isinstance(base, str) or base not in _PAPER_BASE_TOKENIZERS:
            raise ValueError(f"`base` is {base!r}, it must be one of {list(_PAPER_BASE_TOKENIZERS)}.")
        width, layers, heads = _PAPER_SIZES[name]
        fields = {
            "hidden_size": width,
            "num_encoder_layers": layers,
            "num_decoder_layers": layers,
            "num_attention_heads": heads,
            "quantize": quantize,
            "base_tokenizer_config": _PAPER_BASE_TOKENIZERS[base],
        }
        return cls(**{**fields, **kwargs})


def _num_weights(config: ALITConfig) -> int:
    """
    How many weights a model's matrices, convolutions and tables have, without building it: all parameters but biases,
    norms and what a base tokenizer has beside the convolutions of its levels.
    """
    base, width = config.base_tokenizer_config, config.hidden_size
    per_layer = 4 * width**2 + 2 * width * int(width * config.mlp_ratio)
    layers = (config.num_encoder_layers + config.num_decoder_layers) * per_layer
    tables = 2 * width * (config.num_positions + config.max_tokens) + config.codebook_size * config.codebook_dim
    patches = (width - config.base_embed_dim) * config.num_channels * config.patch_size**2
    heads = 2 * width * (width + config.base_output_dim + config.codebook_dim)
    channels = base["block_out_channels"]
    convolutions = 18 * (2 * base.get("layers_per_block", 1) + 1) * sum(width**2 for width in channels)
    latents = 18 * channels[-1] * base.get("latent_channels", 3) + config.base_output_dim * config.base_embed_dim
    return layers + tables + patches + heads + convolutions + latents


# save_pretrained then copies this file, so that a pushed model runs where alit_hf is missing.
ALITConfig.register_for_auto_class()

__all__ = ["ALITConfig"]
