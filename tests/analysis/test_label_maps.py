"""Label maps are read whole and cropped as their images are."""

import io

import numpy as np
import pytest
from PIL import Image

from alit_hf import ALITImageProcessor
from alit_hf.analysis.label_maps import crop_label_map, read_label_map


def png(labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_come_as_they_were_written(dtype):
    labels = np.arange(24, dtype=dtype).reshape(4, 6) * (np.iinfo(dtype).max // 24)
    read = read_label_map(png(labels), (6, 4))
    assert read.dtype == np.int32
    assert np.array_equal(read, labels)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"no picture", "a label map cannot be decoded"),
        (png(np.ones((4, 6), np.uint8))[:50], "a label map cannot be decoded"),
        (png(np.ones((6, 4), np.uint8)), "a label map has 4 x 6 pixels, its image 6 x 4"),
        (png(np.ones((4, 6, 3), np.uint8)), "a label map is of mode RGB"),
        ("segments.png", "a label map is str, it must be the bytes of a PNG file"),
    ],
    ids=["foreign", "truncated", "size", "colours", "name"],
)
def test_what_is_no_label_map_is_refused(file, message):
    with pytest.raises(ValueError, match=message):
        read_label_map(file, (6, 4))


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (90, 37), (20, 700)])
def test_labels_are_cropped_as_the_pixels_are(size):
    """Where the processor brings a picture of one segment, that segment's label is the one that is brightest there."""
    processor = ALITImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    height, width = size
    labels = (np.arange(height) // 10)[:, None] * 1000 + np.arange(width) // 10 * 3 + 1
    cropped = crop_label_map(labels, processor)
    assert cropped.shape == (48, 48)
    names = np.unique(labels)
    pictures = [Image.fromarray((labels == name).astype(np.uint8) * 255) for name in names]
    brightness = processor(pictures, return_tensors="np").pixel_values[:, 0]
    own = np.take_along_axis(brightness, np.searchsorted(names, cropped)[None], axis=0)
    assert (own >= brightness.max(axis=0) - 0.01).all()


def test_large_labels_survive():
    processor = ALITImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    labels = np.arange(64).reshape(8, 8) * 2**18 + 65_537
    assert np.array_equal(crop_label_map(labels, processor), labels)
