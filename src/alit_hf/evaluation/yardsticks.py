"""What else the same bytes could hold: a thumbnail, and JPEG and WebP at their smallest."""

import io
import math

from PIL import Image


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


def smallest_jpeg(picture: Image.Image) -> tuple[Image.Image, int]:
    """The picture after JPEG at Pillow's smallest setting, and the number of bytes."""
    return _smallest(
        picture,
        [
            {"format": "JPEG", "quality": 1, "optimize": True, "progressive": progressive, "subsampling": "4:2:0"}
            for progressive in (False, True)
        ],
    )


def smallest_webp(picture: Image.Image) -> tuple[Image.Image, int]:
    """The picture after WebP at Pillow's smallest setting, and the number of bytes."""
    return _smallest(picture, [{"format": "WEBP", "quality": 0, "method": 6}])


def _smallest(picture: Image.Image, settings: list[dict]) -> tuple[Image.Image, int]:
    files = []
    for setting in settings:
        stream = io.BytesIO()
        picture.save(stream, **setting)
        files.append(stream.getvalue())
    smallest = min(files, key=len)
    return Image.open(io.BytesIO(smallest)).convert("RGB"), len(smallest)


__all__ = ["BYTES_PER_PIXEL", "smallest_jpeg", "smallest_webp", "thumbnail", "thumbnail_size"]
