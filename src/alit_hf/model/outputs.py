"""
What the model's methods return: tensors with one row an image, which pipelines, `Trainer.predict` and `DataParallel`
slice and gather. Numbers that are the same for the whole batch are properties.
"""

from dataclasses import dataclass

import torch
from transformers import BatchEncoding
from transformers.utils import ModelOutput

from .sequences import PADDING_ID, SequenceVocabulary


class OffGridTokens(torch.Tensor):
    """
    Ids or latents of a grid that is not the trained one, which they alone do not tell. Whatever is made of them (rows,
    copies on another device) has this type, too, by which `decode` knows that it must be given the grid.
    """


torch.serialization.add_safe_globals([OffGridTokens])


class GridOutput(ModelOutput):
    """An output with `base_latents`, whose shape tells the grid."""

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return tuple(self.base_latents.shape[-2:])


@dataclass
class ALITEncoderOutput(GridOutput):
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
        base_latents (`torch.FloatTensor` of shape `(B, E, rows, columns)`):
            The base tokenizer's latents of the images. `grid_size` gives (rows, columns), which `decode` rebuilds.
        score (`torch.FloatTensor` of shape `(B,)`, only with a `threshold`):
            The criterion's value at the chosen length, in its own unit (PSNR in dB).
        score_is_bound (`torch.BoolTensor` of shape `(B,)`, only with a `threshold`):
            Whether the score is not the value itself, but what it is at worst with the `confidence` asked for.
        satisfied (`torch.BoolTensor` of shape `(B,)`, only with a `threshold`):
            Whether the score meets the threshold: is below it, or above it where higher is better. Where not, the
            image has the full length.
        reconstruction (`torch.FloatTensor` of shape `(B, 3, H, W)`, only with `return_reconstruction`):
            Pictures decoded from the codes, nominally in [0, 1], not clamped.
    """

    token_ids: torch.LongTensor | None = None
    num_tokens: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    base_latents: torch.FloatTensor | None = None
    score: torch.FloatTensor | None = None
    score_is_bound: torch.BoolTensor | None = None
    satisfied: torch.BoolTensor | None = None
    reconstruction: torch.FloatTensor | None = None

    def to_sequence(self, vocabulary: SequenceVocabulary, padding_side: str = "right") -> BatchEncoding:
        """
        The codes as a batch for a causal language model; `vocabulary.from_sequence(batch.input_ids)` gives `token_ids`
        back.

        Args:
            vocabulary ([`SequenceVocabulary`]): of the model that made the codes.
            padding_side (`str`, *optional*, defaults to `"right"`): where shorter sequences are padded, or `"left"`.

        Returns:
            `BatchEncoding`: `input_ids`, `attention_mask` and `labels` on the device of the codes, see
            [`SequenceVocabulary.pad`].

        Raises:
            `ValueError`: for continuous latents, another side, and, naming row and position, for ids or lengths that
                the vocabulary does not have.
        """
        if self.token_ids is None:
            raise ValueError("`token_ids` is None: continuous latents have no ids that a sequence could be made of.")
        sequences = []
        for row, (ids, length) in enumerate(zip(self.token_ids.tolist(), self.num_tokens.tolist(), strict=True)):
            if set(ids[length:]) - {PADDING_ID}:
                raise ValueError(
                    f"Row {row}: `num_tokens` is {length}, but `token_ids` goes on behind it: a code is not a prefix "
                    "of a longer one, ids and lengths must belong together."
                )
            try:
                sequences.append(vocabulary.to_sequence(ids[:length]))
            except ValueError as error:
                raise ValueError(f"Row {row}: {error}") from error
        batch = vocabulary.pad(sequences, padding_side).to(self.token_ids.device)
        # Sequences do not tell their grid, either.
        batch["input_ids"] = batch["input_ids"].as_subclass(type(self.token_ids))
        return batch


@dataclass
class ALITDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`):
            Decoded pictures, nominally in [0, 1], not clamped.
    """

    pixel_values: torch.FloatTensor | None = None


@dataclass
class ALITRolloutOutput(GridOutput):
    """
    The state after one rollout, for all images of the batch.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, 1 + N + T, W)`):
            Output of the distillation encoder: class token, N grid positions in raster order, T latent tokens.
        token_ids (`torch.LongTensor` of shape `(B, T)`):
            Ids in [0, codebook_size); `None` where latents are continuous.
        latents (`torch.FloatTensor` of shape `(B, T, D)`):
            Factorised latents, unit-norm codes with a straight-through gradient where quantised.
        quantizer_loss (`torch.FloatTensor` of shape `(B,)`):
            Codebook plus commitment loss of each image, whose mean training adds to its loss; `None` where latents are
            continuous.
        decoder_output (`torch.FloatTensor` of shape `(B, N, base_output_dim)`, unless `return_decoder_output` is off):
            Logits over base codes (VQGAN base) or base latents (KL base) at each grid position.
        reconstruction (`torch.FloatTensor` of shape `(B, 3, H, W)`, only with `return_reconstruction`):
            The picture at this length, nominally in [0, 1], not clamped.
        base_latents (`torch.FloatTensor` of shape `(B, E, rows, columns)`):
            The base tokenizer's latents of the images. `grid_size` gives (rows, columns).
    """

    last_hidden_state: torch.FloatTensor | None = None
    token_ids: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantizer_loss: torch.FloatTensor | None = None
    decoder_output: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    base_latents: torch.FloatTensor | None = None

    @property
    def num_tokens(self) -> int:
        """T, the rollout's number times `tokens_per_rollout`."""
        return self.latents.shape[1]


@dataclass
class ALITOutput(ALITRolloutOutput):
    """
    The state after the last rollout that ran (see `ALITRolloutOutput`), with recorded intermediate outputs.

    Args:
        hidden_states (`tuple[torch.FloatTensor]`, with `output_hidden_states=True`):
            Input of the first encoder layer, then the output of every encoder layer of every rollout, rollout by
            rollout, each `(B, 1 + N + T_k, W)`; the last one is `last_hidden_state`. With indices in place of `True`
            (`output_hidden_states=-1`) the others are `None`.
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


__all__ = ["ALITDecoderOutput", "ALITEncoderOutput", "ALITOutput", "ALITRolloutOutput", "GridOutput", "OffGridTokens"]
