"""ALIT: adaptive-length image tokenization by recurrent allocation (arXiv 2411.02393)."""

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .base_tokenizer import ALITBaseTokenizer
from .configuration_alit import ALITConfig
from .quantizer import ALITCodebook, ALITVectorQuantizer
from .selection import Criterion, resolve_criterion, score_images


PADDING_ID = -1


@dataclass
class _Recurrence:
    """What one rollout hands to the next, and what was computed from it so far."""

    hidden_states: torch.Tensor  # (B, 1 + N + T, W), (B, 1 + N, W) before the first rollout
    base_latents: torch.Tensor  # (B, E, rows, columns)
    rollout: int = 0  # rollouts that have run
    halting_threshold: float | None = None
    halting_noise: torch.Tensor | None = None  # (B, K - 1, N) in [0, 1)
    latents: torch.Tensor | None = None  # (B, T, D)
    token_ids: torch.Tensor | None = None  # (B, T)
    quantizer_loss: torch.Tensor | None = None
    decoder_output: torch.Tensor | None = None  # (B, N, base_output_dim)

    @property
    def grid_size(self) -> tuple[int, int]:
        return tuple(self.base_latents.shape[-2:])

    def rows(self, kept: torch.Tensor) -> "_Recurrence":
        """The same recurrence for the images in `kept` (bool, `(B,)`)."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor) and value.ndim}
        return replace(self, **{name: value[kept] for name, value in tensors.items()})


@dataclass
class ALITEncoderOutput(ModelOutput):
    """
    The codes of a batch of images, each of its own length.

    Args:
        token_ids (`torch.LongTensor` of shape `(B, T)`):
            Ids in [0, codebook_size), padded with -1 behind an image's last token; T is the longest length in the
            batch. `None` where the model's latents are continuous. A code is no prefix of a longer one: ids mean
            something only together with `num_tokens`.
        num_tokens (`torch.LongTensor` of shape `(B,)`):
            Length of each image's code, a multiple of `tokens_per_rollout`.
        latents (`torch.FloatTensor` of shape `(B, T, D)`):
            Factorised latents that `decode` takes (unit-norm codes where quantised), zero behind the last token.
        grid_size (`tuple[int, int]`):
            Rows and columns of the grid that `decode` rebuilds.
        score (`torch.FloatTensor` of shape `(B,)`, only with a `threshold`):
            The criterion's value at the chosen length, lower is better.
        satisfied (`torch.BoolTensor` of shape `(B,)`, only with a `threshold`):
            Whether the score is below the threshold; where not, the image has the full length.
        reconstruction (`torch.FloatTensor` of shape `(B, 3, H, W)`, only with `return_reconstruction`):
            Pictures decoded from the codes, nominally in [0, 1], not clamped.
    """

    token_ids: torch.LongTensor | None = None
    num_tokens: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    grid_size: tuple[int, int] | None = None
    score: torch.FloatTensor | None = None
    satisfied: torch.BoolTensor | None = None
    reconstruction: torch.FloatTensor | None = None


@dataclass
class ALITDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`):
            Decoded pictures, nominally in [0, 1], not clamped.
    """

    pixel_values: torch.FloatTensor | None = None


@dataclass
class ALITRolloutOutput(ModelOutput):
    """
    The state after one rollout, for all images of the batch.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, 1 + N + T, W)`):
            Output of the distillation encoder: class token, N grid positions in raster order, T latent tokens.
        num_tokens (`int`):
            T, the rollout's number times `tokens_per_rollout`.
        token_ids (`torch.LongTensor` of shape `(B, T)`):
            Ids in [0, codebook_size); `None` where latents are continuous.
        latents (`torch.FloatTensor` of shape `(B, T, D)`):
            Factorised latents, unit-norm codes with a straight-through gradient where quantised.
        quantizer_loss (`torch.FloatTensor`, a scalar):
            Codebook plus commitment loss; `None` where latents are continuous.
        decoder_output (`torch.FloatTensor` of shape `(B, N, base_output_dim)`, unless `return_decoder_output` is off):
            Logits over base codes (VQGAN base) or base latents (KL base) at each grid position.
        reconstruction (`torch.FloatTensor` of shape `(B, 3, H, W)`, only with `return_reconstruction`):
            The picture at this length, nominally in [0, 1], not clamped.
        grid_size (`tuple[int, int]`):
            Rows and columns of the grid.
    """

    last_hidden_state: torch.FloatTensor | None = None
    num_tokens: int | None = None
    token_ids: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantizer_loss: torch.FloatTensor | None = None
    decoder_output: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    grid_size: tuple[int, int] | None = None


