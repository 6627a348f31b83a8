"""Rows that `load_dataset` gives decode to the pictures that their codes stand for, and by no other model."""

import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch
from lively_model import lively_model

from alit_hf.codes.picture_codes import PictureEncoder
from alit_hf.data.image_rows import open_rows
from alit_hf.token_datasets import TokenDatasetInfo, TokenDecoder


@pytest.fixture
def codes(tokenize, tmp_path) -> datasets.Dataset:
    tokenize(tmp_path / "out")
    return datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))


def test_pictures_are_those_of_encoding_and_decoding(codes, tmp_path, model, processor, choice, pictures):
    decoded = TokenDecoder(tmp_path / "out", model, processor).decode(codes[:])
    assert len(decoded) == len(pictures)
    for picture, original in zip(decoded, pictures.values(), strict=True):
        with torch.inference_mode():
            code = model.encode(original.pixel_values.unsqueeze(0), threshold=choice.threshold)
            expected = processor.postprocess(model.decode(code.token_ids, num_tokens=code.num_tokens).pixel_values)[0]
        # One level of 255 may be rounded the other way in another batch.
        assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).max() <= 1


def test_rows_in_any_order_and_number(codes, tmp_path, model, processor):
    decoder = TokenDecoder(TokenDatasetInfo.load(tmp_path / "out"), model, processor)
    all_pictures = decoder.decode(codes[:])
    some = codes.select([7, 0, 4])
    for picture, number in zip(decoder.decode(some[:]), (7, 0, 4), strict=True):
        assert np.abs(np.asarray(picture, int) - np.asarray(all_pictures[number], int)).max() <= 1
    assert decoder.decode(some[:0]) == []


@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_rows_in_other_formats(codes, tmp_path, model, processor, format):
    decoder = TokenDecoder(tmp_path / "out", model, processor)
    for rows in (slice(0, 3), slice(0, 1)):
        decoded = decoder.decode(codes.with_format(format)[rows])
        assert [np.asarray(picture).tolist() for picture in decoded] == [
            np.asarray(picture).tolist() for picture in decoder.decode(codes[rows])
        ]


def test_a_list_of_rows(codes, tmp_path, model, processor):
    decoder = TokenDecoder(tmp_path / "out", model, processor)
    expected = [np.asarray(picture).tolist() for picture in decoder.decode(codes[:2])]
    for rows in ([codes[0], codes[1]], (codes.with_format("torch")[0], codes[1]), codes.select([0, 1])):
        assert [np.asarray(picture).tolist() for picture in decoder.decode(rows)] == expected
    assert decoder.decode([]) == []


def test_one_row_and_what_is_no_rows_are_refused(codes, tmp_path, model, processor):
    decoder = TokenDecoder(tmp_path / "out", model, processor)
    without = {name: column for name, column in codes[:2].items() if name != "num_tokens"}
    uneven = {**codes[:2], "num_tokens": codes[:3]["num_tokens"]}
    of_torch = codes.with_format("torch")[0]
    for rows in (codes[0], of_torch, codes[:2]["token_ids"], without, uneven, "codes", 3, None):
        with pytest.raises(ValueError, match=r"`rows` is .*, it must be rows with token_ids, .*: `codes\[:8\]`") as e:
            decoder.decode(rows)
        assert len(str(e.value)) < 1000


def test_another_model_is_refused(codes, tmp_path, model, processor):
    other = lively_model()
    other.decoder.head.fc2.bias.data += 0.1
    with pytest.raises(ValueError, match="the tokens were made by another model"):
        TokenDecoder(tmp_path / "out", other, processor)
    TokenDecoder(tmp_path / "out", lively_model().to(torch.bfloat16), processor)


def test_ids_without_their_number_are_refused(codes, tmp_path, model, processor):
    rows = codes[:1]
    rows["num_tokens"] = [rows["num_tokens"][0] + 4]
    with pytest.raises(ValueError, match=r"`token_ids` has \d+ ids, `num_tokens` is \d+: they must agree"):
        TokenDecoder(tmp_path / "out", model, processor).decode(rows)


