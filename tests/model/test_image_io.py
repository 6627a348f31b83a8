"""Real files of every kind are read as a person would expect, by their pixel values, or refused with a reason."""

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from alit_hf.model import image_io
from alit_hf.model.image_io import open_image, to_rgb, to_uint8, upright_size


WHITE, BLACK, RED, GREEN, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def photo() -> np.ndarray:
    """(40, 56, 3) uint8: smooth colours with a little noise, no symmetry of any kind."""
    y, x = np.mgrid[:40, :56]
    smooth = np.stack([4 * x, 6 * y, 255 - 2 * x - 2 * y], axis=-1)
    return (smooth + np.random.default_rng(0).integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def grey(*levels: int) -> list[list[list[int]]]:
    return [[[level] * 3 for level in levels]]


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def png(width: int, height: int, colour_type: int, depth: int, rows: bytes, transparency: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", transparency) if transparency else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# Formats and sources


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp", "a.tga"])
def test_lossless_colour_files_come_back_exactly(tmp_path, photo, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, Image.fromarray(photo), **options)
    np.testing.assert_array_equal(pixels(open_image(path)), photo)


def test_all_kinds_of_sources_read_alike(tmp_path, photo):
    path = save(tmp_path / "a.png", Image.fromarray(photo))
    data = path.read_bytes()

    class Pipe:
        def __init__(self):
            self.read = io.BytesIO(data).read

    for source in (path, str(path), data, bytearray(data), io.BytesIO(data), Pipe()):
        np.testing.assert_array_equal(pixels(open_image(source)), photo)


def test_an_open_file_is_rewound_and_left_open(tmp_path, photo):
    path = save(tmp_path / "a.png", Image.fromarray(photo))
    with path.open("rb") as file:
        file.seek(20)
        first = open_image(file)
        assert not file.closed
        second = open_image(file)
    np.testing.assert_array_equal(pixels(first), photo)
    np.testing.assert_array_equal(pixels(second), photo)


def test_the_image_is_independent_of_the_file(tmp_path, photo):
    path = save(tmp_path / "a.bmp", Image.fromarray(photo))
    image = open_image(path)
    path.write_bytes(b"")
    np.testing.assert_array_equal(pixels(image), photo)


@pytest.mark.parametrize("inverted", [True, False], ids=["adobe", "plain"])
def test_cmyk_jpeg(tmp_path, inverted):
    # Cyan, magenta, yellow, white, black and half-grey ink in 16-pixel blocks.
    inks = [(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 128)]
    expected = [(0, 255, 255), (255, 0, 255), (255, 255, 0), WHITE, BLACK, (127, 127, 127)]
    blocks = np.repeat(np.repeat(np.array([inks], np.uint8), 16, axis=1), 16, axis=0)
    path = save(tmp_path / "a.jpg", Image.frombytes("CMYK", (96, 16), blocks.tobytes()), quality=95)
    data = path.read_bytes()
    assert b"Adobe" in data  # Pillow writes what Photoshop writes: inverted inks and the marker that says so
    if not inverted:
        at = data.index(b"Adobe") - 4
        path.write_bytes(data[:at] + data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] :])
    image = pixels(open_image(path))
    # Without the marker a reader cannot know; Pillow takes the files that it meets in practice, inverted ones.
    np.testing.assert_allclose(image[8, 8::16], expected, atol=4)


