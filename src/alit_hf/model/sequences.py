"""
Codes as sequences for language models: which ids a vocabulary has for them, and what may follow what.

A sequence is a begin token, a length token, the ids of the code and an end token. The length comes first because a
code is not a prefix of a longer one: without it, the ids behind it would mean nothing.
"""

import operator
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, LogitsProcessor

from .configuration_alit import ALITConfig


PADDING_ID = -1
"""What stands behind an image's last token in a batch of ids of the codebook."""

_IGNORED_LABEL = -100


@dataclass(frozen=True)
class SequenceVocabulary:
    """
    The part of a language model's vocabulary that sequences of codes are made of. From `offset` on it has, in this
    order, the ids of the codebook, a length token for each number of rollouts, and the begin, end and padding tokens.
    All ids outside of it are left to the language model: to text, or to class labels.

    Args:
        codebook_size (`int`): entries of the latent codebook.
        tokens_per_rollout (`int`): latent tokens that a rollout appends.
        max_rollouts (`int`): rollouts of the longest code.
        offset (`int`, *optional*, defaults to 0): ids in front of this part, such as the size of a text vocabulary.

    Raises:
        `ValueError`: for sizes that no model has.

    Example:

    ```python
    >>> from alit_hf import ALITConfig, SequenceVocabulary, pretrained_path

    >>> vocabulary = SequenceVocabulary.from_config(ALITConfig.from_pretrained(pretrained_path()))
    >>> sequence = vocabulary.to_sequence(list(range(32)))
    >>> token_ids = vocabulary.from_sequence(sequence)
    ```
    """

    codebook_size: int
    tokens_per_rollout: int
    max_rollouts: int
    offset: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            smallest = 0 if name == "offset" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ValueError(f"`{name}` is {value!r}, it must be an integer of at least {smallest}.")

    @classmethod
    def from_config(cls, config: ALITConfig, offset: int = 0) -> "SequenceVocabulary":
        """
        The vocabulary for codes of a model.

        Args:
            config (`ALITConfig`): the model's.
            offset (`int`, *optional*, defaults to 0): ids in front of it.

        Raises:
            `ValueError`: for a model with continuous latents, which has no ids, or an impossible offset.
        """
        if not config.quantize:
            raise ValueError("The model's latents are continuous (`quantize` is False): they have no ids.")
        return cls(config.codebook_size, config.tokens_per_rollout, config.max_rollouts, offset)

    @property
    def _code_ids(self) -> range:
        return range(self.offset, self.offset + self.codebook_size)

    @property
    def _length_ids(self) -> range:
        return range(self._code_ids.stop, self._code_ids.stop + self.max_rollouts)

    @property
    def bos_token_id(self) -> int:
        """The begin token."""
        return self._length_ids.stop

    @property
    def eos_token_id(self) -> int:
        """The end token."""
        return self.bos_token_id + 1

    @property
    def pad_token_id(self) -> int:
        """The padding token."""
        return self.bos_token_id + 2

    @property
    def vocab_size(self) -> int:
        """Ids up to the last one of this part, with the `offset` in front of it."""
        return self.bos_token_id + 3

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, from the begin to the end token."""
        return self.max_rollouts * self.tokens_per_rollout + 3

    def length_token_id(self, num_tokens: int) -> int:
        """
        The length token of codes of `num_tokens` ids.

        Raises:
            `ValueError`: for a length that does not exist.
        """
        step = self.tokens_per_rollout
        if num_tokens not in range(step, self.max_rollouts * step + 1, step):
            raise ValueError(
                f"`num_tokens` is {num_tokens!r}, it must be a multiple of {step} between {step} and "
                f"{self.max_rollouts * step}."
            )
        return self._length_ids[int(num_tokens) // step - 1]

    def prompt(self, num_tokens: int | None = None) -> list[int]:
        """
        The beginning of a sequence, for a language model to go on with.

        Args:
            num_tokens (`int`, *optional*): length of the code. Without it the model chooses one.

        Raises:
            `ValueError`: for a length that does not exist.
        """
        return [self.bos_token_id] if num_tokens is None else [self.bos_token_id, self.length_token_id(num_tokens)]

    def to_sequence(self, token_ids: Sequence[int]) -> list[int]:
        """
        One code, as a row of a data set of tokens has it, to its sequence. For what `encode` gives there is
        [`ALITEncoderOutput.to_sequence`].

        Args:
            token_ids (`Sequence[int]`): ids in [0, codebook_size), all of them, without padding.

        Raises:
            `ValueError`: for ids that are not in the codebook, with their position, or a number of them that no code
                has.
        """
        ids = _integers("token_ids", token_ids)
        for position, token in enumerate(ids):
            if not 0 <= token < self.codebook_size:
                raise ValueError(
                    f"`token_ids` has {token} at position {position}, ids must be in [0, {self.codebook_size})."
                )
        return [*self.prompt(len(ids)), *(self.offset + token for token in ids), self.eos_token_id]

    def from_sequence(self, sequence: Sequence[int] | torch.LongTensor) -> list[int] | torch.LongTensor:
        """
        The way back, for one sequence or for the batch that `generate` gives.

        Args:
            sequence (`Sequence[int]` or `torch.LongTensor` of shape `(B, S)`): one code each. In front of the begin
                token and behind the end token there may be padding and ids outside of this vocabulary.

        Returns:
            the ids in [0, codebook_size) as a list. Of a batch, ids `(B, T)`, padded with -1 behind an image's last
            token, on its device, which `decode` takes.

        Raises:
            `ValueError`: naming row and position, where a sequence holds anything but one whole code.
        """
        if not (isinstance(sequence, torch.Tensor) and sequence.ndim == 2):
            return self._from_sequence(_integers("sequence", sequence))
        rows = []
        for row, ids in enumerate(sequence.tolist()):
            try:
                rows.append(torch.tensor(self._from_sequence(_integers("sequence", ids))))
            except ValueError as error:
                raise ValueError(f"Row {row}: {error}") from error
        if not rows:
            raise ValueError(f"`sequence` has shape {tuple(sequence.shape)}, it must have at least one row.")
        token_ids = pad_sequence(rows, batch_first=True, padding_value=PADDING_ID).to(sequence.device)
        return token_ids.as_subclass(type(sequence))

    def _from_sequence(self, sequence: list[int]) -> list[int]:
        of_codes = range(self.offset, self.bos_token_id + 1)

        def check(position: int, allowed: range, what: str) -> None:
            """Whether `what` is there, one of the ids `allowed`."""
            must = f"where {what} must be, {allowed[0]}" + (f" to {allowed[-1]}." if len(allowed) > 1 else ".")
            if position == len(sequence):
                raise ValueError(f"`sequence` ends before position {position}, {must}")
            if sequence[position] not in allowed:
                raise ValueError(f"`sequence` has {sequence[position]} at position {position}, {must}")

        begin = next((position for position, token in enumerate(sequence) if token in of_codes), len(sequence))
        check(begin, range(self.bos_token_id, self.bos_token_id + 1), "the begin token")
        check(begin + 1, self._length_ids, "a length token")
        first = begin + 2
        num_tokens = self.tokens_per_rollout * (sequence[begin + 1] - self._length_ids.start + 1)
        end = first + num_tokens
        for position in range(first, end):
            check(position, self._code_ids, f"one of the {num_tokens} ids that the length token announces")
        check(end, range(self.eos_token_id, self.eos_token_id + 1), "the end token")
        for position in range(end + 1, len(sequence)):
            if sequence[position] in of_codes:
                raise ValueError(
                    f"`sequence` has {sequence[position]} at position {position}, behind the end token of its code: "
                    "there may be one code in a sequence."
                )
        return [token - self.offset for token in sequence[first:end]]

    def pad(self, sequences: Sequence[Sequence[int]], padding_side: str = "right") -> BatchEncoding:
        """
        A batch of sequences or prompts, for a causal model of transformers.

        Args:
            sequences (`Sequence[Sequence[int]]`): of any lengths, with whatever else the language model is to read.
            padding_side (`str`, *optional*, defaults to `"right"`): `"left"` for prompts, since `generate` goes on at
                the right.

        Returns:
            `BatchEncoding`: int64 tensors `(B, S)`: `input_ids`; `attention_mask`, 0 on padding; and `labels`, the ids
            again, -100 on padding, which `generate` ignores.

        Raises:
            `ValueError`: for no sequences, or another side.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` is {padding_side!r}, it must be 'left' or 'right'.")
        rows = [torch.tensor(_integers("sequences", ids), dtype=torch.long) for ids in sequences]
        if not rows:
            raise ValueError("`sequences` is empty, it must have at least one sequence.")

        def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
            return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=padding_side)

        return BatchEncoding(
            {
                "input_ids": padded(rows, self.pad_token_id),
                "attention_mask": padded([torch.ones_like(row) for row in rows], 0),
                "labels": padded(rows, _IGNORED_LABEL),
            }
        )


class CodeLogitsProcessor(LogitsProcessor):
    """
    Lets `generate` write nothing but codes: a length token behind the begin token, then as many ids as it announces,
    then the end token, then padding. Works for greedy search, sampling and beam search, and for
    rows that are not equally far.

    A prompt ends with `vocabulary.prompt()` where the model is to choose the length, and with
    `vocabulary.prompt(num_tokens)` where it is given. Codes are written to their end if `max_new_tokens` is
    `vocabulary.max_length`.

    Args:
        vocabulary ([`SequenceVocabulary`]): of the language model's codes.
    """

    # Its rows are those of the batch, which continuous batching lays end to end.
    supports_continuous_batching = False

    def __init__(self, vocabulary: SequenceVocabulary):
        self.vocabulary = vocabulary

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): what there is of each sequence, with its prompt.
            scores (`torch.FloatTensor` of shape `(B, V)`): of each token as the next one.

        Returns:
            the scores, minus infinity for all tokens that must not come next.

        Raises:
            `ValueError`: for a prompt without a begin token, or with something else than a length token behind it, or
                a model without logits for this vocabulary.
        """
        vocabulary, length_ids = self.vocabulary, self.vocabulary._length_ids
        if scores.shape[1] < vocabulary.vocab_size:
            raise ValueError(f"The model has {scores.shape[1]} logits, its codes need {vocabulary.vocab_size}.")
        is_begin = input_ids == vocabulary.bos_token_id
        _refuse_rows(~is_begin.any(dim=1), f"has no begin token, {vocabulary.bos_token_id}")
        # The first one: beam search has rows without a chance, in which anything may stand behind a code.
        begin = is_begin.int().argmax(dim=1)
        num_written = input_ids.shape[1] - 1 - begin
        behind_begin = input_ids.gather(1, (begin + 1).clamp(max=input_ids.shape[1] - 1).unsqueeze(1)).squeeze(1)
        has_length = num_written > 0
        is_length = (behind_begin >= length_ids.start) & (behind_begin < length_ids.stop)
        _refuse_rows(
            has_length & ~is_length,
            f"has no length token, {length_ids[0]} to {length_ids[-1]}, behind the begin token",
        )
        num_missing = vocabulary.tokens_per_rollout * (behind_begin - length_ids.start + 1) + 1 - num_written

        stages = (
            (~has_length, length_ids),
            (has_length & (num_missing > 0), vocabulary._code_ids),
            (has_length & (num_missing == 0), range(vocabulary.eos_token_id, vocabulary.eos_token_id + 1)),
            (has_length & (num_missing < 0), range(vocabulary.pad_token_id, vocabulary.pad_token_id + 1)),
        )
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        for rows, ids in stages:
            allowed[:, ids.start : ids.stop] = rows.unsqueeze(1)
        return scores.masked_fill(~allowed, -torch.inf)


def _refuse_rows(wrong: torch.BoolTensor, fault: str) -> None:
    if wrong.any():
        rows = wrong.nonzero()[:, 0].tolist()
        raise ValueError(
            f"`input_ids` in row {rows[0]} {fault}: prompts must end with what `SequenceVocabulary.prompt` gives."
        )


def _integers(name: str, values: Sequence[int]) -> list[int]:
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise ValueError(f"`{name}` is {reprlib.repr(values)}, it must be a list of integers.") from error


__all__ = ["PADDING_ID", "CodeLogitsProcessor", "SequenceVocabulary"]
