"""Pictures for tests that need no more than that they differ."""

import numpy as np
from PIL import Image


def noise_photo(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    """Dark coloured noise of that width and height, another one for every seed."""
    levels = np.random.default_rng(seed).integers(0, 64, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)