def test_palette_files(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([2, 0, 1])
    for name in ("a.png", "a.gif", "a.bmp"):
        assert pixels(open_image(save(tmp_path / name, image))).tolist() == [[[*BLUE], [*RED], [*GREEN]]]


def test_palette_png_with_partial_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    path = save(tmp_path / "a.png", image, transparency=bytes([255, 0, 51]))
    assert pixels(open_image(path)).tolist() == [[[*RED], [*WHITE], [204, 204, 255]]]


def test_gif_with_transparent_index(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    path = save(tmp_path / "a.gif", image, transparency=1)
    assert pixels(open_image(path)).tolist() == [[[*RED], [*WHITE]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_is_composited_over_white(tmp_path, mode, name):
    colour = (200, 100, 0) if mode == "RGBA" else (100,)
    image = Image.new(mode, (4, 1))
    alphas = [255, 0, 128, 51]
    image.putdata([(*colour, alpha) for alpha in alphas])
    path = save(tmp_path / name, image, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    expected = [[round((c * a + 255 * (255 - a)) / 255) for c in np.broadcast_to(colour, 3)] for a in alphas]
    np.testing.assert_array_equal(pixels(open_image(path)), [expected])


def test_one_bit_files(tmp_path):
    image = Image.new("1", (3, 1))
    image.putdata([255, 0, 255])
    for name in ("a.png", "a.tif", "a.pbm", "a.bmp"):
        assert pixels(open_image(save(tmp_path / name, image))).tolist() == grey(255, 0, 255)


def test_grey_jpeg(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("L", (9, 7), 77))
    assert np.unique(pixels(open_image(path))).tolist() == [77]


# 0, 128/257 and 129/257 of a level, mid-grey, white. Cutting off the low byte would miss the third and fourth.
SIXTEEN_BIT = np.array([[0, 128, 129, 32767, 32768, 65407, 65535]], np.uint16)
SIXTEEN_BIT_LEVELS = grey(0, 0, 1, 127, 128, 255, 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_files_are_scaled(tmp_path, name):
    path = save(tmp_path / name, Image.fromarray(SIXTEEN_BIT))
    assert pixels(open_image(path)).tolist() == SIXTEEN_BIT_LEVELS


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_a_dark_16_bit_file_stays_dark(tmp_path, name):
    path = save(tmp_path / name, Image.fromarray(np.array([[0, 100, 255, 514]], np.uint16)))
    assert pixels(open_image(path)).tolist() == grey(0, 0, 1, 2)


def test_16_bit_big_endian_tiff(tmp_path):
    path = save(tmp_path / "a.tif", Image.frombytes("I;16B", (7, 1), SIXTEEN_BIT.astype(">u2").tobytes()))
    assert path.read_bytes()[:2] == b"MM"
    assert pixels(open_image(path)).tolist() == SIXTEEN_BIT_LEVELS


def test_16_bit_png_with_transparent_grey():
    rows = b"\0" + np.array([[0, 1000, 65535]], ">u2").tobytes()
    assert pixels(open_image(png(3, 1, 0, 16, rows, struct.pack(">H", 1000)))).tolist() == grey(0, 255, 255)


@pytest.mark.parametrize(("colour_type", "values"), [(2, [65535, 32896, 0]), (6, [65535, 32896, 0, 65535])])
def test_16_bit_colour_png(colour_type, values):
    rows = b"\0" + np.array(values, ">u2").tobytes()
    assert pixels(open_image(png(1, 1, colour_type, 16, rows))).tolist() == [[[255, 128, 0]]]


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_float_tiff_is_scaled_by_its_range(tmp_path, white):
    values = np.array([[0, 0.2, 0.5, 1]], np.float32) * white
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    assert pixels(open_image(path)).tolist() == grey(0, 51, 128, 255)


@pytest.mark.parametrize("white", [255, 65535])
def test_32_bit_integer_tiff_is_scaled_by_its_range(tmp_path, white):
    values = np.array([[0, white // 5, white]], np.int32)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    assert pixels(open_image(path)).tolist() == grey(0, 51, 255)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1.5, 300.0, 1e6])
def test_float_tiff_of_unknown_scale_is_refused(tmp_path, value):
    path = save(tmp_path / "strange.tif", Image.fromarray(np.array([[0, value]], np.float32)))
    with pytest.raises(ValueError, match=r"strange\.tif: pixel values"):
        open_image(path)


# For every EXIF orientation, how a camera that was held that way stored the upright picture.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_orientation_is_applied(tmp_path, photo, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {"quality": 98, "subsampling": 0}
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](photo)))
    path = save(tmp_path / name, stored, exif=exif, **options)
    image = open_image(path)
    assert image.size == (56, 40)
    np.testing.assert_allclose(pixels(image), photo, atol=12 if name.endswith("jpg") else 0)
    np.testing.assert_array_equal(pixels(to_rgb(image)), pixels(image))  # not turned twice


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_the_size_is_that_of_the_upright_picture(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / name, Image.new("RGB", (56, 40)), exif=exif)
    assert upright_size(path) == open_image(path).size


def test_exif_orientation_of_a_16_bit_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", Image.fromarray(SIXTEEN_BIT[:, 3:6]), exif=exif)
    np.testing.assert_array_equal(pixels(open_image(path))[:, 0, 0], [127, 128, 255])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1"]
)
def test_unreadable_exif_does_not_spoil_a_good_picture(tmp_path, exif):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (16, 8), (10, 120, 200)), exif=exif)
    np.testing.assert_allclose(pixels(open_image(path)), np.broadcast_to((10, 120, 200), (8, 16, 3)), atol=3)


@pytest.mark.parametrize("ending", ["png", "webp"])
@pytest.mark.parametrize("exif", [b"garbage!", b"II+\0" + b"\xff" * 40])
def test_exif_that_is_no_tiff_does_not_either(tmp_path, ending, exif):
    options = {"lossless": True} if ending == "webp" else {}
    path = save(tmp_path / f"a.{ending}", Image.new("RGB", (16, 8), RED), exif=exif, **options)
    np.testing.assert_array_equal(pixels(open_image(path)), np.broadcast_to(RED, (8, 16, 3)))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_several_frames_the_first_is_read(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    assert Image.open(path).n_frames == 3
    assert np.unique(pixels(open_image(path)).reshape(-1, 3), axis=0).tolist() == [[*RED]]


def test_the_smallest_picture(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    assert pixels(open_image(path)).tolist() == [[[1, 2, 3]]]


def test_a_very_wide_picture(tmp_path):
    columns = (np.arange(10000) % 251).astype(np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(np.repeat(columns[None], 20, axis=0)))
    image = pixels(open_image(path))
    assert image.shape == (20, 10000, 3)
    np.testing.assert_array_equal(image[7, :, 1], columns)


# What is refused


@pytest.fixture
def undecoded(monkeypatch):
    """Fails the test if anything is decoded."""

    def load(self):
        raise AssertionError("decoded before the size was checked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif", "a.bmp"])
def test_the_size_of_most_files_needs_no_decoding(tmp_path, undecoded, name):
    path = save(tmp_path / name, Image.new("RGB", (56, 40)))
    assert upright_size(path) == upright_size(path.read_bytes()) == (56, 40)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10001, 13000, 50000])
@pytest.mark.parametrize("pillow_limit", [Image.MAX_IMAGE_PIXELS, None], ids=["pillow guards", "pillow unguarded"])
def test_decompression_bombs_are_refused_by_their_header(tmp_path, monkeypatch, undecoded, side, pillow_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 0, 1, b""))
    assert path.stat().st_size < 100
    with pytest.raises(ValueError, match=r"bomb\.png is refused as a decompression bomb"):
        open_image(path)


def test_the_limit_counts_pixels_and_is_inclusive(monkeypatch):
    monkeypatch.setattr(image_io, "MAX_IMAGE_PIXELS", 100)
    files = {}
    for size in ((10, 10), (100, 1), (101, 1), (10, 11)):
        buffer = io.BytesIO()
        Image.new("L", size).save(buffer, "PNG")
        files[size] = buffer.getvalue()
    assert open_image(files[10, 10]).size == (10, 10)
    assert open_image(files[100, 1]).size == (100, 1)
    for size in ((101, 1), (10, 11)):
        with pytest.raises(ValueError, match=f"{size[0]} × {size[1]} pixels, more than 100"):
            open_image(files[size])


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF"])
def test_truncated_files_are_refused(tmp_path, photo, kind):
    path = save(tmp_path / "whole", Image.fromarray(photo), format=kind)
    data = path.read_bytes()
    cut = tmp_path / "cut.img"
    for part in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95):
        cut.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ValueError, match=r"cut\.img is (truncated or corrupt|corrupt|not a picture)"):
            open_image(cut)


