"""Codes become sequences and come back, and a language model cannot write a sequence that is no code."""

import numpy as np
import pytest
import torch
from tiny_config import tiny_config, tiny_images, tiny_model
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from alit_hf import CodeLogitsProcessor, SequenceVocabulary
from alit_hf.model.outputs import ALITEncoderOutput


# Ids 10 to 73, length tokens 74 to 77 for 3 to 12 ids, begin 78, end 79, padding 80.
VOCABULARY = SequenceVocabulary(codebook_size=64, tokens_per_rollout=3, max_rollouts=4, offset=10)
BEGIN, END, PADDING = 78, 79, 80

LENGTHS = (6, 12, 3)


def random_ids(num_tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 64, num_tokens).tolist()


def language_model(vocab_size: int = VOCABULARY.vocab_size, seed: int = 0) -> LlamaForCausalLM:
    """A random model that is sure of what it says."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PADDING,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=1.0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def code() -> ALITEncoderOutput:
    """Codes of three lengths."""
    with torch.no_grad():
        parts = [tiny_model().encode(tiny_images(1, seed=length), num_tokens=length) for length in LENGTHS]
    return ALITEncoderOutput(
        token_ids=pad_sequence([part.token_ids[0] for part in parts], batch_first=True, padding_value=-1),
        num_tokens=torch.tensor(LENGTHS),
        base_latents=torch.cat([part.base_latents for part in parts]),
    )


class TestLayout:
    def test_of_a_model(self):
        assert SequenceVocabulary.from_config(tiny_config(), offset=10) == VOCABULARY
        assert SequenceVocabulary.from_config(tiny_config()).offset == 0

    def test_tokens(self):
        assert (VOCABULARY.bos_token_id, VOCABULARY.eos_token_id, VOCABULARY.pad_token_id) == (BEGIN, END, PADDING)
        assert [VOCABULARY.length_token_id(n) for n in (3, 6, 9, 12)] == [74, 75, 76, 77]
        assert (VOCABULARY.vocab_size, VOCABULARY.max_length) == (81, 15)

    def test_a_sequence(self):
        assert VOCABULARY.to_sequence([0, 63, 5, 5, 1, 2]) == [BEGIN, 75, 10, 73, 15, 15, 11, 12, END]
        assert VOCABULARY.prompt() == [BEGIN]
        assert VOCABULARY.prompt(6) == [BEGIN, 75]

    @pytest.mark.parametrize(
        ("name", "value", "smallest"),
        [("codebook_size", 0, 1), ("tokens_per_rollout", 2.5, 1), ("max_rollouts", True, 1), ("offset", -1, 0)],
    )
    def test_sizes_that_cannot_be(self, name, value, smallest):
        sizes = {"codebook_size": 64, "tokens_per_rollout": 3, "max_rollouts": 4, name: value}
        with pytest.raises(ValueError, match=f"`{name}` is {value}, it must be an integer of at least {smallest}"):
            SequenceVocabulary(**sizes)

    def test_continuous_latents_have_no_ids(self):
        with pytest.raises(ValueError, match="latents are continuous"):
            SequenceVocabulary.from_config(tiny_config(quantize=False))


class TestOneCode:
    @pytest.mark.parametrize("num_tokens", [3, 6, 9, 12])
    def test_there_and_back(self, num_tokens):
        ids = random_ids(num_tokens)
        for row in (ids, np.array(ids, np.uint16), torch.tensor(ids)):
            sequence = VOCABULARY.to_sequence(row)
            assert {type(token) for token in sequence} == {int}
            assert VOCABULARY.from_sequence(sequence) == ids
            assert VOCABULARY.from_sequence(torch.tensor(sequence)) == ids

    def test_padding_and_text_are_around_it(self):
        sequence = VOCABULARY.to_sequence([1, 2, 3])
        around = [PADDING, PADDING, 0, 9, *sequence, END, PADDING, 3, 81, 500]
        assert VOCABULARY.from_sequence(around) == [1, 2, 3]

    @pytest.mark.parametrize("num_tokens", [0, 1, 4, 15])
    def test_numbers_of_ids_that_no_code_has(self, num_tokens):
        for call in (
            lambda: VOCABULARY.to_sequence([0] * num_tokens),
            lambda: VOCABULARY.prompt(num_tokens),
            lambda: VOCABULARY.length_token_id(num_tokens),
        ):
            with pytest.raises(
                ValueError, match=f"`num_tokens` is {num_tokens}, it must be a multiple of 3 between 3"
            ):
                call()

    @pytest.mark.parametrize("token", [-1, 64])
    def test_ids_outside_of_the_codebook(self, token):
        with pytest.raises(ValueError, match=rf"has {token} at position 2, ids must be in \[0, 64\)"):
            VOCABULARY.to_sequence([1, 2, token])

    @pytest.mark.parametrize("ids", [[0.5, 1.0, 2.0], ["a"], [[1, 2, 3]], 3, None, "abc"])
    def test_what_is_no_ids(self, ids):
        with pytest.raises(ValueError, match=r"`token_ids` is .*, it must be a list of integers"):
            VOCABULARY.to_sequence(ids)

    @pytest.mark.parametrize(
        ("sequence", "fault"),
        [
            ([], "ends before position 0, where the begin token must be, 78"),
            ([3, PADDING], "ends before position 2, where the begin token must be"),
            ([3, 74, BEGIN, 74, 10, 10, 10, END], "has 74 at position 1, where the begin token must be"),
            ([3, BEGIN], "ends before position 2, where a length token must be, 74 to 77"),
            ([BEGIN, 10, 10, 10, 10, END], "has 10 at position 1, where a length token must be"),
            ([BEGIN, END], "has 79 at position 1, where a length token must be"),
            ([BEGIN, 74, 10, 10], "ends before position 4, where one of the 3 ids .* must be, 10 to 73"),
            ([BEGIN, 74, 10, 9, 10, END], "has 9 at position 3, where one of the 3 ids"),
            ([BEGIN, 75, 10, 10, 10, END], "has 79 at position 5, where one of the 6 ids"),
            ([BEGIN, 74, 10, 10, 10], "ends before position 5, where the end token must be, 79"),
            ([BEGIN, 74, 10, 10, 10, 10, END], "has 10 at position 5, where the end token must be"),
            ([BEGIN, 74, 10, 10, 10, END, 10], "has 10 at position 6, behind the end token"),
            ([BEGIN, 74, 10, 10, 10, END, BEGIN, 74, 10, 10, 10, END], "has 78 at position 6, behind the end token"),
        ],
    )
    def test_sequences_that_are_no_code(self, sequence, fault):
        with pytest.raises(ValueError, match=f"^`sequence` {fault}"):
            VOCABULARY.from_sequence(sequence)


class TestBatches:
    @pytest.mark.parametrize("padding_side", ["left", "right"])
    @pytest.mark.parametrize("offset", [0, 1000])
    def test_there_and_back(self, code, padding_side, offset):
        vocabulary = SequenceVocabulary.from_config(tiny_config(), offset)
        batch = code.to_sequence(vocabulary, padding_side=padding_side)
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        width = batch["input_ids"].shape[1]
        for row, length in enumerate(code.num_tokens.tolist()):
            sequence = vocabulary.to_sequence(code.token_ids[row, :length])
            padding = width - len(sequence)
            inside = slice(padding, None) if padding_side == "left" else slice(None, len(sequence))
            for name, values, behind in (
                ("input_ids", sequence, vocabulary.pad_token_id),
                ("attention_mask", [1] * len(sequence), 0),
                ("labels", sequence, -100),
            ):
                expected = torch.full((width,), behind)
                expected[inside] = torch.tensor(values)
                assert batch[name][row].tolist() == expected.tolist(), name
        token_ids = vocabulary.from_sequence(batch["input_ids"])
        assert torch.equal(token_ids, code.token_ids)
        with torch.no_grad():
            assert torch.equal(tiny_model().decode(token_ids).pixel_values, tiny_model().decode(code).pixel_values)

    def test_a_language_model_takes_it(self, code):
        model = language_model()
        batch = code.to_sequence(VOCABULARY)
        shortest = int(code.num_tokens.argmin())
        alone = VOCABULARY.pad([VOCABULARY.to_sequence(code.token_ids[shortest, : code.num_tokens[shortest]])])
        with torch.no_grad():
            expected = model(**alone).loss
            of_row = model(**{name: tensor[[shortest]] for name, tensor in batch.items()}).loss
        torch.testing.assert_close(of_row, expected)

    def test_rows_of_a_data_set(self):
        rows = [[4, *VOCABULARY.to_sequence([1, 2, 3])], VOCABULARY.to_sequence(range(6))]
        batch = VOCABULARY.pad(rows, padding_side="left")
        assert batch["input_ids"].tolist() == [[PADDING] * 2 + rows[0], rows[1]]
        assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9]
        assert VOCABULARY.from_sequence(batch["input_ids"]).tolist() == [[1, 2, 3, -1, -1, -1], list(range(6))]

    def test_ids_of_another_grid_stay_so(self):
        model = tiny_model()
        with torch.no_grad():
            code = model.encode(tiny_images(2, 24, 40), num_tokens=6, interpolate_pos_encoding=True)
            batch = code.to_sequence(VOCABULARY)
            language_model()(**batch).loss.item()
            token_ids = VOCABULARY.from_sequence(batch["input_ids"])
            with pytest.raises(ValueError, match="`grid_size` is None"):
                model.decode(token_ids)
            assert torch.equal(
                model.decode(token_ids, grid_size=(6, 10)).pixel_values, model.decode(code).pixel_values
            )

    @pytest.mark.parametrize(
        ("num_tokens", "fault"),
        [
            ((6, 9, 3), "Row 1: `num_tokens` is 9, but `token_ids` goes on"),
            ((6, 12, 6), "Row 2: `token_ids` has -1 at"),
        ],
    )
    def test_ids_and_lengths_that_do_not_belong_together(self, code, num_tokens, fault):
        other = ALITEncoderOutput(token_ids=code.token_ids, num_tokens=torch.tensor(num_tokens))
        with pytest.raises(ValueError, match=f"^{fault}"):
            other.to_sequence(VOCABULARY)

    @pytest.mark.parametrize(
        ("column", "token", "fault"),
        [(1, 10, "10 at position 1, where a length"), (7, 9, "9 at position 7, where one of the 6 ids")],
    )
    def test_the_row_that_is_no_code_is_named(self, code, column, token, fault):
        input_ids = code.to_sequence(VOCABULARY)["input_ids"]
        input_ids[0, column] = token
        with pytest.raises(ValueError, match=f"^Row 0: `sequence` has {fault}"):
            VOCABULARY.from_sequence(input_ids)

    def test_another_models_vocabulary(self, code):
        with pytest.raises(ValueError, match=r"^Row \d: `token_ids` has \d+ at position \d+, ids must be in \[0, 8\)"):
            code.to_sequence(SequenceVocabulary(8, 3, 4))
        with pytest.raises(ValueError, match=r"^Row 0: `num_tokens` is .* a multiple of 5"):
            code.to_sequence(SequenceVocabulary(64, 5, 4))

    def test_what_is_no_batch(self, code):
        with torch.no_grad():
            continuous = tiny_model(quantize=False).encode(tiny_images(1), num_tokens=3)
        with pytest.raises(ValueError, match="continuous latents have no ids"):
            continuous.to_sequence(VOCABULARY)
        with pytest.raises(ValueError, match="`padding_side` is 'top', it must be 'left' or 'right'"):
            code.to_sequence(VOCABULARY, padding_side="top")
        with pytest.raises(ValueError, match="`sequences` is empty"):
            VOCABULARY.pad([])
        with pytest.raises(ValueError, match=r"has shape \(0, 5\), it must have at least one row"):
            VOCABULARY.from_sequence(torch.zeros(0, 5, dtype=torch.long))


class TestWhatMayComeNext:
    def allowed(self, prompts: list[list[int]], num_logits: int = VOCABULARY.vocab_size) -> list[set[int]]:
        """The tokens that keep their scores, for each of the prompts in one batch."""
        input_ids = VOCABULARY.pad(prompts, padding_side="left")["input_ids"]
        scores = torch.rand(len(prompts), num_logits)
        processed = CodeLogitsProcessor(VOCABULARY)(input_ids, scores)
        kept = processed == scores
        assert (processed[~kept] == -torch.inf).all()
        return [set(row.nonzero()[:, 0].tolist()) for row in kept]

    def test_each_row_is_at_its_own_place(self):
        lengths, ids = set(range(74, 78)), set(range(10, 74))
        prompts = {
            (BEGIN,): lengths,
            (5, 3, BEGIN): lengths,
            (BEGIN, 74): ids,
            (BEGIN, 75, 10, 10, 10): ids,
            (1, BEGIN, 74, 10, 10): ids,
            (2, 4, BEGIN, 74, 10, 10, 10): {END},
            (BEGIN, 74, 10, 10, 10, END): {PADDING},
            (BEGIN, 74, 10, 10, 10, END, PADDING, PADDING): {PADDING},
        }
        assert self.allowed(list(prompts)) == list(prompts.values())
        assert self.allowed(list(prompts), num_logits=100) == list(prompts.values())

    @pytest.mark.parametrize(
        ("prompt", "fault"),
        [
            ([3, 4], "in row 1 has no begin token, 78: prompts must end"),
            ([BEGIN, 3], "in row 1 has no length token, 74 to 77, behind the begin token"),
            ([BEGIN, PADDING], "in row 1 has no length token"),
        ],
    )
    def test_prompts_that_begin_no_code(self, prompt, fault):
        with pytest.raises(ValueError, match=fault):
            self.allowed([[BEGIN], prompt])

    def test_a_model_without_these_tokens(self):
        with pytest.raises(ValueError, match="The model has 80 logits, its codes need 81"):
            self.allowed([[BEGIN]], num_logits=80)


METHODS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "all tokens": {"do_sample": True, "top_k": 0, "temperature": 3.0},
    "beams": {"num_beams": 3, "do_sample": False},
    "penalty": {"do_sample": False, "repetition_penalty": 1.5},
}


class TestGeneration:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("method", METHODS)
    def test_writes_codes_of_the_lengths_asked_for(self, method, seed):
        asked = [3, None, 12, 6, None, 9]
        prompts = [[*range(number % 3), *VOCABULARY.prompt(length)] for number, length in enumerate(asked)]
        torch.manual_seed(seed)
        batch = VOCABULARY.pad(prompts, padding_side="left")
        written = language_model(VOCABULARY.vocab_size + 7, seed).generate(
            **batch,
            **METHODS[method],
            max_new_tokens=VOCABULARY.max_length,
            logits_processor=[CodeLogitsProcessor(VOCABULARY)],
        )
        assert torch.equal(written[:, : batch["input_ids"].shape[1]], batch["input_ids"])
        token_ids = VOCABULARY.from_sequence(written)
        lengths = (token_ids >= 0).sum(dim=1).tolist()
        assert [length for length, number in zip(lengths, asked, strict=True) if number] == [3, 12, 6, 9]
        with torch.no_grad():
            tiny_model().decode(token_ids)

    def test_the_model_chooses_the_length(self):
        """Among the length tokens, as it would itself."""
        model = language_model()
        with torch.no_grad():
            logits = model(torch.tensor([[BEGIN]])).logits[0, -1, 74:78]
        torch.manual_seed(0)
        prompts = VOCABULARY.pad([VOCABULARY.prompt()] * 2000, padding_side="left")
        written = model.generate(
            **prompts, logits_processor=[CodeLogitsProcessor(VOCABULARY)], do_sample=True, top_k=0, max_new_tokens=1
        )
        counts = torch.bincount(written[:, 1] - 74, minlength=4)
        assert (counts / 2000 - logits.softmax(dim=0)).abs().max() < 0.05

    def test_every_returned_beam_is_a_code(self):
        prompts = VOCABULARY.pad([VOCABULARY.prompt(), [1, 2, *VOCABULARY.prompt(3)]], padding_side="left")
        written = language_model().generate(
            **prompts,
            logits_processor=[CodeLogitsProcessor(VOCABULARY)],
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=VOCABULARY.max_length,
        )
        token_ids = VOCABULARY.from_sequence(written)
        assert (token_ids[4:] >= 0).sum(dim=1).tolist() == [3] * 4
        assert [len(set(map(tuple, rows.tolist()))) for rows in token_ids.split(4)] == [4, 4]

    def test_without_it_the_model_writes_no_code(self):
        prompts = VOCABULARY.pad([VOCABULARY.prompt(3)], padding_side="left")
        written = language_model().generate(**prompts, do_sample=False, max_new_tokens=VOCABULARY.max_length)
        with pytest.raises(ValueError, match=r"^Row 0: `sequence` has"):
            VOCABULARY.from_sequence(written)
