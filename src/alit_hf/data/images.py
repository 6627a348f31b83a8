"""Pictures by their numbers, for what does not read them from start to end: evaluation, analyses and training."""

import os
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from alit_hf.utils.error_reason import reason
from alit_hf.utils.shown_text import shown

from .image_rows import ImageRows, open_rows
from .picture_cells import picture_path, read_picture, read_size


class Images:
    """
    Images in an order that is always the same.

    Args:
        rows ([`ImageRows`]): are copied to the cache of `datasets` where they are neither picture files nor there yet.
        first (`int`, *optional*): only the first so many; no others are read, fetched or copied.

    Attributes:
        sources (`list[str]`), config_name, split (`str` or `None`), fingerprint (`str`), files, passed_over: as of the
            rows.
        column_names (`list[str]`): those of what the data set says of each image, none for picture files.
        damage (`list[str]`): of each damaged file, which of its images are missing here and why.

    Raises:
        `ValueError`: if the rows cannot be read, or there are none.
    """

    def __init__(self, rows: ImageRows, first: int | None = None):
        self.sources, self.config_name, self.split = rows.sources, rows.config_name, rows.split
        self.fingerprint, self.files, self.passed_over = rows.fingerprint, rows.files, rows.passed_over
        table = rows.load(first)
        damage = pc.struct_field(table.data[rows.image_column], "damage")
        self.damage: list[str] = damage.drop_null().to_pylist()
        if self.damage:
            table = table.select(np.flatnonzero(damage.is_null()))
        if len(table) == 0:
            raise ValueError(f"{', '.join(rows.sources)} has no rows" + "".join(f"; {file}" for file in self.damage))
        self._column = rows.image_column
        self._cells = table.select_columns([rows.image_column])
        self._others = table.remove_columns([rows.image_column])
        self.column_names = self._others.column_names
        # In Arrow, as worker processes share it.
        paths = pc.struct_field(table.data.column(self._column), "path").to_pylist() if rows.file_names else []
        self._names = pa.array([rows.file_names[path] for path in paths], pa.string())

    def __len__(self) -> int:
        return len(self._cells)

    def name(self, index: int) -> str:
        """What to call the image: a file's name relative to its source, or a row's number and file name."""
        if len(self._names):
            return self._names[index].as_py()
        path = self._path(index)
        return f"row {index}" + (f" ({shown(os.path.basename(path))})" if path else "")

    def describe_failure(self, index: int, error: Exception) -> dict[str, Any]:
        """What results say of an image that cannot be decoded: `index`, `image` (its name) and `reason`."""
        name = self.name(index)
        return {"index": index, "image": name, "reason": reason(error, self._path(index), name)}

    def _path(self, index: int) -> str | None:
        return picture_path(self._cells[index][self._column])

    def read(self, index: int) -> Image.Image:
        """
        The upright RGB picture.

        Raises:
            `ValueError` or `OSError`: if it cannot be decoded.
        """
        return read_picture(self._cells[index][self._column])

    def size(self, index: int) -> tuple[int, int]:
        """
        The (width, height) of the upright picture, in most files without decoding it.

        Raises:
            `ValueError` or `OSError`: if its file says none.
        """
        return read_size(self._cells[index][self._column])

    def column(self, name: str) -> Sequence[Any]:
        """
        The values of a column, one an image, those of a `ClassLabel` by their names; see `check_columns`.

        Raises:
            `KeyError`: if there is no such column.
        """
        if name not in self.column_names:
            raise KeyError(name)
        # Decoding a column of pictures would open whatever files and addresses the data set names in it.
        values = self._others.with_format("arrow")[name][:].to_pylist()
        feature = self._others.features[name]
        if not isinstance(feature, datasets.ClassLabel):
            return values
        # The numbers mean nothing beside those of another data set, and negative ones are how the Hub says "none".
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]


def open_images(
    sources: Sequence[str],
    split: str | None = None,
    image_column: str | None = None,
    *,
    config_name: str | None = None,
    columns: Sequence[str] | None = None,
) -> Images:
    """
    Finds the images without decoding them.

    Args:
        sources, split, image_column, config_name, columns: of `open_rows`.

    Raises:
        `ValueError`: as `open_rows` and [`Images`].
    """
    return Images(open_rows(sources, split, image_column, config_name=config_name, columns=columns))


def check_columns(images: Images, names: Sequence[str]) -> None:
    """
    Raises:
        `ValueError`: if the images lack one of the columns.
    """
    missing = [f"`{name}`" for name in names if name not in images.column_names]
    if missing:
        has = ", ".join(images.column_names) or "none, as picture files and data sets of images alone"
        raise ValueError(f"{', '.join(images.sources)} lacks the columns {', '.join(missing)}; it has {has}")


__all__ = ["Images", "check_columns", "open_images"]