def test_any_flipped_bit_of_a_png_is_noticed_or_harmless(photo):
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    data, rng = buffer.getvalue(), np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(data), 200):
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        try:
            image = open_image(bytes(broken))
        except ValueError:
            refused += 1
        else:
            np.testing.assert_array_equal(pixels(image), photo)
    assert refused > 150


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is not a picture"),
        (b"<html><body>404</body></html>", "is not a picture"),
        (b"%PDF-1.7\n1 0 obj", "is not a picture"),
        (bytes(5000), "is not a picture"),
        (b"\x89PNG\r\n\x1a\n", "is (not a picture|corrupt)"),
        (b"\xff\xd8\xff\xe0", "is (not a picture|corrupt)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "is a PostScript program"),
    ],
)
def test_other_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "file.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"file\.jpg {reason}"):
        open_image(path)


def test_bytes_and_streams_are_named_in_errors():
    with pytest.raises(ValueError, match="<4 bytes> is not a picture"):
        open_image(b"text")
    with pytest.raises(ValueError, match="<BytesIO> is not a picture"):
        open_image(io.BytesIO(b"text"))


@pytest.mark.timeout(20)
def test_directories_missing_files_and_what_never_ends(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        open_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("self.png", tmp_path / "self.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match=f"{path} is a pipe, socket or device"):
            open_image(path)
    with pytest.raises(OSError, match="Too many levels"):
        open_image(tmp_path / "self.png")
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "missing.png")


def test_wrong_sources(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("text")
    with path.open() as file, pytest.raises(ValueError, match=r"text\.png is open as text"):
        open_image(file)
    with pytest.raises(TypeError, match="source must be a path, bytes or a binary file object, got int"):
        open_image(7)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_threads_do_not_disturb_each_other_or_pillow(tmp_path, photo):
    good = save(tmp_path / "good.png", Image.fromarray(photo)).read_bytes()
    bomb = png(10001, 10001, 0, 1, b"")
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES

    def read(i: int) -> bool:
        try:
            image = open_image([good, bomb, good[:-60]][i % 3])
        except ValueError:
            return i % 3 > 0
        return i % 3 == 0 and np.array_equal(np.asarray(image), photo)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(120)))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


