"""What else the same bytes could hold: a thumbnail, or a file of JPEG, WebP or AVIF."""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features


BYTES_PER_PIXEL = 3


def thumbnail_size(width: int, height: int, num_bytes: int) -> tuple[int, int] | None:
    """
    Width and height of the largest thumbnail of 24 bits per pixel that fits into `num_bytes` and has the picture's
    aspect ratio up to rounding; `None` if not even one pixel fits.
    """
    num_pixels = num_bytes // BYTES_PER_PIXEL
    if num_pixels < 1:
        return None
    exact_width, exact_height = math.sqrt(num_pixels * width / height), math.sqrt(num_pixels * height / width)
    # One side is rounded up if the pixels allow it: a thumbnail with bytes left over would be too easy to beat.
    sizes = [
        (w, h)
        for w in {max(1, math.floor(exact_width)), math.ceil(exact_width)}
        for h in {max(1, math.floor(exact_height)), math.ceil(exact_height)}
        if w * h <= num_pixels
    ]
    if not sizes:  # so elongated that the short side is below one pixel
        sizes = [(num_pixels, 1) if width > height else (1, num_pixels)]
    return max(sizes, key=lambda size: (size[0] * size[1], size))


def thumbnail(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture reduced to `size` (width, height) and enlarged to its own size again, both bicubic."""
    small = picture.resize(size, Image.Resampling.BICUBIC)
    return small.resize(picture.size, Image.Resampling.BICUBIC)


class Codec(NamedTuple):
    """
    A file format that pictures are compared with.

    Args:
        label (`str`): its name for readers.
        feature (`str`): what Pillow calls it, see `PIL.features`.
        smallest (`tuple[dict, ...]`): settings of `Image.save`, one of which gives the smallest file.
    """

    label: str
    feature: str
    smallest: tuple[dict[str, Any], ...]

    @property
    def is_available(self) -> bool:
        """Whether this Pillow can write it."""
        return bool(features.check(self.feature))


CODECS = {
    "jpeg": Codec(
        "JPEG",
        "jpg",
        tuple(
            {"format": "JPEG", "quality": 1, "optimize": True, "progressive": progressive, "subsampling": "4:2:0"}
            for progressive in (False, True)
        ),
    ),
    "webp": Codec("WebP", "webp", ({"format": "WEBP", "quality": 0, "method": 6},)),
    # Speed 0 takes ten times as long as 4, for files that are no smaller on average.
    "avif": Codec("AVIF", "avif", ({"format": "AVIF", "quality": 0, "speed": 4, "subsampling": "4:2:0"},)),
}
"""By the names that results have for them."""

_REDUCED_QUALITIES = (1, 10, 25, 50)
_MIN_REDUCED_SIDE = 4


def smallest_file(picture: Image.Image, codec: Codec) -> tuple[Image.Image, int]:
    """The picture after the codec at Pillow's smallest setting, and the number of bytes."""
    smallest = min((_file(picture, setting) for setting in codec.smallest), key=len)
    return _open(smallest), len(smallest)


def fitting_files(picture: Image.Image, codec: Codec, budgets: Sequence[int]) -> list[tuple[Image.Image, int] | None]:
    """
    The best that the codec makes of each number of bytes: reduced, saved, opened and enlarged again (bicubic), at the
    size and quality of lowest L1 among those whose file fits.

    Sizes are the picture's own and each √2 smaller than the one before.

    Returns:
        for each of `budgets`, the picture and the bytes of its file; `None` if no file is that small.
    """
    original = np.asarray(picture, dtype=np.float32)
    made = []
    for quality in _REDUCED_QUALITIES:
        setting = {**codec.smallest[0], "quality": quality}
        for size in _reduced_sizes(picture):
            file = _file(picture.resize(size, Image.Resampling.BICUBIC), setting)
            if len(file) > max(budgets):
                break
            enlarged = _open(file).resize(picture.size, Image.Resampling.BICUBIC)
            made.append((float(np.abs(np.asarray(enlarged, dtype=np.float32) - original).mean()), len(file), enlarged))
    best = []
    for budget in budgets:
        fitting = [one for one in made if one[1] <= budget]
        _, num_bytes, enlarged = min(fitting, key=lambda one: one[:2], default=(None, None, None))
        best.append(None if enlarged is None else (enlarged, num_bytes))
    return best


def _reduced_sizes(picture: Image.Image) -> list[tuple[int, int]]:
    """Widths and heights, smallest first."""
    sizes, scale = [picture.size], 1.0
    while min(sizes[-1]) * math.sqrt(0.5) >= _MIN_REDUCED_SIDE:
        scale *= math.sqrt(0.5)
        sizes.append((round(picture.width * scale), round(picture.height * scale)))
    return sizes[::-1]


def _file(picture: Image.Image, setting: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, **setting)
    return stream.getvalue()


def _open(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


__all__ = ["BYTES_PER_PIXEL", "CODECS", "Codec", "fitting_files", "smallest_file", "thumbnail", "thumbnail_size"]
