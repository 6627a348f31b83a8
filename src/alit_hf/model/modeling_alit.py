"""ALIT: adaptive-length image tokenization by recurrent allocation (arXiv 2411.02393)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import is_tracing
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .base_tokenizer import ALITBaseTokenizer
from .checks import (
    check_attention_mask,
    check_attention_weights,
    check_base_latents,
    check_calibrated_size,
    check_codes,
    check_confidence,
    check_grid_size,
    check_halting_threshold,
    check_num_tokens,
    check_pixels,
    check_range,
    check_threshold,
    unpack_code,
)
from .configuration_alit import ALITConfig
from .layers import ALITEmbeddingTables, ALITLayer, apply_per_image, image_by_image, per_image
from .length_prediction import ALITLengthPredictor, bound_margin, from_logs, to_logs
from .outputs import (
    ALITDecoderOutput,
    ALITEncoderOutput,
    ALITOutput,
    ALITRolloutOutput,
    GridOutput,
    OffGridTokens,
)
from .pretrained import ALITPreTrainedModel
from .quantizer import ALITVectorQuantizer
from .selection import Criterion, is_higher_better, meets_threshold, resolve_criterion, score_images
from .sequences import PADDING_ID


class ALITPositionEmbeddings(ALITEmbeddingTables):
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

    def forward(self, pixel_values: torch.Tensor, base_latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): pixels in [0, 1].
            base_latents (`torch.Tensor` of shape `(B, E, rows, columns)`): from `ALITBaseTokenizer.encode`.

        Returns:
            class token and image tokens with their positions, `(B, 1 + rows * columns, W)`, and what stands for image
            tokens that are masked, `(1, rows * columns, W)`.
        """
        tokens = image_by_image(self._unit_tokens, pixel_values, base_latents)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        grid_size = base_latents.shape[-2:]
        return tokens + self.positions(grid_size), self.masked_positions(grid_size)

    def _unit_tokens(self, pixel_values: torch.Tensor, base_latents: torch.Tensor) -> torch.Tensor:
        grid = torch.cat([base_latents, self.patch_embeddings(pixel_values)], dim=1)
        return F.normalize(grid.flatten(2).transpose(1, 2), dim=-1)