@dataclass
class ALITOutput(ALITRolloutOutput):
    """
    The state after the last rollout that ran (see `ALITRolloutOutput`), with recorded intermediate outputs.

    Args:
        hidden_states (`tuple[torch.FloatTensor]`, with `output_hidden_states=True`):
            Input of the first encoder layer, then the output of every encoder layer of every rollout, rollout by
            rollout, each `(B, 1 + N + T_k, W)`.
        attentions (`tuple[torch.FloatTensor]`, with `output_attentions=True` and eager attention):
            Attention weights of every encoder layer of every rollout, each `(B, heads, 1 + N + T_k, 1 + N + T_k)`.
        decoder_hidden_states, decoder_attentions (`tuple[torch.FloatTensor]`, with `output_decoder_hidden_states=True`
            or `output_decoder_attentions=True` and eager attention):
            Outputs and attention weights of the layers of the distillation decoder, which runs once (after every
            rollout with dynamic halting): `(B, 1 + N + T, W)` and `(B, heads, 1 + N + T, 1 + N + T)`.
    """

    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights `(B, heads, T, T)`; `attention_mask` is part of the interface only."""
    weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


class ALITAttention(nn.Module):
    """Joint self-attention over all tokens: `(B, T, W)` to `(B, T, W)` and the attention weights where available."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(heads_shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(hidden_states.shape)), weights


class ALITMLP(nn.Module):
    """Two linear layers on each token: `(B, T, W)` to `(B, T, W)`."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        intermediate_size = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class ALITLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: `(B, T, W)` to `(B, T, W)`."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ALITAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ALITMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class ALITPositionEmbeddings(nn.Module):
    """Class token, mask token and position table of a grid, for the encoder's and for the decoder's side."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + config.num_positions, config.hidden_size))

    def positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """Position table `(1, 1 + rows * columns, W)`, interpolated where the grid is not the trained one."""
        if tuple(grid_size) == self.grid_size:
            return self.position_embeddings
        class_position, grid_positions = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        table = grid_positions.transpose(1, 2).unflatten(2, self.grid_size)
        table = F.interpolate(table.float(), size=tuple(grid_size), mode="bicubic", align_corners=False)
        return torch.cat([class_position, table.to(class_position.dtype).flatten(2).transpose(1, 2)], dim=1)

    def masked_positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """Mask token plus position at every grid position, `(1, rows * columns, W)`."""
        return self.mask_token + self.positions(grid_size)[:, 1:]


class ALITEmbeddings(ALITPositionEmbeddings):
    """Turns pixels and base latents into the encoder's image tokens (paper section 2)."""

    def __init__(self, config: ALITConfig):
        super().__init__(config)
        self.patch_embeddings = nn.Conv2d(
            config.num_channels,
            config.hidden_size - config.base_embed_dim,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )

    def forward(self, pixel_values: torch.Tensor, base_latents: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1].
            base_latents (`torch.Tensor` of shape `(B, E, rows, columns)`): from `ALITBaseTokenizer.encode`.

        Returns:
            class token and image tokens with their positions, `(B, 1 + rows * columns, W)`.
        """
        grid = torch.cat([base_latents, self.patch_embeddings(pixel_values)], dim=1)
        tokens = F.normalize(grid.flatten(2).transpose(1, 2), dim=-1)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.positions(grid.shape[-2:])


class ALITLatentTokens(nn.Module):
    """The fresh latent tokens that each rollout appends (paper section 2)."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        tokens_shape = (config.tokens_per_rollout, config.hidden_size)
        self.tokens = nn.Parameter(torch.empty(tokens_shape))
        self.position_embeddings = nn.Parameter(torch.empty(tokens_shape))
        self.rollout_embeddings = nn.Parameter(torch.empty(config.max_rollouts, *tokens_shape))

    def forward(self, rollout: int) -> torch.Tensor:
        """Latent tokens `(L, W)` for the rollout of that index, counted from 0."""
        return self.tokens + self.position_embeddings + self.rollout_embeddings[rollout]


