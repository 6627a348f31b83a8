"""Thumbnails, JPEG, WebP and AVIF are as good as their bytes allow, or beating them would prove nothing."""

import io

import numpy as np
import pytest
from PIL import Image, features

from alit_hf.evaluation.yardsticks import CODECS, fitting_files, smallest_file, thumbnail, thumbnail_size


@pytest.fixture
def picture() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((128, 96), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("width", "height", "num_bytes", "expected"),
    [
        (256, 256, 48, (4, 4)),
        (256, 256, 192, (8, 8)),
        (256, 256, 363, (11, 11)),
        (256, 256, 362, (11, 10)),  # one pixel short of a square
        (256, 256, 96, (6, 5)),
        (192, 256, 144, (6, 8)),
        (256, 192, 144, (8, 6)),
        (256, 256, 3, (1, 1)),
        (1000, 10, 30, (10, 1)),
        (256, 256, 2, None),
    ],
)
def test_size_of_a_thumbnail(width, height, num_bytes, expected):
    assert thumbnail_size(width, height, num_bytes) == expected


@pytest.mark.parametrize("shape", [(256, 256), (320, 200), (100, 900)])
def test_a_thumbnail_never_takes_more_and_hardly_less(shape):
    for num_bytes in range(30, 500, 7):
        width, height = thumbnail_size(*shape, num_bytes)
        assert 3 * width * height <= num_bytes
        # Neither side could be longer by two.
        assert 3 * (width + 2) * (height + 2) > num_bytes


def test_thumbnail_is_bicubic_both_ways(picture):
    made = thumbnail(picture, (8, 6))
    assert made.size == picture.size
    bicubic = Image.Resampling.BICUBIC
    np.testing.assert_array_equal(made, picture.resize((8, 6), bicubic).resize((128, 96), bicubic))
    assert np.abs(np.asarray(made, float) - np.asarray(picture, float)).mean() < 30


AVAILABLE = [name for name, codec in CODECS.items() if codec.is_available]


def test_a_codec_is_available_if_pillow_has_it(monkeypatch):
    assert {"jpeg", "webp"} <= set(AVAILABLE)
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    assert {name: codec.is_available for name, codec in CODECS.items()} == {"jpeg": True, "webp": True, "avif": False}


@pytest.mark.parametrize("name", AVAILABLE)
def test_no_quality_of_pillow_gives_fewer_bytes(picture, name):
    made, num_bytes = smallest_file(picture, CODECS[name])
    assert (made.mode, made.size) == ("RGB", picture.size)
    options = {
        "jpeg": [{"optimize": o, "progressive": p, "subsampling": s} for o in (0, 1) for p in (0, 1) for s in (0, 2)],
        "webp": [{"method": method} for method in (0, 4, 6)],
        # Speeds trade bytes for time, a few in either direction.
        "avif": [{"speed": 4, "subsampling": subsampling} for subsampling in ("4:2:0", "4:4:4")],
    }
    for quality in (1, 2, 5, 10):
        for option in options[name]:
            stream = io.BytesIO()
            picture.save(stream, CODECS[name].smallest[0]["format"], quality=quality, **option)
            assert len(stream.getvalue()) >= num_bytes, (quality, option)
    assert difference(made, picture) > 1


@pytest.mark.parametrize("name", AVAILABLE)
def test_fitting_files_fit_and_get_better_with_bytes(picture, name):
    budgets = [20, 340, 420, 600, 900]
    files = fitting_files(picture, CODECS[name], budgets)
    assert files[0] is None
    errors = []
    for budget, file in zip(budgets[2:], files[2:], strict=True):
        made, num_bytes = file
        assert (made.mode, made.size) == ("RGB", picture.size)
        assert num_bytes <= budget
        errors.append(difference(made, picture))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_a_fitting_file_is_the_best_of_sizes_and_qualities(picture):
    (file,) = fitting_files(picture, CODECS["webp"], [200])
    errors = []
    for quality in (1, 10, 25, 50):
        for step in range(10):
            size = tuple(round(side * 0.5 ** (step / 2)) for side in picture.size)
            stream = io.BytesIO()
            picture.resize(size, Image.Resampling.BICUBIC).save(stream, "WEBP", quality=quality, method=6)
            if min(size) >= 4 and len(stream.getvalue()) <= 200:
                made = Image.open(stream).convert("RGB").resize(picture.size, Image.Resampling.BICUBIC)
                errors.append(difference(made, picture))
    assert len(errors) > 8
    assert difference(file[0], picture) == pytest.approx(min(errors), abs=1e-4)


def difference(one: Image.Image, other: Image.Image) -> float:
    return np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean()
