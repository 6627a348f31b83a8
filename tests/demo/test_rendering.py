"""What is on the page: the pictures themselves, numbers that fit them, and names that cannot break out."""

import re

import numpy as np
import pytest
from html_page import Page, payload
from noise_photo import noise_photo
from PIL import Image

from alit_hf.codes.token_file import TokenFile
from alit_hf.demo.rendering import attention_overlay, chosen_html, examples_html, message_html, strip_html, tokens_html


BAD_NAME = "<img src=x onerror=alert(1)>\"'${1}{{value}}&.png"


@pytest.fixture(scope="module")
def encoded(tokenizer):
    return tokenizer.encode("holiday.png", noise_photo(0))


def test_strip_has_every_length_with_error_and_bytes(encoded):
    page = Page(strip_html(encoded))
    for picture, rollout in zip(page.pictures(), encoded.rollouts, strict=True):
        assert np.array_equal(picture, rollout.picture)
    assert re.findall(r"(\d+) tokens", page.text) == ["3", "6", "9", "12"]
    assert re.findall(r"L1 ([\d.]+)", page.text) == [f"{rollout.l1:.3f}" for rollout in encoded.rollouts]
    assert re.findall(r"(\d+) bytes", page.text) == ["3", "5", "7", "9"]


@pytest.mark.parametrize(("threshold", "index"), [(0.3, 0), (0.0, 3)])
def test_chosen_code_stands_beside_the_original(encoded, threshold, index):
    page = Page(chosen_html(encoded, encoded.choose(threshold), token=None))
    original, reconstruction = page.pictures()
    assert np.array_equal(original, encoded.original)
    assert np.array_equal(reconstruction, encoded.rollouts[index].picture)
    assert f"{3 * (index + 1)} tokens" in page.text
    assert ("no length is below the threshold" in page.text) == (threshold == 0)
    [link] = page.all("a")
    assert link["download"] == f"holiday-{3 * (index + 1)}.alit"
    content = payload(link["href"], "application/octet-stream")
    assert TokenFile.from_bytes(content) == encoded.token_files[index]
    assert f"{len(content)} bytes" in page.text


def test_attention_is_that_of_the_token(encoded):
    chosen = encoded.choose(0.3)
    for token in range(3):
        page = Page(chosen_html(encoded, chosen, token))
        assert np.array_equal(page.pictures()[2], attention_overlay(chosen.picture, chosen.maps[token]))
        assert f"Token {token + 1}, code {chosen.token_file.token_ids[token]}\n" in page.text


def test_overlay_is_bright_where_the_map_is_high():
    attention_map = np.zeros((4, 8), dtype=np.float32)
    attention_map[3, 6] = 0.25
    overlay = np.asarray(attention_overlay(Image.new("RGB", (64, 32), "white"), attention_map)).astype(int).sum(axis=2)
    assert overlay.shape == (32, 64)
    row, column = np.unravel_index(overlay.argmax(), overlay.shape)
    assert (row // 8, column // 8) == (3, 6)
    assert overlay[:16].max() < overlay.max() - 200


def test_tokens_are_buttons_with_their_numbers(encoded):
    chosen = encoded.choose(0.0)
    buttons = Page(tokens_html(chosen)).all("button")
    assert [button["data-token"] for button in buttons] == [str(token) for token in range(12)]
    ids = chosen.token_file.token_ids
    assert [button["title"] for button in buttons] == [f"Token {t + 1}, code {ids[t]}" for t in range(12)]


def test_dropped_file_says_what_is_not_known(tokenizer, encoded):
    decoded = tokenizer.decode("a.alit", encoded.token_files[0])
    chosen = decoded.choose(0.1)
    page = Page(chosen_html(decoded, chosen, token=2))
    assert len(page.pictures()) == 2
    assert "50 × 40 pixels, is not in the file" in page.text
    assert "3 bytes" in page.text
    assert "L1" not in page.text
    assert "holds one code" in strip_html(decoded)


def test_continuous_latents_have_neither_bytes_nor_file(make_tokenizer):
    encoded = make_tokenizer(quantize=False).encode("a.png", noise_photo(0))
    chosen = encoded.choose(0.0)
    page = Page(chosen_html(encoded, chosen, token=0))
    assert not page.all("a")
    assert "no bytes" in page.text
    assert Page(tokens_html(chosen)).all("button")[0]["title"] == "Token 1"


def test_names_stay_words(tokenizer, encoded):
    named = tokenizer.encode(BAD_NAME, noise_photo(0))
    decoded = tokenizer.decode(BAD_NAME, encoded.token_files[0])
    for html in (
        chosen_html(named, named.choose(0.0), None),
        chosen_html(decoded, decoded.choose(0.0), None),
        message_html(BAD_NAME),
        examples_html({BAD_NAME: noise_photo(0)}),
    ):
        page = Page(html)
        assert BAD_NAME in page.text or BAD_NAME.removesuffix(".png") in page.all("a")[0]["download"]
        assert "onerror" not in str([list(attributes) for _, attributes in page.elements])
        assert not re.search(r"\$|\{|\}", html)