class ALITEncoder(nn.Module):
    """Distillation encoder: one forward pass is one rollout (paper section 2)."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.layernorm_pre = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_rollout = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([ALITLayer(config) for _ in range(config.num_encoder_layers)])
        self.layernorm_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, new_tokens: torch.Tensor, rollout: int, **kwargs) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(B, S, W)`): the image tokens for rollout 0, otherwise what the
                rollout before returned.
            new_tokens (`torch.Tensor` of shape `(L, W)`): latent tokens to append.
            rollout (`int`): the rollout's index, counted from 0.

        Returns:
            all tokens refined, `(B, S + L, W)`.
        """
        new_tokens = new_tokens.expand(len(hidden_states), -1, -1)
        layernorm = self.layernorm_pre if rollout == 0 else self.layernorm_rollout
        hidden_states = layernorm(torch.cat([hidden_states, new_tokens], dim=1))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class ALITPredictionHead(nn.Module):
    """What the decoder says at each grid position: `(B, N, W)` to `(B, N, base_output_dim)`."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.fc2 = nn.Linear(2 * config.hidden_size, config.base_output_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(hidden_states).tanh())


class ALITDecoder(ALITPositionEmbeddings):
    """Distillation decoder: rebuilds the base tokenizer's grid from latent tokens alone (paper section 2)."""

    def __init__(self, config: ALITConfig):
        super().__init__(config)
        self.latent_position_embeddings = nn.Parameter(torch.empty(config.max_tokens, config.hidden_size))
        self.latent_projection = nn.Linear(config.codebook_dim, config.hidden_size)
        self.layernorm_pre = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([ALITLayer(config) for _ in range(config.num_decoder_layers)])
        self.layernorm_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = ALITPredictionHead(config)

    def forward(self, latents: torch.Tensor, grid_size: tuple[int, int], **kwargs) -> torch.Tensor:
        """
        Args:
            latents (`torch.Tensor` of shape `(B, T, D)`): factorised latents, T a multiple of `tokens_per_rollout`.
            grid_size (`tuple[int, int]`): rows and columns of the grid to rebuild.

        Returns:
            logits over base codes or base latents, `(B, rows * columns, base_output_dim)`.
        """
        tokens = self.latent_projection(latents.to(self.latent_projection.weight.dtype))
        tokens = tokens + self.latent_position_embeddings[: tokens.shape[1]]
        class_token = self.cls_token + self.positions(grid_size)[:, :1]
        grid = torch.cat([class_token, self.masked_positions(grid_size)], dim=1).expand(len(tokens), -1, -1)
        hidden_states = self.layernorm_pre(torch.cat([grid, tokens], dim=1))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm_post(hidden_states[:, 1 : grid.shape[1]])
        return self.head(hidden_states)


class ALITPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every ALIT model."""

    config: ALITConfig
    base_model_prefix = "alit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ALITBaseTokenizer", "ALITEmbeddings", "ALITLayer", "ALITDecoder"]
    # In bfloat16 the nearest code is another one for about 3 % of the tokens.
    _keep_in_fp32_modules_strict = ["quantizer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(ALITLayer, layer_name="encoder"),
        "attentions": OutputRecorder(ALITAttention, index=1, layer_name="encoder"),
        "decoder_hidden_states": OutputRecorder(ALITLayer, layer_name="decoder"),
        "decoder_attentions": OutputRecorder(ALITAttention, index=1, layer_name="decoder"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, ALITCodebook):
            # Directions are all that counts; a normal distribution spreads them evenly over the sphere.
            init.normal_(module.weight)
            return
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, ALITPositionEmbeddings):
            init.normal_(module.cls_token, std=std)
            init.normal_(module.mask_token, std=std)
            init.normal_(module.position_embeddings, std=std)
        if isinstance(module, ALITDecoder):
            init.normal_(module.latent_position_embeddings, std=std)
        if isinstance(module, ALITLatentTokens):
            init.normal_(module.tokens, std=std)
            init.normal_(module.position_embeddings, std=std)
            init.normal_(module.rollout_embeddings, std=std)


class ALITModel(ALITPreTrainedModel):
    r"""
    ALIT (arXiv 2411.02393): images to codes of 1D latent tokens, each image as many as it needs, and back.

    Pixels are in [0, 1] everywhere, without mean/std normalisation. As in all of transformers, methods record
    gradients unless called under `torch.no_grad()`.

    Args:
        config ([`ALITConfig`]): sizes and base tokenizer.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from alit_hf import ALITImageProcessor, ALITModel, pretrained_path

    >>> processor = ALITImageProcessor.from_pretrained(pretrained_path())
    >>> model = ALITModel.from_pretrained(pretrained_path()).eval()
    >>> inputs = processor(Image.new("RGB", (640, 480), "orange"), return_tensors="pt")
    >>> with torch.no_grad():
    ...     code = model.encode(**inputs, threshold=0.1)
    ...     picture = model.decode(token_ids=code.token_ids, num_tokens=code.num_tokens).pixel_values
    ```"""

    def __init__(self, config: ALITConfig):
        # Fields that were set one by one are checked together only here.
        config.validate()
        super().__init__(config)
        self.base_tokenizer = ALITBaseTokenizer(config)
        self.embeddings = ALITEmbeddings(config)
        self.latent_tokens = ALITLatentTokens(config)
        self.encoder = ALITEncoder(config)
        self.latent_projection = nn.Linear(config.hidden_size, config.codebook_dim)
        self.quantizer = ALITVectorQuantizer(config) if config.quantize else None
        self.decoder = ALITDecoder(config)
        self.post_init()

    @can_return_tuple
    def encode(
        self,
        pixel_values: torch.Tensor,
        num_tokens: int | None = None,
        threshold: float | torch.Tensor | None = None,
        criterion: str | Criterion = "l1",
        return_reconstruction: bool = False,
        interpolate_pos_encoding: bool = False,
        generator: torch.Generator | None = None,
    ) -> ALITEncoderOutput:
        """
        Gives each image a code: of a fixed length, or the smallest that meets a criterion (paper section 3).

        With `num_tokens` nothing is decoded on the way. With `threshold` every image leaves the batch at its own first
        rollout whose score is below it; the others go on as a smaller batch.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Pixels in [0, 1], at the trained size unless `interpolate_pos_encoding`.
            num_tokens (`int`, *optional*):
                Length of every code, a multiple of `tokens_per_rollout` up to `config.max_tokens`. Without it and
                without a threshold: the full length.
            threshold (`float` or `torch.Tensor` of shape `(B,)`, *optional*):
                An image is satisfied when its score is strictly below this. Excludes `num_tokens`.
            criterion (`str` or `Callable`, *optional*, defaults to `"l1"`):
                Token selection criterion: `"l1"`, `"l2"`, `"psnr"` (negative, in dB), `"lpips"`, or a callable
                `(reconstruction, original) -> (B,) scores`, lower is better.
            return_reconstruction (`bool`, *optional*, defaults to `False`):
                Whether to return the pictures that the codes decode to.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether other sizes and aspect ratios than the trained one are accepted (multiples of `patch_size`).
            generator (`torch.Generator`, *optional*):
                Source of randomness where the config turns dynamic halting on for a VQGAN base. All images of a batch
                share its draws, so that a code does not depend on batch mates.

        Returns:
            [`ALITEncoderOutput`]

        Raises:
            `ValueError`: for pixels of the wrong size or type, with NaN or clearly not in [0, 1], a length that does
            not exist, both length and threshold, an unknown criterion, or a criterion that does not give one score an
            image.
        """
        if num_tokens is not None and threshold is not None:
            raise ValueError(f"`num_tokens` is {num_tokens} and `threshold` is {threshold}: only one may be given.")
        num_rollouts = self._num_rollouts(num_tokens)
        criterion = resolve_criterion(criterion)
        self._check_pixels(pixel_values, interpolate_pos_encoding)
        if threshold is not None:
            threshold = self._check_threshold(threshold, pixel_values)
        self._check_range(pixel_values)

        recurrence = self._start(pixel_values, self.config.halting_threshold, generator)
        if threshold is not None:
            return self._encode_adaptively(recurrence, pixel_values, threshold, criterion, return_reconstruction)
        for _ in range(num_rollouts):
            recurrence = self._next_rollout(recurrence)
        self._quantize(recurrence)
        return ALITEncoderOutput(
            token_ids=recurrence.token_ids,
            num_tokens=self._lengths(recurrence),
            latents=recurrence.latents,
            grid_size=recurrence.grid_size,
            reconstruction=self._reconstruct(recurrence) if return_reconstruction else None,
        )

    def _encode_adaptively(
        self,
        recurrence: _Recurrence,
        pixel_values: torch.Tensor,
        threshold: torch.Tensor,
        criterion: Criterion,
        return_reconstruction: bool,
    ) -> ALITEncoderOutput:
        """The smallest code whose score is below `threshold` `(B,)`, image by image."""
        waiting = torch.arange(len(pixel_values), device=pixel_values.device)
        finished = []
        while len(waiting):
            recurrence = self._next_rollout(recurrence)
            reconstruction = self._reconstruct(recurrence)
            # A criterion may work in place.
            score = score_images(criterion, reconstruction.clone(), pixel_values[waiting])
            satisfied = score < threshold[waiting]
            leaving = satisfied | (recurrence.rollout == self.config.max_rollouts)
            if leaving.any():
                done = recurrence.rows(leaving)
                finished.append(
                    {
                        "row": waiting[leaving],
                        "token_ids": done.token_ids,
                        "num_tokens": self._lengths(done),
                        "latents": done.latents,
                        "score": score[leaving],
                        "satisfied": satisfied[leaving],
                        "reconstruction": reconstruction[leaving] if return_reconstruction else None,
                    }
                )
                recurrence, waiting = recurrence.rows(~leaving), waiting[~leaving]

        longest = int(finished[-1]["num_tokens"][0])
        order = torch.cat([part.pop("row") for part in finished]).argsort()
        padding = {"token_ids": PADDING_ID, "latents": 0}

        def gather(name: str) -> torch.Tensor | None:
            parts = [part[name] for part in finished]
            if parts[0] is None:
                return None
            if name in padding:
                parts = [_pad_tokens(part, longest, padding[name]) for part in parts]
            return torch.cat(parts)[order]

        return ALITEncoderOutput(
            **{name: gather(name) for name in finished[0]},
            grid_size=recurrence.grid_size,
        )

    @can_return_tuple
    def decode(
        self,
        token_ids: torch.LongTensor | None = None,
        *,
        latents: torch.Tensor | None = None,
        num_tokens: torch.LongTensor | int | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> ALITDecoderOutput:
        """
        Decodes codes to pictures. Codes of mixed length are decoded in groups of equal length.

        Args:
            token_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Ids in [0, codebook_size), padded with -1 behind an image's last token.
            latents (`torch.Tensor` of shape `(B, T, D)`, *optional*):
                Factorised latents instead of ids; what is behind an image's last token is ignored.
            num_tokens (`torch.LongTensor` of shape `(B,)` or `int`, *optional*):
                Length of each code, a multiple of `tokens_per_rollout`. Without it: up to the padding of `token_ids`,
                or all T `latents`, which must then have no padding.
            grid_size (`tuple[int, int]`, *optional*):
                Rows and columns of the picture's grid, as `encode` returned it. Defaults to the trained one.

        Returns:
            [`ALITDecoderOutput`]

        Raises:
            `ValueError`: where not exactly one of ids and latents is given, ids are out of range, lengths do not fit
            the ids (a code is not a prefix of a longer one) or the grid is not one.
        """
        if (token_ids is None) == (latents is None):
            given = "both" if latents is not None else "neither"
            raise ValueError(f"One of `token_ids` and `latents` must be given, got {given}.")
        grid_size = self._check_grid_size(grid_size)
        if token_ids is not None:
            token_ids, lengths = self._check_token_ids(token_ids, num_tokens)
            latents = self.quantizer.from_ids(token_ids.clamp(min=0))
        else:
            lengths = self._check_latents(latents, num_tokens)

        groups = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero(as_tuple=True)[0]
            decoder_output = self.decoder(latents[rows, :length], grid_size)
            expected = self.base_tokenizer.expected_latents(decoder_output, grid_size)
            groups.append((rows, self.base_tokenizer.decode(expected)))
        order = torch.cat([rows for rows, _ in groups]).argsort()
        return ALITDecoderOutput(pixel_values=torch.cat([pixels for _, pixels in groups])[order])

    def rollouts(
        self,
        pixel_values: torch.Tensor,
        num_tokens: int | None = None,
        return_reconstruction: bool = True,
        interpolate_pos_encoding: bool = False,
        halting_threshold: float | None = None,
        generator: torch.Generator | None = None,
        base_latents: torch.Tensor | None = None,
        return_decoder_output: bool = True,
    ) -> Iterator[ALITRolloutOutput]:
        """
        Runs rollout by rollout, each only when it is asked for (paper section 2): for looking at a picture at every
        length, and for the first stage of training, which has a loss on every rollout.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Pixels in [0, 1], at the trained size unless `interpolate_pos_encoding`.
            num_tokens (`int`, *optional*):
                Length of the last rollout's code, a multiple of `tokens_per_rollout`. Defaults to the full length.
            return_reconstruction (`bool`, *optional*, defaults to `True`):
                Whether each rollout's picture is decoded by the base tokenizer.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether other sizes than the trained one are accepted.
            halting_threshold (`float`, *optional*):
                Dynamic halting, for training. Defaults to the config's.
            generator (`torch.Generator`, *optional*):
                Source of randomness of dynamic halting, shared by all images of the batch. Without it each image
                has its own draws.
            base_latents (`torch.Tensor` of shape `(B, E, rows, columns)`, *optional*):
                What `base_tokenizer.encode(pixel_values)` gives, where that is known already: the base's encoder then
                does not run.
            return_decoder_output (`bool`, *optional*, defaults to `True`):
                Whether the distillation decoder runs where no reconstruction needs it; features do without.

        Yields:
            [`ALITRolloutOutput`]

        Raises:
            `ValueError`: as `encode`, at the call and not at the first rollout. Values are not looked at.
        """
        num_rollouts = self._num_rollouts(num_tokens)
        self._check_pixels(pixel_values, interpolate_pos_encoding)
        if halting_threshold is None:
            halting_threshold = self.config.halting_threshold
        elif not halting_threshold > 0:
            raise ValueError(f"`halting_threshold` is {halting_threshold}, it must be above 0 or None.")
        if base_latents is not None:
            self._check_base_latents(base_latents, pixel_values)
        return self._iterate_rollouts(
            pixel_values,
            num_rollouts,
            return_reconstruction,
            halting_threshold,
            generator,
            base_latents,
            return_decoder_output,
        )

    def _iterate_rollouts(
        self,
        pixel_values: torch.Tensor,
        num_rollouts: int,
        return_reconstruction: bool,
        halting_threshold: float | None,
        generator: torch.Generator | None,
        base_latents: torch.Tensor | None,
        return_decoder_output: bool,
    ) -> Iterator[ALITRolloutOutput]:
        recurrence = self._start(pixel_values, halting_threshold, generator, base_latents)
        for _ in range(num_rollouts):
            recurrence = self._next_rollout(recurrence)
            fields = self._rollout_fields(recurrence, return_reconstruction, return_decoder_output)
            yield ALITRolloutOutput(**fields)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        num_tokens: int | None = None,
        return_reconstruction: bool = True,
        interpolate_pos_encoding: bool = False,
        generator: torch.Generator | None = None,
        return_decoder_output: bool = True,
        **kwargs,
    ) -> ALITOutput:
        """
        Encodes to one length and decodes once, with a gradient from the pictures to every part of the model: the
        second stage of training, and feature extraction (paper section 2 and appendix A.4).

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Pixels in [0, 1], at the trained size unless `interpolate_pos_encoding`. NaN is not looked for.
            num_tokens (`int`, *optional*):
                Length of the code, a multiple of `tokens_per_rollout`; rollouts beyond it do not run. Defaults to the
                full length.
            return_reconstruction (`bool`, *optional*, defaults to `True`):
                Whether the base tokenizer decodes a picture.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether other sizes than the trained one are accepted.
            generator (`torch.Generator`, *optional*):
                Source of randomness where the config turns dynamic halting on, as for `encode`.
            return_decoder_output (`bool`, *optional*, defaults to `True`):
                Whether the distillation decoder runs where no reconstruction needs it; features do without.

        Returns:
            [`ALITOutput`]

        Raises:
            `ValueError`: as `encode`.
        """
        for name in ("output_attentions", "output_decoder_attentions"):
            if kwargs.get(name) and self.config._attn_implementation != "eager":
                raise ValueError(
                    f"`{name}` is set, but {self.config._attn_implementation} attention has no weights to return: "
                    'load the model with `attn_implementation="eager"` or call `set_attn_implementation("eager")`.'
                )
        num_rollouts = self._num_rollouts(num_tokens)
        self._check_pixels(pixel_values, interpolate_pos_encoding)
        recurrence = self._start(pixel_values, self.config.halting_threshold, generator)
        for _ in range(num_rollouts):
            recurrence = self._next_rollout(recurrence, **kwargs)
        fields = self._rollout_fields(recurrence, return_reconstruction, return_decoder_output, **kwargs)
        return ALITOutput(**fields)

    def _start(
        self,
        pixel_values: torch.Tensor,
        halting_threshold: float | None,
        generator: torch.Generator | None,
        base_latents: torch.Tensor | None = None,
    ) -> _Recurrence:
        """Image tokens, before the first rollout."""
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.weight.dtype)
        if base_latents is None:
            base_latents = self.base_tokenizer.encode(pixel_values)
        noise = None
        if halting_threshold is not None and self.config.base_type == "vqgan":
            # Drawn at once for all rollouts, so that what is halted does not depend on who leaves the batch when; and
            # the same for all images under a generator, so that it does not depend on an image's row either.
            rows = len(pixel_values) if generator is None else 1
            shape = (rows, self.config.max_rollouts - 1, base_latents[0, 0].numel())
            device = pixel_values.device if generator is None else generator.device
            noise = torch.rand(shape, generator=generator, device=device)
            noise = noise.to(pixel_values.device).expand(len(pixel_values), -1, -1)
        return _Recurrence(
            hidden_states=self.embeddings(pixel_values, base_latents),
            base_latents=base_latents,
            halting_threshold=halting_threshold,
            halting_noise=noise,
        )

    def _next_rollout(self, recurrence: _Recurrence, **kwargs) -> _Recurrence:
        """One pass of the distillation encoder over all tokens and L fresh ones."""
        hidden_states = recurrence.hidden_states
        if recurrence.rollout > 0 and recurrence.halting_threshold is not None:
            hidden_states = self._halt(recurrence)
        new_tokens = self.latent_tokens(recurrence.rollout)
        hidden_states = self.encoder(hidden_states, new_tokens, recurrence.rollout, **kwargs)
        return _Recurrence(
            hidden_states=hidden_states,
            base_latents=recurrence.base_latents,
            rollout=recurrence.rollout + 1,
            halting_threshold=recurrence.halting_threshold,
            halting_noise=recurrence.halting_noise,
        )

    def _halt(self, recurrence: _Recurrence) -> torch.Tensor:
        """Hidden states with the grid positions masked that the rollout before has explained (dynamic halting)."""
        self._decode_grid(recurrence)
        with torch.no_grad():
            explained = self._explained_positions(recurrence)
        hidden_states = recurrence.hidden_states
        first_latent = 1 + explained.shape[1]
        grid = torch.where(
            explained.unsqueeze(-1),
            self.embeddings.masked_positions(recurrence.grid_size).to(hidden_states.dtype),
            hidden_states[:, 1:first_latent],
        )
        return torch.cat([hidden_states[:, :1], grid, hidden_states[:, first_latent:]], dim=1)

    def _explained_positions(self, recurrence: _Recurrence) -> torch.Tensor:
        """Which grid positions need no more attention, bool `(B, N)`."""
        output, threshold = recurrence.decoder_output.float(), recurrence.halting_threshold
        if self.config.base_type == "kl":
            error = output - recurrence.base_latents.float().flatten(2).transpose(1, 2)
            return error.abs().mean(dim=-1) < threshold
        true_codes = self.base_tokenizer.codes(recurrence.base_latents)
        probability = output.softmax(dim=-1).gather(-1, true_codes.unsqueeze(-1)).squeeze(-1)
        return (probability >= threshold) & (recurrence.halting_noise[:, recurrence.rollout - 1] < probability)

    def _quantize(self, recurrence: _Recurrence) -> None:
        """Fills in the recurrence's factorised latents, ids and quantizer loss."""
        if recurrence.latents is not None:
            return
        first_latent = 1 + recurrence.base_latents[0, 0].numel()
        tokens = self.encoder.layernorm_post(recurrence.hidden_states[:, first_latent:])
        recurrence.latents = self.latent_projection(tokens)
        if self.quantizer is not None:
            recurrence.latents, recurrence.token_ids, recurrence.quantizer_loss = self.quantizer(recurrence.latents)

    def _decode_grid(self, recurrence: _Recurrence, **kwargs) -> None:
        """Fills in the recurrence's distillation decoder output."""
        if recurrence.decoder_output is None:
            self._quantize(recurrence)
            recurrence.decoder_output = self.decoder(recurrence.latents, recurrence.grid_size, **kwargs)

    def _reconstruct(self, recurrence: _Recurrence) -> torch.Tensor:
        """The recurrence's picture `(B, 3, H, W)`."""
        self._decode_grid(recurrence)
        latents = self.base_tokenizer.expected_latents(recurrence.decoder_output, recurrence.grid_size)
        return self.base_tokenizer.decode(latents)

    def _rollout_fields(
        self, recurrence: _Recurrence, return_reconstruction: bool, return_decoder_output: bool, **kwargs
    ) -> dict:
        """What `ALITRolloutOutput` says of a recurrence."""
        self._quantize(recurrence)
        if return_decoder_output or return_reconstruction:
            self._decode_grid(recurrence, **kwargs)
        return {
            "last_hidden_state": recurrence.hidden_states,
            "num_tokens": recurrence.rollout * self.config.tokens_per_rollout,
            "token_ids": recurrence.token_ids,
            "latents": recurrence.latents,
            "quantizer_loss": recurrence.quantizer_loss,
            "decoder_output": recurrence.decoder_output,
            "reconstruction": self._reconstruct(recurrence) if return_reconstruction else None,
            "grid_size": recurrence.grid_size,
        }

    def _lengths(self, recurrence: _Recurrence) -> torch.LongTensor:
        """Length of each image's code `(B,)`."""
        length = recurrence.rollout * self.config.tokens_per_rollout
        hidden_states = recurrence.hidden_states
        return torch.full((len(hidden_states),), length, dtype=torch.long, device=hidden_states.device)

    def _num_rollouts(self, num_tokens: int | None) -> int:
        """Rollouts that give a code of `num_tokens`."""
        step, longest = self.config.tokens_per_rollout, self.config.max_tokens
        if num_tokens is None:
            return self.config.max_rollouts
        if not isinstance(num_tokens, int) or isinstance(num_tokens, bool):
            raise ValueError(f"`num_tokens` is {num_tokens!r}, it must be an integer.")
        if num_tokens % step or not step <= num_tokens <= longest:
            raise ValueError(
                f"`num_tokens` is {num_tokens}, it must be a multiple of {step} between {step} and {longest}."
            )
        return num_tokens // step

    def _check_pixels(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> None:
        channels, patch = self.config.num_channels, self.config.patch_size
        if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
            kind = pixel_values.dtype if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(f"`pixel_values` is {kind}, it must be a floating point tensor with values in [0, 1].")
        shape = tuple(pixel_values.shape)
        if pixel_values.ndim != 4 or shape[0] < 1 or shape[1] != channels:
            raise ValueError(f"`pixel_values` has shape {shape}, it must be (batch, {channels}, height, width).")
        if interpolate_pos_encoding:
            if any(side < patch or side % patch for side in shape[2:]):
                raise ValueError(
                    f"`pixel_values` has shape {shape}, each side must be a positive multiple of {patch}."
                )
        elif shape[2:] != self.config.image_height_width:
            raise ValueError(
                f"`pixel_values` has shape {shape}, height and width must be {self.config.image_height_width} "
                "(or set `interpolate_pos_encoding=True`)."
            )

    def _check_range(self, pixel_values: torch.Tensor) -> None:
        """Together, so that a device is waited for once."""
        lowest, highest = torch.stack([pixel_values.amin(), pixel_values.amax()]).tolist()
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError("`pixel_values` has NaN or infinite values, all must be finite.")
        # Resizing may overshoot a little.
        if lowest < -0.1 or highest > 1.1:
            raise ValueError(
                f"`pixel_values` has values from {lowest:g} to {highest:g}, they must be in [0, 1], as "
                "ALITImageProcessor gives them: without a mean and standard deviation."
            )

    def _check_base_latents(self, base_latents: torch.Tensor, pixel_values: torch.Tensor) -> None:
        batch_size, _, height, width = pixel_values.shape
        patch = self.config.patch_size
        expected = (batch_size, self.config.base_embed_dim, height // patch, width // patch)
        if not isinstance(base_latents, torch.Tensor) or tuple(base_latents.shape) != expected:
            got = tuple(base_latents.shape) if isinstance(base_latents, torch.Tensor) else type(base_latents).__name__
            raise ValueError(f"`base_latents` is {got}, it must be a tensor of shape {expected}.")

    def _check_threshold(self, threshold: float | torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """The threshold of each image, float32 `(B,)`."""
        batch_size = len(pixel_values)
        try:
            threshold = torch.as_tensor(threshold, dtype=torch.float32, device=pixel_values.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`threshold` is {threshold!r}, it must be one number or one an image.") from error
        if threshold.shape not in ((), (batch_size,)):
            raise ValueError(
                f"`threshold` has shape {tuple(threshold.shape)}, it must be one number or one an image, "
                f"({batch_size},)."
            )
        if threshold.isnan().any():
            raise ValueError(f"`threshold` is {threshold.tolist()}, it must not be NaN.")
        return threshold.expand(batch_size)

    def _check_grid_size(self, grid_size: tuple[int, int] | None) -> tuple[int, int]:
        if grid_size is None:
            return self.config.grid_size
        sides = tuple(grid_size) if isinstance(grid_size, (list, tuple)) else ()
        if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
            raise ValueError(f"`grid_size` is {grid_size!r}, it must be (rows, columns), integers of at least 1.")
        return sides

    def _check_token_ids(
        self, token_ids: torch.LongTensor, num_tokens: torch.LongTensor | int | None
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Ids `(B, T)` of whatever integer type as int64, and their lengths `(B,)`."""
        if self.quantizer is None:
            raise ValueError("`token_ids` were given, but this model's latents are continuous: give `latents`.")
        if not isinstance(token_ids, torch.Tensor) or token_ids.ndim != 2 or not _is_integer(token_ids):
            raise ValueError(
                f"`token_ids` is {_briefly(token_ids)}, it must be an integer tensor of shape (batch, tokens)."
            )
        token_ids = token_ids.long()
        filled = token_ids != PADDING_ID
        found = filled.sum(dim=1)
        inside = torch.arange(token_ids.shape[1], device=token_ids.device) < found.unsqueeze(1)
        if not torch.equal(filled, inside):
            raise ValueError(f"`token_ids` has {PADDING_ID} before an id, it may only be behind the last one.")
        lengths = self._check_lengths(found if num_tokens is None else num_tokens, token_ids)
        if not torch.equal(lengths, found):
            raise ValueError(
                f"`num_tokens` is {lengths.tolist()}, but `token_ids` has {found.tolist()} ids that are not "
                f"{PADDING_ID}: a code is not a prefix of a longer one, ids and lengths must belong together."
            )
        used = token_ids[inside]
        if used.min() < 0 or used.max() >= self.config.codebook_size:
            raise ValueError(
                f"`token_ids` has values from {int(used.min())} to {int(used.max())}, they must be in "
                f"[0, {self.config.codebook_size}) before the padding of {PADDING_ID}."
            )
        return token_ids, lengths

    def _check_latents(self, latents: torch.Tensor, num_tokens: torch.LongTensor | int | None) -> torch.LongTensor:
        """Lengths `(B,)` of codes given as factorised latents."""
        dim = self.config.codebook_dim
        if not isinstance(latents, torch.Tensor) or latents.ndim != 3 or latents.shape[-1] != dim:
            got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise ValueError(f"`latents` is {got}, it must be a tensor of shape (batch, tokens, {dim}).")
        if not latents.is_floating_point():
            raise ValueError(f"`latents` is {latents.dtype}, it must be a floating point tensor.")
        if num_tokens is None and latents.shape[1] and (latents[:, -1] == 0).all(dim=-1).any():
            raise ValueError(
                "`latents` has zeros behind an image's last token, as `encode` pads them: give `num_tokens` with them."
            )
        lengths = self._check_lengths(latents.shape[1] if num_tokens is None else num_tokens, latents)
        inside = torch.arange(latents.shape[1], device=latents.device) < lengths.unsqueeze(1)
        if not torch.isfinite(latents[inside]).all():
            raise ValueError("`latents` has NaN or infinite values, all must be finite.")
        return lengths

    def _check_lengths(self, num_tokens: torch.LongTensor | int, codes: torch.Tensor) -> torch.LongTensor:
        """Lengths `(B,)` that exist and fit `codes` `(B, T, ...)`."""
        batch_size, available = codes.shape[:2]
        step, longest = self.config.tokens_per_rollout, min(self.config.max_tokens, available)
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


def _pad_tokens(tokens: torch.Tensor, length: int, value: int) -> torch.Tensor:
    """`(B, T)` or `(B, T, D)` with `value` appended up to `length` tokens."""
    padding = tokens.new_full((len(tokens), length - tokens.shape[1], *tokens.shape[2:]), value)
    return torch.cat([tokens, padding], dim=1)


# save_pretrained then copies this file and those it imports, so that a pushed model runs where alit_hf is missing.
ALITModel.register_for_auto_class("AutoModel")

__all__ = [
    "ALITDecoderOutput",
    "ALITEncoderOutput",
    "ALITModel",
    "ALITOutput",
    "ALITPreTrainedModel",
    "ALITRolloutOutput",
]
