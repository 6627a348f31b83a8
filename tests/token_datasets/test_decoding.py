"""Rows that `load_dataset` gives decode to the pictures that their codes stand for, and by no other model."""

import datasets
import numpy as np
import pytest
import torch
from lively_model import lively_model

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
