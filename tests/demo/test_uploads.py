"""What is dropped in: pictures, .alit files and everything else, of which nothing stays."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from noise_photo import noise_photo
from PIL import Image

from alit_hf.demo.codes import DecodedFile, EncodedPicture
from alit_hf.demo.uploads import UploadError, process_upload


@pytest.fixture
def token_file(tokenizer):
    return tokenizer.encode("a.png", noise_photo(0)).token_files[1]


def test_picture_is_encoded_and_deleted(tokenizer, drop):
    path = drop("holiday.png", noise_photo(3))
    kept = process_upload(tokenizer, path)
    assert isinstance(kept, EncodedPicture)
    assert kept.name == "holiday.png"
    assert np.array_equal(kept.original, tokenizer.encode("x", noise_photo(3)).original)
    assert not Path(path).exists()


@pytest.mark.parametrize("name", ["a.alit", "A.ALIT", "renamed.png", "without"])
def test_token_file_is_known_by_its_contents(tokenizer, drop, token_file, name):
    path = drop(name, token_file)
    kept = process_upload(tokenizer, path)
    assert isinstance(kept, DecodedFile)
    assert (kept.name, kept.token_file) == (name, token_file)
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"dear diary", "notes.txt is not a picture in a format that can be read"),
        ("empty.jpg", b"", "empty.jpg is empty"),
        ("foreign.alit", b"\x89PNG\r\n\x1a\n", "foreign.alit: this is no .alit file"),
        ("short.alit", b"ALIT\x01", "short.alit: the .alit file is truncated"),
        ("document.pdf", b"%PDF-1.7 ...", "document.pdf is not a picture"),
    ],
)
def test_anything_else_is_explained_and_deleted(tokenizer, drop, name, content, message):
    path = drop(name, content)
    with pytest.raises(UploadError) as error:
        process_upload(tokenizer, path)
    assert str(error.value).startswith(message)
    assert "drop in a picture" in str(error.value)
    assert str(Path(path).parent) not in str(error.value)
    assert not Path(path).exists()


def test_altered_token_file_is_never_a_picture(tokenizer, drop, token_file):
    content = bytearray(token_file.to_bytes())
    content[35] ^= 1
    path = drop("a.alit", bytes(content))
    with pytest.raises(UploadError, match=r"a\.alit: the \.alit file has been altered"):
        process_upload(tokenizer, path)
    assert not Path(path).exists()


def test_token_file_of_another_model_is_explained(make_tokenizer, drop, token_file):
    with pytest.raises(UploadError, match=r"a\.alit cannot be shown: the tokens were made by another model"):
        process_upload(make_tokenizer(num_decoder_layers=2), drop("a.alit", token_file))


def test_picture_that_is_too_large_is_refused_before_it_is_read(tokenizer, drop, monkeypatch):
    monkeypatch.setattr("alit_hf.demo.uploads.open_image", None)
    path = drop("wall.png", Image.new("1", (8000, 6000)))
    with pytest.raises(UploadError, match=r"wall\.png has 48 megapixels, at most 40 can be shown"):
        process_upload(tokenizer, path)
    assert not Path(path).exists()


def test_folder_in_place_of_an_upload_stays(tokenizer, tmp_path):
    with pytest.raises(UploadError, match="A folder cannot be shown"):
        process_upload(tokenizer, str(tmp_path))
    assert tmp_path.is_dir()


def test_token_file_of_a_huge_grid_is_explained(tokenizer, drop, token_file):
    rows, columns = tokenizer.model.config.grid_size
    large = dataclasses.replace(token_file, grid_size=(4 * rows, columns + 1))
    with pytest.raises(UploadError, match=f"its grid has {4 * rows} x {columns + 1} positions, here it may have"):
        process_upload(tokenizer, drop("large.alit", large))
    process_upload(tokenizer, drop("fits.alit", dataclasses.replace(token_file, grid_size=(4 * rows, columns))))


def test_upload_that_is_gone_is_explained(tokenizer, tmp_path):
    with pytest.raises(UploadError, match=r"late\.png has waited too long"):
        process_upload(tokenizer, str(tmp_path / "late.png"))