def test_information_is_asked_for(tmp_path, model, processor):
    for wrong in ("tokensX/", "tokensX", str(tmp_path / "nothing"), tmp_path / "nothing"):
        with pytest.raises(ValueError, match=r"`dataset` is '.*(tokensX|nothing)/?', it must be a folder that exists"):
            TokenDecoder(wrong, model, processor)
    with pytest.raises(FileNotFoundError):
        TokenDecoder(tmp_path, model, processor)
    (tmp_path / "tokenization.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenization\.json was not written by `alit tokenize`"):
        TokenDecoder(tmp_path, model, processor)


class TestInformationOfOthers:
    """`tokenization.json` comes with the data set, from whoever made it."""

    @pytest.fixture
    def info(self, model, processor, choice, parquet) -> TokenDatasetInfo:
        rows = open_rows([str(parquet)])
        return TokenDatasetInfo.describe(rows, PictureEncoder(model, choice), processor, 3)

    @pytest.fixture
    def load(self, info, tmp_path, model, processor):
        """A decoder for what the file says with other values."""

        def load(**values) -> TokenDecoder:
            text = json.dumps({**dataclasses.asdict(info), **values})
            (tmp_path / "tokenization.json").write_text(text)
            return TokenDecoder(tmp_path, model, processor)

        return load

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("model", [None, 3]),
            ("fingerprint", [None, "", "xy" * 8, "ab" * 9, 7]),
            ("dtype", [None]),
            ("image_processor", [None, []]),
            ("grid_size", [None, "16", [16], [16, 16.0], [0, 16], [-1, -1], [True, 1], [256, 257], [[1], [1]], 256]),
            ("codebook_size", [None, "64", 1, 65537, 64.0, True]),
            ("threshold", ["0.1", [0.1], True, float("nan")]),
            ("num_tokens", [4, "4"]),
            ("criterion", [None, 1]),
            ("sources", [None, "photos", [1]]),
            ("config_name", [3]),
            ("split", [3, "", "../train", "a b"]),
            ("kept_columns", ["label", [1]]),
            ("data_fingerprint", [None]),
            ("image_column", [0]),
            ("rows_per_shard", [None, 0, 2.5, "3", False]),
        ],
    )
    def test_a_value_that_cannot_be_is_named(self, load, name, values):
        for value in values:
            with pytest.raises(ValueError, match=rf"^tokenization\.json was not written .*: `{name}` is .*, it must "):
                load(**{name: value})

    def test_a_length_that_cannot_be_is_named(self, load):
        for length in (None, 0, 65536, 4.0, True):
            with pytest.raises(ValueError, match=r"`num_tokens` is .*, it must be a whole number from 1 to 65535"):
                load(threshold=None, num_tokens=length)
        assert load(threshold=None, num_tokens=4).info.num_tokens == 4

    def test_a_grid_beyond_what_the_model_decodes_is_refused(self, load, model):
        rows, columns = model.config.grid_size
        load(grid_size=[4 * rows, 4 * columns])
        for grid_size in ([256, 256], [4 * rows, 4 * columns + 1]):
            with pytest.raises(ValueError, match=r"a grid of .* positions, this model decodes at most"):
                load(grid_size=grid_size)

    def test_a_codebook_of_another_size_is_refused(self, load, model):
        with pytest.raises(ValueError, match="a codebook of 65536 entries, this model's has"):
            load(codebook_size=65536)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff", b"null", b"3", b"[" * 10**6, b'{"model": "m"', b'{"model": "m", "x": 1}', b" " * 2**25],
    )
    def test_a_file_that_is_something_else(self, tmp_path, model, processor, content):
        (tmp_path / "tokenization.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenization\.json .*was not written by `alit tokenize`"):
            TokenDecoder(tmp_path, model, processor)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("token_ids", ["a"]),
            ("token_ids", [None] * 4),
            ("token_ids", [[1, 2]] * 4),
            ("token_ids", [0.5] * 4),
            ("token_ids", [10**30] * 4),
            ("original_size", [1]),
            ("original_size", ["1", "2"]),
            ("original_size", [2**31, 2**31]),
            ("original_size", [None, 5]),
        ],
    )
    def test_rows_that_cannot_be(self, load, name, value):
        row = {"token_ids": [1, 2, 3, 4], "num_tokens": 4, "original_size": [40, 30], name: value}
        row["num_tokens"] = len(row["token_ids"])
        with pytest.raises(ValueError, match=rf"`{name}` "):
            load().decode([row])
