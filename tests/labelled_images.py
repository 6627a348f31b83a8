"""Data sets of small pictures with columns."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from alit_hf.data.images import Images, open_images


def save_images(path: Path, pictures: Sequence[Image.Image], columns: Mapping[str, Sequence] | None = None) -> Path:
    """Writes a parquet file with a column `image` and others."""
    cells = []
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "png")
        cells.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"image": cells, **(columns or {})}), path)
    return path


def shaded_pictures(brightness: Sequence[float], seed: int = 0) -> list[Image.Image]:
    """Coarse random pictures of 32 x 32 pixels, each of a brightness in [0, 1]."""
    random = np.random.default_rng(seed)
    pictures = []
    for level in brightness:
        coarse = (255 * level + random.uniform(-20, 20, (4, 4, 3))).clip(0, 255).astype(np.uint8)
        pictures.append(Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC))
    return pictures


def shaded_images(path: Path, labels: Sequence, brightness: Mapping) -> Images:
    """Pictures with a column `label` that tells their brightness."""
    pictures = shaded_pictures([brightness[label] for label in labels])
    return open_images([str(save_images(path, pictures, {"label": labels}))])
