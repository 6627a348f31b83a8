"""The images of an evaluation: picture files, folders of them, parquet files, or a data set on the Hub."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from alit_hf.model.image_io import open_image

from .sources import SplitError, choose_split, find_files, is_hub_id


class EvaluationImages(Protocol):
    """
    Images in an order that is always the same.

    `sources` says where they come from, as the user named it; `split` is the data set's split, `None` for files;
    `column_names` are those of what the data set says of each image, none for picture files.
    """

    sources: list[str]
    split: str | None
    column_names: list[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call the image: a file's path, or a row's file name or number."""
        ...

    def read(self, index: int) -> Image.Image:
        """
        The upright RGB picture.

        Raises:
            `ValueError` or `OSError`: if it cannot be decoded.
        """
        ...

    def column(self, name: str) -> Sequence[Any]:
        """
        The values of a column, one an image, those of a `ClassLabel` by their names; see `check_columns`.

        Raises:
            `KeyError`: if there is no such column.
        """
        ...


class _PictureFiles:
    """Picture files, each an image."""

    split = None
    column_names: list[str] = []

    def __init__(self, sources: list[str], files: list[Path]):
        self.sources = sources
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return str(self._files[index])

    def read(self, index: int) -> Image.Image:
        return open_image(self._files[index])

    def column(self, name: str) -> Sequence[Any]:
        raise KeyError(name)


class _Rows:
    """Rows of a data set with a column `image`."""

    def __init__(self, sources: list[str], split: str | None, rows: datasets.Dataset):
        columns = rows.column_names
        if "image" not in columns:
            raise ValueError(f"{', '.join(sources)} has no column `image`, its columns are {', '.join(columns)}")
        if len(rows) == 0:
            raise ValueError(f"{', '.join(sources)} has no rows")
        self.sources = sources
        self.split = split
        self.column_names = [name for name in columns if name != "image"]
        try:
            self._images = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
            raise ValueError(
                f"{', '.join(sources)}: its column `image` has no pictures, but {rows.features['image']}"
            ) from error
        self._others = rows.remove_columns(["image"])

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        path = (self._images[index]["image"] or {}).get("path")
        return f"row {index}" + (f" ({os.path.basename(path)})" if path else "")

    def read(self, index: int) -> Image.Image:
        cell = self._images[index]["image"]
        if cell is None or cell == {"bytes": None, "path": None}:
            raise ValueError(f"row {index} has no image")
        return open_image(cell["path"] if cell["bytes"] is None else cell["bytes"])

    def column(self, name: str) -> Sequence[Any]:
        values = self._others[name]
        feature = self._others.features[name]
        if not isinstance(feature, datasets.ClassLabel):
            return values
        # The numbers mean nothing beside those of another data set, and negative ones are how the Hub says "none".
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]


def open_images(sources: Sequence[str], split: str | None = None) -> EvaluationImages:
    """
    Finds the images without decoding them.

    Args:
        sources (`Sequence[str]`): picture files and folders of them (searched with their subfolders, hidden ones left
            out); or parquet files and folders of them, with a column `image`; or one Hub id of a data set with such a
            column.
        split (`str`, *optional*): of the data set on the Hub. It may be left out where there is one only.

    Returns:
        the images; files come in the order of `sources`, those of a folder by their names.

    Raises:
        `ValueError`: for sources that do not exist or hold no image, a mixture of pictures and parquet files, a split
            that is missing, does not exist or is given for files, a data set without rows or pictures in the column
            `image`, and parquet files whose class labels have different names.
    """
    sources = list(sources)
    if len(sources) == 1 and not os.path.lexists(sources[0]) and is_hub_id(sources[0]):
        return _open_hub_dataset(sources[0], split)
    if split is not None:
        raise ValueError(f"the split {split!r} is given, but only data sets on the Hub have splits, files have none")
    files = [file for source in sources for file in find_files(source)]
    is_parquet = {file.suffix.lower() == ".parquet" for file in files}
    if is_parquet == {False, True}:
        raise ValueError(f"{', '.join(sources)} holds both parquet files and pictures, it must be one of them")
    if is_parquet == {False}:
        return _PictureFiles(sources, files)
    _check_class_names(files)
    try:
        rows = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        raise ValueError(f"{', '.join(sources)}: no images can be read: {error.__cause__ or error}") from error
    return _Rows(sources, None, rows)


def check_columns(images: EvaluationImages, names: Sequence[str]) -> None:
    """
    Raises:
        `ValueError`: if the images lack one of the columns.
    """
    missing = [f"`{name}`" for name in names if name not in images.column_names]
    if missing:
        has = ", ".join(images.column_names) or "none, as picture files and data sets of images alone"
        raise ValueError(f"{', '.join(images.sources)} lacks the columns {', '.join(missing)}; it has {has}")


def _check_class_names(files: Sequence[Path]) -> None:
    """`datasets` takes the names of the first file for those of all."""
    known: dict[str, tuple[list[str], Path]] = {}
    for file in files:
        try:
            features = datasets.Features.from_arrow_schema(pq.read_schema(file))
        except (pa.ArrowInvalid, OSError):
            continue  # a file that is no parquet is named when it is loaded
        for name, feature in features.items():
            if isinstance(feature, datasets.ClassLabel):
                names, first = known.setdefault(name, (feature.names, file))
                if names != feature.names:
                    raise ValueError(f"the classes of `{name}` are {names} in {first}, but {feature.names} in {file}")


def _open_hub_dataset(name: str, split: str | None) -> EvaluationImages:
    try:
        split = choose_split(name, datasets.get_dataset_split_names(name), split)
        return _Rows([name], split, datasets.load_dataset(name, split=split))
    except SplitError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no file or folder, and from the Hub it cannot be loaded: {error}") from error


__all__ = ["EvaluationImages", "check_columns", "open_images"]
