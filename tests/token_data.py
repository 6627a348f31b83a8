"""A data set of pictures with many kinds of columns, for tests of what becomes of them."""

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "caption": datasets.Value("string"),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"), length=2)),
        "mask": datasets.Image(),
    }
)
NUM_ROWS = (7, 4)
BROKEN = 5


def png(number: int) -> bytes:
    """A picture that differs from that of any other number, in size and contrast too."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 20 + number * 235 // 11 % 236, (34 + number % 5, 40, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def row(number: int) -> dict:
    picture = b"no picture" if number == BROKEN else png(number)
    return {
        "image": {"bytes": picture, "path": f"{number}.png"},
        "label": number % 2,
        "caption": None if number == 3 else f"caption {number}",
        "boxes": [[number, 0.5]] * (number % 3),
        "mask": {"bytes": png(number + 50), "path": None},
    }


def write_parquet(path: Path, numbers: Sequence[int]) -> None:
    rows = [row(number) for number in numbers]
    columns = {name: [cells[name] for cells in rows] for name in FEATURES}
    datasets.Dataset.from_dict(columns, features=FEATURES).to_parquet(path)


def undecoded(dataset: datasets.Dataset) -> list[dict]:
    return dataset.cast_column("mask", datasets.Image(decode=False)).to_list()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
