"""Label maps: pictures in which each segment's pixels have the segment's number."""

import io

import numpy as np
from PIL import Image

from alit_hf.model.image_processing_alit import ALITImageProcessor


_NUM_LABELS = 2**24
_MODES = ("L", "P", "I", "I;16", "I;16B")


def read_label_map(png: bytes, size: tuple[int, int]) -> np.ndarray:
    """
    Reads a label map from the bytes of a picture file with one channel of 8, 16 or 32 bits.

    Args:
        png (`bytes`)
        size (`tuple[int, int]`): required width and height.

    Returns:
        labels `(height, width)`, int32.

    Raises:
        `ValueError`: for bytes that are not such a picture, another size, or labels that are negative or at least
            2^24.
    """
    if not isinstance(png, bytes):
        raise ValueError(f"a label map is {type(png).__name__}, it must be the bytes of a PNG file")
    try:
        with Image.open(io.BytesIO(png)) as picture:
            if picture.size != size:
                raise ValueError("a label map has {} x {} pixels, its image {} x {}".format(*picture.size, *size))
            if picture.mode not in _MODES:
                raise ValueError(f"a label map is of mode {picture.mode}, it must have one channel of whole numbers")
            labels = np.asarray(picture).astype(np.int32)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"a label map cannot be decoded: {error}") from error
    if labels.min() < 0 or labels.max() >= _NUM_LABELS:
        raise ValueError(
            f"a label map has labels {labels.min()} to {labels.max()}, they must be 0 to {_NUM_LABELS - 1}"
        )
    return labels


def crop_label_map(labels: np.ndarray, processor: ALITImageProcessor) -> np.ndarray:
    """
    Resizes and crops a label map as the processor does with its image, without mixing labels.

    Args:
        labels (`np.ndarray` of shape `(H, W)`): 0 to 2^24 − 1, at the size of the image.
        processor ([`ALITImageProcessor`])

    Returns:
        labels `(height, width)` of the processor's crop, int32.
    """
    # The processor itself crops the labels, as colours, so that the geometry cannot differ from the image's.
    colors = np.stack([labels >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    cropped = processor(
        Image.fromarray(colors), resample=Image.Resampling.NEAREST, do_rescale=False, return_tensors="np"
    )
    low, middle, high = cropped.pixel_values[0].astype(np.int32)
    return low | middle << 8 | high << 16


__all__ = ["crop_label_map", "read_label_map"]
