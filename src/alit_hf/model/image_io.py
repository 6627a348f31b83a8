"""Pictures as people have them (any mode, depth, orientation, file format) turned into 8-bit RGB.

Needs Pillow and NumPy only: the image processor takes this file along when it is copied to the Hub.
"""

import functools
import importlib
import importlib.util
import io
import math
import os
import stat
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError


MAX_IMAGE_PIXELS = 100_000_000
"""Width × height above which a file is refused as a decompression bomb, before anything is decoded."""

MAX_STREAM_BYTES = 2**30
"""Bytes above which what cannot be read again, such as a pipe, is refused: it might never end."""

# Modules of other packages that register formats when they are imported: HEIF, JPEG XL, JPEG-LS.
_PILLOW_PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl", "pillow_jpls")

# PostScript is a program, and Pillow has no decoder for MPEG.
_NO_PICTURES = {"EPS", "MPEG"}


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the formats that [`open_image`] reads: those of Pillow and of installed plugins."""
    _load_plugins()
    Image.init()
    # Stubs only recognise a format.
    stubs = {
        name
        for name, (kind, _) in Image.OPEN.items()
        if isinstance(kind, type) and issubclass(kind, ImageFile.StubImageFile)
    }
    # Pillow reads the pictures of cameras with several lenses (MPO) as JPEG.
    readable = {*Image.OPEN, "MPO"} - stubs - _NO_PICTURES
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


@functools.cache
def _load_plugins() -> None:
    for module in _PILLOW_PLUGINS:
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            importlib.import_module(module)


def open_file(path: str | os.PathLike) -> IO[bytes]:
    """
    Opens a file for reading, and nothing that could wait for ever or never end.

    Raises:
        ValueError: the path is a directory, pipe, socket or device.
        OSError: it cannot be opened (FileNotFoundError, PermissionError).
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{os.fspath(path)} is {kind}, not a file")
    return open(path, "rb")


