"""A latent token's attention, drawn over the picture."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from alit_hf.analysis.attention_figure import MAP_COLORS, MAP_OPACITY


def attention_overlay(picture: Image.Image, attention_map: np.ndarray) -> Image.Image:
    """
    Args:
        picture (`PIL.Image.Image`): drawn in grey.
        attention_map (`np.ndarray` of shape `(rows, columns)`): not negative; its largest value is drawn brightest.

    Returns:
        `PIL.Image.Image`: of the picture's size.
    """
    brightness = Image.fromarray((attention_map / attention_map.max()).astype(np.float32))
    smooth = np.asarray(brightness.resize(picture.size, Image.Resampling.BILINEAR))
    colors = Image.fromarray(colormaps[MAP_COLORS](smooth, bytes=True)[..., :3])
    return Image.blend(picture.convert("L").convert("RGB"), colors, MAP_OPACITY)


__all__ = ["attention_overlay"]
