"""Thumbnails, JPEG and WebP are as good as their bytes allow, or beating them would prove nothing."""

import io

import numpy as np
import pytest
from PIL import Image

from alit_hf.evaluation.yardsticks import smallest_jpeg, smallest_webp, thumbnail, thumbnail_size


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


@pytest.mark.parametrize(("compress", "format"), [(smallest_jpeg, "JPEG"), (smallest_webp, "WEBP")])
def test_no_quality_of_pillow_gives_fewer_bytes(picture, compress, format):
    made, num_bytes = compress(picture)
    assert (made.mode, made.size) == ("RGB", picture.size)
    options = [{"method": method} for method in (0, 4, 6)]
    if format == "JPEG":
        options = [{"optimize": o, "progressive": p, "subsampling": s} for o in (0, 1) for p in (0, 1) for s in (0, 2)]
    for quality in (1, 2, 5, 10):
        for option in options:
            stream = io.BytesIO()
            picture.save(stream, format, quality=quality, **option)
            assert len(stream.getvalue()) >= num_bytes, (quality, option)
    assert np.abs(np.asarray(made, float) - np.asarray(picture, float)).mean() > 1