# Images at hand


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "YCbCr", "HSV", "CMYK"])
def test_opaque_colour_modes(photo, mode):
    image = Image.fromarray(photo).convert(mode)
    np.testing.assert_allclose(pixels(to_rgb(image)), photo, atol=0 if mode in ("RGB", "RGBX", "CMYK") else 8)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_alpha_modes(mode):
    base = {"RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    image = Image.new(base, (2, 1))
    if mode == "PA":
        image.putpalette([0, 0, 0, 40, 40, 40])
        image.putdata([(1, 255), (1, 0)])
    else:
        image.putdata([(40, 40, 40, alpha) if base == "RGBA" else (40, alpha) for alpha in (255, 0)])
    assert pixels(to_rgb(image.convert(mode))).tolist() == grey(40, 255)


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")])
def test_16_bit_modes(mode, dtype):
    image = Image.frombytes(mode, (7, 1), SIXTEEN_BIT.astype(dtype).tobytes())
    assert pixels(to_rgb(image)).tolist() == SIXTEEN_BIT_LEVELS


def test_colour_with_a_transparent_colour():
    image = Image.new("RGB", (2, 1))
    image.putdata([RED, BLUE])
    image.info["transparency"] = BLUE
    assert pixels(to_rgb(image)).tolist() == [[[*RED], [*WHITE]]]


def test_the_given_image_is_not_changed(photo):
    image = Image.fromarray(photo)
    image.getexif()[0x0112] = 6
    turned = to_rgb(image)
    assert turned.size == (40, 56)
    assert image.size == (56, 40)
    assert image.getexif()[0x0112] == 6
    plain = Image.fromarray(photo)
    to_rgb(plain).putpixel((0, 0), BLUE)
    np.testing.assert_array_equal(pixels(plain), photo)


# Scales of pixel values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 7, 255], np.uint8), [0, 7, 255]),
        (np.array([False, True]), [0, 255]),
        (np.array([0, 255, 257, 65535], np.uint16), [0, 1, 1, 255]),
        (np.array([0, 1, 255], np.int64), [0, 1, 255]),
        (np.array([0, 257, 65535], np.int64), [0, 1, 255]),
        (np.array([0, 300], np.int32), [0, 1]),
        (np.array([0.0, 0.5, 1.0], np.float16), [0, 128, 255]),
        (np.array([-0.001, 1.001]), [0, 255]),
        (np.array([0.0, 2.6, 254.4]), [0, 3, 254]),
        (np.array([0.0, 600.0, 65535.0]), [0, 2, 255]),
        (np.zeros(2), [0, 0]),
    ],
)
def test_to_uint8_scales_by_dtype_and_range(values, expected):
    levels = to_uint8(values)
    assert levels.dtype == np.uint8
    assert levels.tolist() == expected


def test_to_uint8_gives_back_every_level():
    levels = np.arange(256, dtype=np.uint8)
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(to_uint8((levels / 255).astype(dtype)), levels)
        np.testing.assert_array_equal(to_uint8(levels.astype(dtype)), levels)
    np.testing.assert_array_equal(to_uint8(levels.astype(np.uint16) * 257), levels)


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, np.nan]),
        np.array([0, -np.inf]),
        np.array([-1.0, 1.0]),
        np.array([-0.01, 0.5]),
        np.array([0.0, 1.02]),
        np.array([0.0, 256.0]),
        np.array([0.0, 70000.0]),
        np.array([-1, 100]),
        np.array([0, 70000]),
        np.array([1j]),
        np.array(["a"]),
        np.zeros((0, 3)),
    ],
)
def test_to_uint8_refuses_values_without_a_scale(values):
    with pytest.raises(ValueError, match="pixel"):
        to_uint8(values)