class ALITLatentTokens(ALITEmbeddingTables):
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
        new_tokens = new_tokens.expand(hidden_states.shape[0], -1, -1)
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

    @per_image
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

    def forward(
        self,
        latents: torch.Tensor,
        grid_size: tuple[int, int],
        positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            latents (`torch.Tensor` of shape `(B, T, D)`): factorised latents, T a multiple of `tokens_per_rollout`.
            grid_size (`tuple[int, int]`): rows and columns of the grid to rebuild.
            positions (`torch.LongTensor` of shape `(T,)`, *optional*): places of these latent tokens in their code,
                where training leaves some of them out. Defaults to the first T.

        Returns:
            logits over base codes or base latents, `(B, rows * columns, base_output_dim)`.
        """
        # The dtype of an embedding, as a quantised layer's weights are integers.
        tokens = apply_per_image(self.latent_projection, latents.to(self.latent_position_embeddings.dtype))
        first = slice(tokens.shape[1])
        tokens = tokens + self.latent_position_embeddings[first if positions is None else positions]
        class_token = self.cls_token + self.positions(grid_size)[:, :1]
        grid = torch.cat([class_token, self.masked_positions(grid_size)], dim=1).expand(tokens.shape[0], -1, -1)
        hidden_states = self.layernorm_pre(torch.cat([grid, tokens], dim=1))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm_post(hidden_states[:, 1 : grid.shape[1]])
        return self.head(hidden_states)


@dataclass(frozen=True)
class _Recurrence:
    """What one rollout hands to the next."""

    hidden_states: torch.Tensor  # (B, 1 + N + T, W), (B, 1 + N, W) before the first rollout
    base_latents: torch.Tensor  # (B, E, rows, columns)
    rollout: int  # rollouts that have run
    halting_threshold: float | None
    masked_positions: torch.Tensor | None  # (B, N, W), what halted positions become
    halting_noise: torch.Tensor | None  # (B, K - 1, N) in [0, 1)

    @property
    def grid_size(self) -> tuple[int, int]:
        return tuple(self.base_latents.shape[-2:])

    @property
    def num_tokens(self) -> int:
        return self.hidden_states.shape[1] - 1 - self.base_latents[0, 0].numel()

    def lengths(self) -> torch.LongTensor:
        """Length of each image's code `(B,)`."""
        hidden_states = self.hidden_states
        return hidden_states.new_full(hidden_states.shape[:1], self.num_tokens, dtype=torch.long)

    def rows(self, kept: torch.Tensor) -> "_Recurrence":
        """The same recurrence for the images in `kept` (bool, `(B,)`)."""
        tensors = {name: value[kept] for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)


def _count_hidden_states(forward: Callable) -> Callable:
    """
    Resolves negative indices in `output_hidden_states` by the layers that run, those of `num_tokens`. The library
    would count those of all rollouts.
    """

    @wraps(forward)
    def wrapper(self, pixel_values: torch.Tensor, num_tokens: int | None = None, *args, **kwargs):
        selected = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        if selected is not None and not isinstance(selected, bool):
            num_states = 1 + check_num_tokens(self.config, num_tokens) * self.config.num_encoder_layers
            indices = [selected] if isinstance(selected, int) else selected
            kwargs["output_hidden_states"] = [index + num_states if index < 0 else index for index in indices]
        return forward(self, pixel_values, num_tokens, *args, **kwargs)

    return wrapper


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
    ...     picture = model.decode(code).pixel_values
    ```"""

    # A classifier's head.
    _keys_to_ignore_on_load_unexpected = [r"^layernorm\.", r"^classifier\."]

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
        self.length_predictor = None if config.length_criterion is None else ALITLengthPredictor(config)
        self.post_init()

    def set_length_criterion(self, criterion: str | None) -> None:
        """
        Gives the model a new length predictor, which `encode(confidence=…)` needs; the stage `lengths` of training
        trains and calibrates it. Takes the predictor away if `criterion` is `None`.

        Args:
            criterion (`str`, *optional*): name of the token selection criterion to predict.
        """
        self.config.length_shortfalls, self.config.length_criterion = None, criterion
        self.length_predictor = None
        if criterion is not None:
            self.length_predictor = ALITLengthPredictor(self.config).to(self.device, self.dtype)
            self.length_predictor.apply(self._init_weights)

    def freeze_for_features(self) -> None:
        """
        Turns off the gradients of all that `last_hidden_state` does not come from: decoders, codebooks, and the mask
        token where there is no dynamic halting. With `forward(return_reconstruction=False,
        return_decoder_output=False)` these never get a gradient, for which distributed training would wait.
        """
        base = self.base_tokenizer.model
        unused = [self.encoder.layernorm_post, self.latent_projection, self.quantizer, self.decoder]
        unused.append(self.length_predictor)
        unused += [base.decoder, base.post_quant_conv, getattr(base, "quantize", None)]
        if self.config.max_rollouts == 1:
            unused.append(self.encoder.layernorm_rollout)
        for module in unused:
            if module is not None:
                module.requires_grad_(False)
        if self.config.halting_threshold is None:
            self.embeddings.mask_token.requires_grad_(False)

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
        confidence: float | None = None,
    ) -> ALITEncoderOutput:
        """
        Gives each image a code: of a fixed length, or the smallest that meets a criterion (paper section 3).

        With `num_tokens` nothing is decoded on the way. With `threshold` every image leaves the batch at its own first
        rollout whose score meets it; the others go on as a smaller batch.

        With `threshold` and `confidence` nothing is decoded on the way, either: after the first rollout the length
        predictor bounds the score at every length, and each image gets the smallest length whose bound meets the
        threshold. For images like those of the calibration, at least the share `confidence` of codes then has a score
        that meets the threshold, or the full length.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Pixels in [0, 1], at the trained size unless `interpolate_pos_encoding`.
            num_tokens (`int`, *optional*):
                Length of every code, a multiple of `tokens_per_rollout` up to `config.max_tokens`. Without it and
                without a threshold: the full length.
            threshold (`float` or `torch.Tensor` of shape `(B,)`, *optional*):
                An image is satisfied when its score is strictly below this (above, where higher is better). Excludes
                `num_tokens`.
            criterion (`str` or `Callable`, *optional*, defaults to `"l1"`):
                Token selection criterion: `"l1"`, `"l2"`, `"psnr"` (in dB, higher is better), `"lpips"`, or a callable
                `(reconstruction, original) -> (B,) scores`, lower is better unless it has an attribute
                `higher_is_better` that is true.
            return_reconstruction (`bool`, *optional*, defaults to `False`):
                Whether to return the pictures that the codes decode to.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether other sizes and aspect ratios than the trained one are accepted (multiples of `patch_size`).
            generator (`torch.Generator`, *optional*):
                Source of randomness where the config turns dynamic halting on for a VQGAN base. All images of a batch
                share its draws, so that a code does not depend on batch mates.
            confidence (`float`, *optional*):
                Chooses lengths by the length predictor, with this probability of meeting the threshold, in (0, 1). The
                `criterion` must be the name that the predictor was trained for, `config.length_criterion`, and images
                have the trained size.

        Returns:
            [`ALITEncoderOutput`]

        Raises:
            `ValueError`: for pixels of the wrong size or type, with NaN or clearly not in [0, 1], a length that does
            not exist, both length and threshold, a threshold that is NaN or makes no sense for the criterion (negative
            dB), an unknown criterion, a criterion that does not give one score an image, or a confidence that the
            model's length predictor cannot promise.
        """
        num_rollouts = check_num_tokens(self.config, num_tokens, threshold)
        check_pixels(self.config, pixel_values, interpolate_pos_encoding)
        check_confidence(self.config, confidence, threshold, criterion)
        if confidence is not None:
            check_calibrated_size(self.config, pixel_values)
        criterion = resolve_criterion(criterion)
        threshold = check_threshold(threshold, criterion, pixel_values.shape[0], pixel_values.device)
        check_range(pixel_values, self.training)

        recurrence = self._start(pixel_values, self.config.halting_threshold, generator)
        if confidence is not None:
            return self._encode_by_prediction(recurrence, threshold, criterion, confidence, return_reconstruction)
        if threshold is not None:
            return self._encode_adaptively(recurrence, pixel_values, threshold, criterion, return_reconstruction)
        recurrence = self._run(recurrence, num_rollouts)
        output = self._read(recurrence, return_reconstruction, return_decoder_output=False)
        return ALITEncoderOutput(
            token_ids=output.token_ids,
            num_tokens=recurrence.lengths(),
            latents=output.latents,
            base_latents=output.base_latents,
            reconstruction=output.reconstruction,
        )

    def _encode_adaptively(
        self,
        recurrence: _Recurrence,
        pixel_values: torch.Tensor,
        threshold: torch.Tensor,
        criterion: Criterion,
        return_reconstruction: bool,
    ) -> ALITEncoderOutput:
        """The smallest code whose score meets `threshold` `(B,)`, image by image."""
        base_latents = recurrence.base_latents
        waiting = torch.arange(len(pixel_values), device=pixel_values.device)
        finished = []
        while len(waiting):
            recurrence = self._next_rollout(recurrence)
            output = self._read(recurrence)
            # A criterion may work in place.
            score = score_images(criterion, output.reconstruction.clone(), pixel_values[waiting])
            satisfied = meets_threshold(criterion, score, threshold[waiting])
            leaving = satisfied | (recurrence.rollout == self.config.max_rollouts)
            if leaving.any():
                finished.append(
                    {
                        "row": waiting[leaving],
                        "token_ids": None if output.token_ids is None else output.token_ids[leaving],
                        "num_tokens": recurrence.lengths()[leaving],
                        "latents": output.latents[leaving],
                        "score": score[leaving],
                        "score_is_bound": torch.zeros_like(satisfied[leaving]),
                        "satisfied": satisfied[leaving],
                        "reconstruction": output.reconstruction[leaving] if return_reconstruction else None,
                    }
                )
            waiting = waiting[~leaving]
            if len(waiting):
                recurrence = self._halt(recurrence.rows(~leaving), output.decoder_output[~leaving])
        return _in_order(finished, base_latents)

    def _encode_by_prediction(
        self,
        recurrence: _Recurrence,
        threshold: torch.Tensor,
        criterion: Criterion,
        confidence: float,
        return_reconstruction: bool,
    ) -> ALITEncoderOutput:
        """The smallest code whose bound meets `threshold` `(B,)`, image by image, chosen after the first rollout."""
        base_latents = recurrence.base_latents
        recurrence = self._next_rollout(recurrence)
        higher_is_better = is_higher_better(criterion)
        predicted = image_by_image(self.length_predictor.predict, recurrence.hidden_states)
        bounds = predicted + bound_margin(self.config.length_shortfalls, confidence)
        meets = bounds < to_logs(threshold, higher_is_better).unsqueeze(1)
        # Where none does: the full length.
        chosen = torch.where(meets.any(dim=1), meets.int().argmax(dim=1), self.config.max_rollouts - 1).unsqueeze(1)
        score = from_logs(bounds.gather(1, chosen), higher_is_better).squeeze(1)
        satisfied, num_rollouts = meets.gather(1, chosen).squeeze(1), 1 + chosen.squeeze(1)

        waiting = torch.arange(len(threshold), device=threshold.device)
        finished = []
        while True:
            leaving = num_rollouts[waiting] == recurrence.rollout
            if leaving.any():
                rows, those = waiting[leaving], recurrence.rows(leaving)
                output = self._read(those, return_reconstruction, return_decoder_output=False)
                finished.append(
                    {
                        "row": rows,
                        "token_ids": output.token_ids,
                        "num_tokens": those.lengths(),
                        "latents": output.latents,
                        "score": score[rows],
                        "score_is_bound": torch.ones_like(satisfied[rows]),
                        "satisfied": satisfied[rows],
                        "reconstruction": output.reconstruction,
                    }
                )
            waiting = waiting[~leaving]
            if not len(waiting):
                return _in_order(finished, base_latents)
            recurrence = self._next_rollout(self._halt(recurrence.rows(~leaving)))

    @can_return_tuple
    def decode(
        self,
        token_ids: torch.LongTensor | ALITEncoderOutput | ALITRolloutOutput | None = None,
        *,
        latents: torch.Tensor | None = None,
        num_tokens: torch.LongTensor | int | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> ALITDecoderOutput:
        """
        Decodes codes to pictures. Codes of mixed length are decoded in groups of equal length.

        Args:
            token_ids (`ALITEncoderOutput`, `ALITRolloutOutput` or `torch.LongTensor` of shape `(B, T)`, *optional*):
                What `encode` gives, or a rollout, with all that it takes to decode it. Or ids alone, in
                [0, codebook_size) and padded with -1 behind an image's last token.
            latents (`torch.Tensor` of shape `(B, T, D)`, *optional*):
                Factorised latents instead of ids; what is behind an image's last token is ignored.
            num_tokens (`torch.LongTensor` of shape `(B,)` or `int`, *optional*):
                Length of each code, a multiple of `tokens_per_rollout`. Without it: up to the padding of `token_ids`,
                or all T `latents`, which must then have no padding.
            grid_size (`tuple[int, int]`, *optional*):
                Rows and columns of the picture's grid, as `encode` returned it. Defaults to the trained one; ids and
                latents that `encode` gave for another grid are refused without it.

        Under `torch.compile` and `torch.export` all codes have one length: `num_tokens` as an `int`, or all T.

        Returns:
            [`ALITDecoderOutput`]

        Raises:
            `ValueError`: where not exactly one of ids and latents is given, ids are out of range, lengths do not fit
            the ids (a code is not a prefix of a longer one), or the grid is not one or missing.
        """
        if isinstance(token_ids, GridOutput):
            token_ids, latents, num_tokens, grid_size = unpack_code(token_ids, latents, num_tokens, grid_size)
        grid_size = check_grid_size(self.config, grid_size, latents if token_ids is None else token_ids)
        token_ids, latents = (
            codes.as_subclass(torch.Tensor) if isinstance(codes, OffGridTokens) else codes
            for codes in (token_ids, latents)
        )
        token_ids, lengths = check_codes(self.config, token_ids, latents, num_tokens)
        if token_ids is not None:
            latents = self.quantizer.from_ids(token_ids.clamp(min=0))
        if isinstance(lengths, int):
            decoder_output = self.decoder(latents[:, :lengths], grid_size)
            return ALITDecoderOutput(pixel_values=self._picture(decoder_output, grid_size))

        groups = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero(as_tuple=True)[0]
            groups.append((rows, self._picture(self.decoder(latents[rows, :length], grid_size), grid_size)))
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
            `ValueError`: as `encode`, at the call and not at the first rollout.
        """
        num_rollouts = check_num_tokens(self.config, num_tokens)
        check_pixels(self.config, pixel_values, interpolate_pos_encoding)
        check_halting_threshold(halting_threshold)
        check_base_latents(self.config, base_latents, pixel_values)
        check_range(pixel_values, self.training)

        def iterate() -> Iterator[ALITRolloutOutput]:
            threshold = self.config.halting_threshold if halting_threshold is None else halting_threshold
            recurrence = self._start(pixel_values, threshold, generator, base_latents)
            for rollout in range(num_rollouts):
                recurrence = self._next_rollout(recurrence)
                output = self._read(recurrence, return_reconstruction, return_decoder_output)
                yield output
                if rollout + 1 < num_rollouts:
                    recurrence = self._halt(recurrence, output.decoder_output)

        return iterate()

    @_count_hidden_states
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
        base_latents: torch.Tensor | None = None,
        **kwargs,
    ) -> ALITOutput:
        """
        Encodes to one length and decodes once, with a gradient from the pictures to every part of the model: the
        second stage of training, and feature extraction (paper section 2 and appendix A.4).

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Pixels in [0, 1], at the trained size unless `interpolate_pos_encoding`.
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
            base_latents (`torch.Tensor` of shape `(B, E, rows, columns)`, *optional*):
                As in `rollouts`: spares the base's encoder.

        Returns:
            [`ALITOutput`]

        Raises:
            `ValueError`: as `encode`.
        """
        # Tools pass it to every model.
        check_attention_mask(kwargs.pop("attention_mask", None))
        check_attention_weights(self.config, **kwargs)
        num_rollouts = check_num_tokens(self.config, num_tokens)
        check_pixels(self.config, pixel_values, interpolate_pos_encoding)
        check_base_latents(self.config, base_latents, pixel_values)
        check_range(pixel_values, self.training)
        recurrence = self._start(pixel_values, self.config.halting_threshold, generator, base_latents)
        recurrence = self._run(recurrence, num_rollouts, **kwargs)
        return ALITOutput(**self._read(recurrence, return_reconstruction, return_decoder_output, **kwargs))

    def _start(
        self,
        pixel_values: torch.Tensor,
        halting_threshold: float | None,
        generator: torch.Generator | None,
        base_latents: torch.Tensor | None = None,
    ) -> _Recurrence:
        """Image tokens, before the first rollout."""
        pixel_values = pixel_values.to(self.embeddings.cls_token.dtype)
        if base_latents is None:
            base_latents = self.base_tokenizer.encode(pixel_values)
        hidden_states, masked_positions = self.embeddings(pixel_values, base_latents)
        masked_positions = (
            None if halting_threshold is None else masked_positions.expand(hidden_states.shape[0], -1, -1)
        )
        noise = None
        if halting_threshold is not None and self.config.base_type == "vqgan":
            # Drawn at once for all rollouts, so that what is halted does not depend on who leaves the batch when; and
            # the same for all images under a generator, so that it does not depend on an image's row either.
            rows = pixel_values.shape[0] if generator is None else 1
            shape = (rows, self.config.max_rollouts - 1, base_latents[0, 0].numel())
            device = pixel_values.device if generator is None else generator.device
            noise = torch.rand(shape, generator=generator, device=device)
            noise = noise.to(pixel_values.device).expand(pixel_values.shape[0], -1, -1)
        return _Recurrence(hidden_states, base_latents, 0, halting_threshold, masked_positions, noise)

    def _next_rollout(self, recurrence: _Recurrence, **kwargs) -> _Recurrence:
        """One pass of the distillation encoder over all tokens and L fresh ones."""
        new_tokens = self.latent_tokens(recurrence.rollout)
        hidden_states = self.encoder(recurrence.hidden_states, new_tokens, recurrence.rollout, **kwargs)
        return replace(recurrence, hidden_states=hidden_states, rollout=recurrence.rollout + 1)

    def _run(self, recurrence: _Recurrence, num_rollouts: int, **kwargs) -> _Recurrence:
        """Rollouts of which only the last one's code is needed."""
        for _ in range(num_rollouts - 1):
            recurrence = self._halt(self._next_rollout(recurrence, **kwargs))
        return self._next_rollout(recurrence, **kwargs)

    def _read(
        self,
        recurrence: _Recurrence,
        return_reconstruction: bool = True,
        return_decoder_output: bool = True,
        **kwargs,
    ) -> ALITRolloutOutput:
        """The code after a rollout, and what it decodes to."""
        tokens = self.encoder.layernorm_post(recurrence.hidden_states[:, -recurrence.num_tokens :])
        latents, token_ids, quantizer_loss = apply_per_image(self.latent_projection, tokens), None, None
        if self.quantizer is not None:
            latents, token_ids, quantizer_loss = self.quantizer(latents)
        decoder_output = reconstruction = None
        if return_decoder_output or return_reconstruction:
            decoder_output = self.decoder(latents, recurrence.grid_size, **kwargs)
        if return_reconstruction:
            reconstruction = self._picture(decoder_output, recurrence.grid_size)
        if recurrence.grid_size != self.config.grid_size and not is_tracing():
            latents = latents.as_subclass(OffGridTokens)
            token_ids = None if token_ids is None else token_ids.as_subclass(OffGridTokens)
        return ALITRolloutOutput(
            last_hidden_state=recurrence.hidden_states,
            token_ids=token_ids,
            latents=latents,
            quantizer_loss=quantizer_loss,
            decoder_output=decoder_output,
            reconstruction=reconstruction,
            base_latents=recurrence.base_latents,
        )

    def _picture(self, decoder_output: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Pixels `(B, 3, H, W)` of the distillation decoder's output."""
        return self.base_tokenizer.decode(self.base_tokenizer.expected_latents(decoder_output, grid_size))

    def _halt(self, recurrence: _Recurrence, decoder_output: torch.Tensor | None = None) -> _Recurrence:
        """Masks the grid positions that a rollout has explained, before the next one (dynamic halting)."""
        if recurrence.halting_threshold is None:
            return recurrence
        with torch.no_grad():
            if decoder_output is None:
                decoder_output = self._read(recurrence, return_reconstruction=False).decoder_output
            explained = self._explained_positions(recurrence, decoder_output.float())
        hidden_states = recurrence.hidden_states
        first_latent = 1 + explained.shape[1]
        grid = torch.where(
            explained.unsqueeze(-1),
            recurrence.masked_positions.to(hidden_states.dtype),
            hidden_states[:, 1:first_latent],
        )
        hidden_states = torch.cat([hidden_states[:, :1], grid, hidden_states[:, first_latent:]], dim=1)
        return replace(recurrence, hidden_states=hidden_states)

    def _explained_positions(self, recurrence: _Recurrence, decoder_output: torch.Tensor) -> torch.Tensor:
        """Which grid positions need no more attention, bool `(B, N)`."""
        threshold = recurrence.halting_threshold
        if self.config.base_type == "kl":
            error = decoder_output - recurrence.base_latents.float().flatten(2).transpose(1, 2)
            return error.abs().mean(dim=-1) < threshold
        true_codes = self.base_tokenizer.codes(recurrence.base_latents)
        probability = decoder_output.softmax(dim=-1).gather(-1, true_codes.unsqueeze(-1)).squeeze(-1)
        return (probability >= threshold) & (recurrence.halting_noise[:, recurrence.rollout - 1] < probability)


def _in_order(finished: list[dict[str, torch.Tensor | None]], base_latents: torch.Tensor) -> ALITEncoderOutput:
    """The codes of images that left the batch in groups, shortest codes first, in the order of their `"row"`."""
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

    return ALITEncoderOutput(**{name: gather(name) for name in finished[0]}, base_latents=base_latents)


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
