"""Pictures become the pixels that the model was made for, whatever they come as, and pixels become pictures again."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_config import tiny_config, tiny_model
from transformers.image_processing_backends import PilBackend

from alit_hf.model.image_processing_alit import ALITImageProcessor


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Colour gradients with strong noise, which shows every difference in resampling."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x / width, y / height, (x + y) / (height + width)], axis=-1) * 255
    noise = np.random.default_rng(seed).integers(-60, 61, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def by_hand(image: Image.Image, resized: tuple[int, int], crop: tuple[int, int]) -> np.ndarray:
    """(3, *crop) levels: bicubic resize to (height, width) `resized` and centre crop, by Pillow alone."""
    top, left = (resized[0] - crop[0]) // 2, (resized[1] - crop[1]) // 2
    whole = image.resize(resized[::-1], Image.Resampling.BICUBIC)
    return np.asarray(whole.crop((left, top, left + crop[1], top + crop[0]))).transpose(2, 0, 1)


def levels(pixel_values: torch.Tensor) -> np.ndarray:
    """The 8-bit levels behind `pixel_values`, which must be exactly those divided by 255."""
    rounded = torch.round(pixel_values * 255)
    torch.testing.assert_close(pixel_values, (rounded.double() / 255).float(), rtol=0, atol=6e-8)
    return rounded.numpy().astype(int)


@pytest.fixture
def processor() -> ALITImageProcessor:
    return ALITImageProcessor()


@pytest.fixture
def small() -> ALITImageProcessor:
    return ALITImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


# Geometry


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((300, 400), (256, 341)),
        ((401, 300), (342, 256)),
        ((257, 999), (256, 995)),
        ((256, 256), (256, 256)),
        ((90, 71), (324, 256)),
        ((1, 1), (256, 256)),
    ],
)
def test_pixels_equal_a_direct_computation(processor, size, resized):
    image = picture(*size)
    pixel_values = processor(image, return_tensors="pt").pixel_values
    assert pixel_values.dtype == torch.float32
    assert pixel_values.shape == (1, 3, 256, 256)
    np.testing.assert_array_equal(levels(pixel_values)[0], by_hand(image, resized, (256, 256)))


def test_pixels_equal_those_of_transformers(processor):
    class Stock(PilBackend):
        resample = Image.Resampling.BICUBIC
        size = {"shortest_edge": 256}
        crop_size = {"height": 256, "width": 256}
        default_to_square = False
        do_resize = do_center_crop = do_rescale = do_convert_rgb = True

    images = [picture(301, 403), picture(500, 333, seed=1), picture(40, 41, seed=2)]
    ours, theirs = (p(images, return_tensors="np").pixel_values for p in (processor, Stock()))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(20, 10000), (10000, 20), (60, 4001), (4001, 60), (600, 10001), (3, 900)])
def test_elongated_pictures_equal_a_direct_computation(processor, size):
    image = picture(*size)
    height, width = size
    resized = (256, 256 * width // height) if height < width else (256 * height // width, 256)
    ours = levels(processor(image, return_tensors="pt").pixel_values)[0]
    difference = np.abs(ours - by_hand(image, resized, (256, 256)))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_the_longest_pictures_take_little_memory(processor):
    # Resized as a whole this would be 2 560 000 × 256 pixels, 2 GB.
    image = Image.new("RGB", (100000, 10), "white")
    image.paste((255, 0, 0), (0, 0, 50000, 10))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixel_values = processor(image, return_tensors="pt").pixel_values
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB
    # The edge between red and white is in the middle; one source pixel is 25.6 wide here.
    green = pixel_values[0, 1]
    assert green[:, :90].max() == 0
    assert green[:, 166:].min() == 1
    assert green[100, 127] < 0.5 < green[100, 128]


def test_without_a_crop_the_aspect_ratio_is_kept(processor):
    pixel_values = processor(picture(300, 400), do_center_crop=False, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 256, 341)


@pytest.mark.parametrize("size", [(160, 120), (120, 160), (33, 32), (640, 480)])
def test_without_a_crop_sides_are_multiples_of_the_divisor(size):
    processor = ALITImageProcessor.for_config(tiny_config())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    pixels = processor(picture, do_center_crop=False, return_tensors="pt").pixel_values[0]
    whole = processor(picture, do_center_crop=False, size_divisor=None, return_tensors="pt").pixel_values[0]
    height, width = (side // 4 * 4 for side in whole.shape[1:])
    assert pixels.shape == (3, height, width)
    top, left = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 2
    torch.testing.assert_close(pixels, whole[:, top : top + height, left : left + width])
    code = tiny_model().encode(pixels[None], num_tokens=3, interpolate_pos_encoding=True)
    assert code.grid_size == (height // 4, width // 4)


def test_the_divisor_is_saved_with_the_processor(tmp_path):
    ALITImageProcessor.for_config(tiny_config()).save_pretrained(str(tmp_path))
    assert ALITImageProcessor.from_pretrained(str(tmp_path)).size_divisor == 4


@pytest.mark.parametrize("divisor", [0, -4])
def test_impossible_divisors(processor, divisor):
    with pytest.raises(ValueError, match="size_divisor"):
        processor(Image.new("RGB", (300, 300)), size_divisor=divisor, return_tensors="pt")


def test_without_a_crop_an_elongated_picture_is_refused(processor):
    with pytest.raises(ValueError, match="100000 × 10 pixels would become 2560000 × 256"):
        processor(Image.new("RGB", (100000, 10)), do_center_crop=False)


@pytest.mark.parametrize(
    ("crop", "size", "resized"),
    [
        ((32, 64), (50, 50), (64, 64)),
        ((32, 64), (100, 50), (128, 64)),
        ((32, 64), (50, 75), (42, 64)),
        ((32, 64), (50, 400), (32, 256)),
        ((64, 32), (50, 50), (64, 64)),
        ((48, 32), (40, 41), (48, 49)),
    ],
)
def test_a_crop_that_is_not_square_is_covered(crop, size, resized):
    processor = ALITImageProcessor(size={"shortest_edge": min(crop)}, crop_size={"height": crop[0], "width": crop[1]})
    image = picture(*size)
    ours = levels(processor(image, return_tensors="pt").pixel_values)[0]
    np.testing.assert_array_equal(ours, by_hand(image, resized, crop))
    white = processor(Image.new("RGB", size[::-1], "white"), return_tensors="pt").pixel_values
    assert white.min() == 1


def test_every_crop_is_covered_exactly():
    rng = np.random.default_rng(0)
    for _ in range(200):
        crop, size = rng.integers(1, 40, 2).tolist(), rng.integers(1, 60, 2).tolist()
        processor = ALITImageProcessor(
            size={"shortest_edge": int(rng.integers(1, 60))}, crop_size={"height": crop[0], "width": crop[1]}
        )
        white = processor(Image.new("RGB", size, "white"), return_tensors="np").pixel_values
        assert white.shape == (1, 3, *crop)
        assert white.min() == 1


# Kinds of input


def test_arrays_and_tensors_equal_the_picture(small):
    image = picture(40, 50)
    array = np.asarray(image)
    chw = array.transpose(2, 0, 1)
    tensor = torch.from_numpy(chw.copy())
    expected = small(image, return_tensors="pt").pixel_values
    inputs = {
        "HWC": array,
        "CHW": chw,
        "not contiguous": np.asfortranarray(array),
        "int64": array.astype(np.int64),
        "uint16": array.astype(np.uint16) * 257,
        "float64 in [0, 1]": array / 255,
        "float32 in [0, 1]": (array / 255).astype(np.float32),
        "float in [0, 255]": array.astype(np.float32),
        "tensor": tensor,
        "tensor HWC": torch.from_numpy(array.copy()),
        "float tensor": tensor / 255,
        "float16 tensor": (tensor / 255).half(),
        "tensor with gradient": (tensor / 255).requires_grad_(),
    }
    for name, value in inputs.items():
        assert torch.equal(small(value, return_tensors="pt").pixel_values, expected), name
    bfloat16 = small((tensor / 255).bfloat16(), return_tensors="pt").pixel_values
    torch.testing.assert_close(bfloat16, expected, rtol=0, atol=2 / 255)


def test_pixel_values_can_be_processed_again(small):
    once = small(picture(40, 50), return_tensors="pt").pixel_values
    torch.testing.assert_close(small(once, return_tensors="pt").pixel_values, once, rtol=0, atol=0)


def test_grey_arrays(small):
    grey = np.asarray(picture(40, 50).convert("L"))
    expected = small(Image.fromarray(grey), return_tensors="np").pixel_values
    for value in (grey, grey[None], grey[..., None], torch.from_numpy(grey.copy()), grey / 255):
        np.testing.assert_array_equal(small(value, return_tensors="np").pixel_values, expected)
    assert np.array_equal(expected[:, 0], expected[:, 2])
    mask = small(np.eye(32) > 0, return_tensors="np").pixel_values
    np.testing.assert_array_equal(mask[0, 1], np.eye(32))


def test_alpha_arrays_are_composited_over_white(small):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0], rgba[:, :16, 3] = 255, 255
    for value in (rgba, rgba.transpose(2, 0, 1), rgba / 255):
        pixel_values = small(value, return_tensors="np").pixel_values[0]
        np.testing.assert_array_equal(pixel_values[:, 5, 15], [1, 0, 0])
        np.testing.assert_array_equal(pixel_values[:, 5, 16], [1, 1, 1])


def test_ambiguous_channels_are_last_in_arrays_and_first_in_tensors(small):
    red = np.array([[[255, 0, 0]]], np.uint8)  # one pixel (H, W, C); as (C, H, W) three grey ones
    assert small(red, return_tensors="np").pixel_values[0, :, 9, 9].tolist() == [1, 0, 0]
    tensor = small(torch.from_numpy(red), return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(tensor[0], tensor[2])
    forced = small(torch.from_numpy(red), input_data_format="channels_last", return_tensors="np").pixel_values
    assert forced[0, :, 9, 9].tolist() == [1, 0, 0]


def test_a_picture_file_is_read_like_the_picture(small, tmp_path):
    image = picture(40, 50)
    image.putalpha(100)
    exif = Image.Exif()
    exif[0x0112] = 8
    path = tmp_path / "a.png"
    image.save(path, exif=exif)
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    expected = small(white.rotate(90, expand=True), return_tensors="np").pixel_values
    for value in (path, str(path), Image.open(path), [path]):
        np.testing.assert_array_equal(small(value, return_tensors="np").pixel_values, expected)


def test_16_bit_pictures_are_not_clipped(small):
    image = Image.fromarray(np.full((32, 32), 32896, np.uint16))
    assert levels(small(image, return_tensors="pt").pixel_values)[0, 0, 0, 0] == 128


def test_lists_of_mixed_kinds_and_sizes_keep_their_order(small, tmp_path):
    images = [picture(40 + 9 * i, 70 - 9 * i, seed=i) for i in range(5)]
    expected = [small(image, return_tensors="pt").pixel_values[0] for image in images]
    path = tmp_path / "a.png"
    images[3].save(path)
    mixed = [images[0], [np.asarray(images[1]), torch.from_numpy(np.array(images[2]))], (path,), images[4]]
    assert torch.equal(small(mixed, return_tensors="pt").pixel_values, torch.stack(expected))


def test_batched_arrays(small):
    batch = np.stack([np.asarray(picture(40, 50, seed=i)) for i in range(3)])
    expected = small(list(batch), return_tensors="pt").pixel_values
    for value in (batch, torch.from_numpy(batch.transpose(0, 3, 1, 2)), batch / 255, batch.astype(np.float32)):
        assert torch.equal(small(value, return_tensors="pt").pixel_values, expected)


def test_a_dark_picture_of_a_float_batch_stays_dark(small):
    batch = np.zeros((2, 32, 32, 3), np.float32)
    batch[0], batch[1] = 200, 1
    assert levels(small(batch, return_tensors="pt").pixel_values)[:, 0, 0, 0].tolist() == [200, 1]


def test_tensor_kinds_of_the_output(processor):
    image = picture(300, 300)
    pt = processor(image, return_tensors="pt").pixel_values
    numpy = processor(image, return_tensors="np").pixel_values
    plain = processor(image).pixel_values
    assert isinstance(numpy, np.ndarray)
    assert numpy.dtype == np.float32
    assert isinstance(plain, list)
    np.testing.assert_array_equal(pt.numpy(), numpy)
    np.testing.assert_array_equal(plain[0], numpy[0])
    assert 0 <= numpy.min() < numpy.max() <= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((8, 8, 3), np.nan), "NaN"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.rand(3, 8, 8) * 2 - 1, "from -"),
        (np.linspace(0, 1.04, 192).reshape(8, 8, 3), "rescale or clip"),
        (np.zeros((8, 8, 2)), "no channel axis"),
        (np.zeros(8), "two axes"),
        (np.zeros((1, 1, 8, 8, 3)), "two axes"),
        (np.zeros((0, 8, 3)), "no pixels"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (torch.zeros(0, 3, 8, 8), "no pixels"),
        (Image.new("RGB", (0, 5)), "0 × 5 pixels is empty"),
        ([], "images is empty"),
        (None, "got NoneType"),
        ([picture(8, 8), 7], "got int"),
    ],
)
def test_what_is_no_picture_is_refused(small, images, message):
    with pytest.raises(ValueError, match=message):
        small(images)


def test_errors_of_files_name_the_file(small, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png is not a picture"):
        small([picture(8, 8), path])
    with pytest.raises(FileNotFoundError):
        small(str(tmp_path / "missing.png"))


def test_without_conversion_only_rgb_is_taken(small):
    image = picture(40, 40)
    expected = small(image, return_tensors="np").pixel_values
    np.testing.assert_array_equal(small(image, do_convert_rgb=False, return_tensors="np").pixel_values, expected)
    with pytest.raises(ValueError, match="got mode L"):
        small(image.convert("L"), do_convert_rgb=False)


# Configuration


def test_sizes_can_be_given_as_numbers():
    processor = ALITImageProcessor(size=64, crop_size=48)
    assert processor.size == {"shortest_edge": 64}
    assert processor.crop_size == {"height": 48, "width": 48}


@pytest.mark.parametrize("name", ["size", "crop_size"])
@pytest.mark.parametrize("value", [10**6, {"height": 10**5, "width": 10**4}])
def test_absurd_sizes_are_refused(small, name, value):
    with pytest.raises(ValueError, match=f"{name} must have at most 100000000 pixels"):
        small(Image.new("RGB", (8, 8)), **{name: value})


@pytest.mark.parametrize("name", ["size", "crop_size"])
@pytest.mark.parametrize("value", [0, -3, {"height": 0, "width": 8}, {"height": 2.5, "width": 8}])
def test_sizes_must_be_positive(small, name, value):
    with pytest.raises(ValueError, match=f"{name} must hold positive"):
        ALITImageProcessor(**{name: value})
    if value in (0, -3):
        with pytest.raises(ValueError, match=f"{name} must hold positive"):
            small(picture(8, 8), **{name: value})


def test_save_and_load(tmp_path):
    processor = ALITImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 72})
    processor.save_pretrained(str(tmp_path))
    loaded = ALITImageProcessor.from_pretrained(tmp_path)
    image = picture(90, 200)
    assert torch.equal(
        loaded(image, return_tensors="pt").pixel_values, processor(image, return_tensors="pt").pixel_values
    )
    assert loaded.to_dict() == processor.to_dict()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["crop_size"] == {"height": 40, "width": 72}
    assert ALITImageProcessor.from_pretrained(tmp_path, crop_size=16).crop_size == {"height": 16, "width": 16}


def test_a_saved_processor_runs_where_the_package_is_missing(tmp_path, small):
    small.save_pretrained(str(tmp_path / "saved"))
    image = picture(40, 50)
    image.putalpha(100)
    image.save(tmp_path / "a.png")
    script = (
        "import sys; sys.modules['alit_hf'] = None\n"
        "import numpy as np\n"
        "from transformers import AutoImageProcessor\n"
        "processor = AutoImageProcessor.from_pretrained('saved', trust_remote_code=True)\n"
        "pixel_values = processor('a.png', return_tensors='np').pixel_values\n"
        "assert len(processor.postprocess(pixel_values)) == 1\n"
        "np.save('out.npy', pixel_values)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), small(image, return_tensors="np").pixel_values)


# Back to pictures


@pytest.mark.parametrize("size", [(256, 256), (200, 300)])
def test_postprocess_inverts_preprocessing(processor, size):
    images = [picture(*size, seed=i) for i in range(3)]
    processed = processor(images, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    for before, after in zip(images, processor.postprocess(processed), strict=True):
        assert after.mode == "RGB"
        assert after.size == before.size
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_postprocess_clamps_and_rounds(processor, dtype):
    values = torch.tensor([-3.0, -0.001, 0.0, 0.25, 13 / 32, 0.75, 1.0, 1.7], dtype=dtype)
    (image,) = processor.postprocess(values.repeat(1, 3, 1, 1).requires_grad_())
    assert np.asarray(image)[0, :, 1].tolist() == [0, 0, 0, 64, 104, 191, 255, 255]


def test_postprocess_takes_arrays_and_tells_axes_apart(processor):
    pixels = np.zeros((2, 3, 4, 6), np.float32)
    pixels[1, 2, 3, 5] = 1
    first, second = processor.postprocess(pixels)
    assert first.size == (6, 4)
    assert second.getpixel((5, 3)) == (0, 0, 255)
    assert np.asarray(first).max() == 0
    assert processor.postprocess(pixels[:0]) == []


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(3, 8, 8), r"shape \(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3), r"got \(1, 8, 8, 3\)"),
        (torch.zeros(1, 3, 0, 8), r"got \(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "must be floats"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 3, 8, 8), float("inf"), dtype=torch.float16), "infinity"),
    ],
)
def test_postprocess_refuses_what_is_no_batch_of_pixels(processor, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        processor.postprocess(pixel_values)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize("batched", [False, True])
def test_floats_that_are_not_to_be_rescaled_stay_floats(kind, batched):
    processor = ALITImageProcessor(size=16, crop_size=16)
    values = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
    picture = kind(values[None] if batched else values)
    kept = processor(picture, do_rescale=False, return_tensors="pt", input_data_format="channels_last").pixel_values
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept[0], torch.from_numpy(values).permute(2, 0, 1), atol=0.5 / 255 + 1e-6, rtol=0)
    levels = (255 * values).astype(np.uint8)
    integers = processor(levels, do_rescale=False, return_tensors="pt").pixel_values
    assert torch.equal(integers[0], torch.from_numpy(levels).permute(2, 0, 1))


@pytest.mark.parametrize("values", [[-0.5, 1.0], [0.0, 200.0], [0.0, float("nan")]], ids=str)
def test_floats_out_of_range_are_told_where_they_are_not_rescaled(values):
    picture = np.resize(np.asarray(values, dtype=np.float32), (16, 16, 3))
    with pytest.raises(ValueError, match=r"do_rescale=False takes floats in \[0, 1\]"):
        ALITImageProcessor()([picture], do_rescale=False)


def test_floats_and_integers_together_are_told():
    pictures = [np.zeros((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.uint8)]
    with pytest.raises(ValueError, match="got both"):
        ALITImageProcessor()(pictures, do_rescale=False)


def test_unknown_keywords_are_told():
    with pytest.raises(ValueError, match=r"\['do_resiz'\] are no keywords of the processor.*do_resize"):
        ALITImageProcessor()(np.zeros((16, 16, 3), np.uint8), do_resiz=False)