def open_image(source: str | Path | bytes | IO[bytes]) -> Image.Image:
    """Read a picture file as an upright 8-bit RGB image, by the rules of [`to_rgb`].

    Of a file with several pictures (animated GIF, WebP, APNG or AVIF, multi-page TIFF) the first one is read, of an
    icon the largest.

    Args:
        source (`str`, `Path`, `bytes` or binary file object):
            A path, the bytes of a file, or an open file. An open file is read from its start if it can go back there,
            and is left open.

    Returns:
        `PIL.Image.Image`: mode "RGB", fully loaded, independent of the file.

    Raises:
        FileNotFoundError, PermissionError: a path that does not exist or may not be read.
        ValueError: the message names the file and the reason. A directory, pipe, socket or device; an empty file; not
            a picture, or in a format that neither Pillow nor an installed plugin reads; a truncated or corrupt
            picture; one that declares more than `MAX_IMAGE_PIXELS` (a decompression bomb); a PostScript program; pixel
            values without a known scale.
        TypeError: `source` is none of the above.
    """
    if isinstance(source, (bytes, bytearray)):
        return _decode(io.BytesIO(source), f"<{len(source)} bytes>")
    if isinstance(source, (str, os.PathLike)):
        # Opened here and not by Pillow, so that only errors of the file system itself stay OSErrors.
        with open_file(source) as stream:
            return _decode(stream, os.fspath(source))
    if not hasattr(source, "read"):
        raise TypeError(f"source must be a path, bytes or a binary file object, got {type(source).__name__}")
    name = str(getattr(source, "name", f"<{type(source).__name__}>"))
    try:
        source.seek(0)
    except (AttributeError, io.UnsupportedOperation):  # a pipe or a network response
        contents = source.read(MAX_STREAM_BYTES + 1)
        if len(contents) > MAX_STREAM_BYTES:
            raise ValueError(f"{name} does not end after {MAX_STREAM_BYTES} bytes, which no picture needs") from None
        source = io.BytesIO(contents)
    return _decode(source, name)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture at hand to an upright 8-bit RGB image, as a viewer would show it on a white page.

    - The EXIF orientation is applied (and taken off, so that a second call changes nothing).
    - Transparency of any kind (RGBA, LA, premultiplied, palette, a transparent colour) is composited over white.
    - Grey, 1-bit, palette, YCbCr, HSV, LAB and CMYK are converted by Pillow. Colour profiles are not applied.
    - 16-bit grey is scaled from [0, 65535]; 32-bit integer and float grey by the rules of [`to_uint8`].

    Args:
        image (`PIL.Image.Image`): of any mode. Of an animated one, the frame that it stands on is converted.

    Returns:
        `PIL.Image.Image`: a new image of mode "RGB".

    Raises:
        ValueError: pixel values without a known scale, see [`to_uint8`].
        OSError: a lazily opened `image` whose file is truncated ([`open_image`] makes a `ValueError` of it).
    """
    # 16-bit PGM comes as 32-bit integers that Pillow has already scaled to [0, 65535]. Asked before anything else,
    # because only the opened file knows its format.
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    image = _upright(image)

    if sixteen_bit or image.mode in ("I", "F"):
        values = np.asarray(image)
        grey = to_uint8(values.astype(np.uint16) if sixteen_bit else values)
        transparent = image.info.get("transparency")
        if transparent is not None:
            grey = np.where(values == transparent, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")

    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")  # Pillow knows no direct way from La to RGBA
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image)
        return page
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # What Pillow raises for broken EXIF differs by format. A picture without a readable orientation is as it is.
        return image


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale pixel values of any dtype to 8 bits, without guessing where a picture could come out black or white.

    What counts as white follows from the dtype or, where that says nothing, from the largest value:

    | dtype | white |
    |---|---|
    | uint8 | 255 (returned as it is) |
    | bool | True |
    | uint16 | 65535 |
    | other integers | 255 if no value is larger, else 65535 |
    | floats | 1, else 255, else 65535: the first that no value exceeds |

    Values up to half an 8-bit level outside the range are rounding noise and are clipped.

    Args:
        values (`np.ndarray`): of any shape, at least one element.

    Returns:
        `np.ndarray`: uint8, of the same shape.

    Raises:
        ValueError: no values; NaN or infinite values; negative ones (pictures normalised to [-1, 1] or by mean and
            deviation); values above 65535; floats whose largest value lies between 1 and 2 or between 255 and 510,
            which is either a range that is overshot or an almost black picture of the next one; other dtypes.
    """
    if values.size == 0:
        raise ValueError(f"an array of shape {values.shape} has no pixels")
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        white = 65535
    elif np.issubdtype(values.dtype, np.integer):
        white = _white(values, scales=(255, 65535))
    elif np.issubdtype(values.dtype, np.floating):
        white = _white(values, scales=(1, 255, 65535))
    else:
        raise ValueError(f"pixel values have dtype {values.dtype}; integers, floats and booleans are allowed")
    return np.rint(values.astype(np.float32) * np.float32(255 / white)).clip(0, 255).astype(np.uint8)


def _white(values: np.ndarray, scales: tuple[int, ...]) -> int:
    low, high = float(values.min()), float(values.max())
    allowed = ", ".join(f"[0, {scale}]" for scale in scales)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"pixel values hold NaN or infinity; allowed are finite values in {allowed}")
    for scale, previous in zip(scales, (0, *scales), strict=False):
        half_level = scale / 510
        if high < scale + half_level:
            ambiguous = values.dtype.kind == "f" and high < 2 * previous
            if low > -half_level and not ambiguous:
                return scale
            break
    raise ValueError(f"pixel values run from {low:g} to {high:g}, which fits none of {allowed}: rescale or clip them")


def _decode(stream: IO[bytes], name: str) -> Image.Image:
    start = stream.read(1)
    if isinstance(start, str):
        raise ValueError(f"{name} is open as text; open it in binary mode")
    if not start:
        raise ValueError(f"{name} is empty")

    _load_plugins()
    # Corrupt files make Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error, RuntimeError, …).
    try:
        image = Image.open(stream)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture in a format that can be read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is refused as a decompression bomb: {error}") from error
    except Exception as error:
        raise ValueError(f"{name} is corrupt: {error}") from error

    with image:
        if image.format == "EPS":
            # Pillow would hand it to Ghostscript, which runs it.
            raise ValueError(f"{name} is a PostScript program, not a picture")
        # Pillow itself only warns up to twice its own limit, and both can be switched off for the whole process.
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise ValueError(
                f"{name} is refused as a decompression bomb: it declares {image.width} × {image.height} pixels, "
                f"more than {MAX_IMAGE_PIXELS}"
            )
        try:
            image.load()
        except Exception as error:
            raise ValueError(f"{name} is truncated or corrupt: {error}") from error
        try:
            return to_rgb(image)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
