"""The rows to tokenize, read from their start to their end without loading or copying the whole: pictures in folders,
parquet files, or a data set on the Hub."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from alit_hf.model.image_io import open_image

from .sources import choose_split, find_files, is_hub_id


FILE_NAME = "file_name"

_IMAGE = "image"
# What makes a folder of pictures an `imagefolder` with further columns, by the convention of `datasets`.
_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """
    Rows with a picture each, in an order that is always the same.

    The rows stand in parts, such as the files of a data set. A part can be read from any of its rows on; what is
    before is passed over without being decoded.

    Args:
        sources (`list[str]`): where the rows come from, as the user named it.
        split (`str`, *optional*): of a data set that has splits.
        fingerprint (`str`): another one where the data are others, by names of files and times of change, or by the
            Hub's revision.
        num_rows (`int`, *optional*): of all parts; `None` where nobody knows before the end.
        image_column (`str`): the column of the picture.
        stream (`datasets.IterableDataset`): the rows, pictures not decoded.
        root (`Path`, *optional*): the folder that names of picture files are relative to.
    """

    sources: list[str]
    split: str | None
    fingerprint: str
    num_rows: int | None
    image_column: str
    stream: datasets.IterableDataset
    root: Path | None = None

    @property
    def num_parts(self) -> int:
        """Number of parts, at least 1."""
        return self.stream.num_shards

    @property
    def features(self) -> datasets.Features:
        """Columns other than the picture, with `file_name` as the first where the data have none."""
        others = {name: feature for name, feature in self.stream.features.items() if name != self.image_column}
        return datasets.Features({FILE_NAME: datasets.Value("string"), **others})

    def tables(self, part: int, first_row: int, batch_size: int) -> Iterator[pa.Table]:
        """The rows of a part from `first_row` on, `batch_size` at a time and fewer at the end."""
        rows = self.stream.shard(self.num_parts, part).skip(first_row)
        return rows.with_format("arrow").iter(batch_size)

    def pictures_and_columns(self, table: pa.Table) -> tuple[list[dict | None], pa.Table]:
        """The picture files of some rows, `{"bytes": …, "path": …}` each, and the columns of `features`."""
        cells = table[self.image_column].to_pylist()
        columns = table.drop_columns([self.image_column])
        if FILE_NAME not in columns.column_names:
            names = pa.array([self._file_name(cell) for cell in cells], pa.string())
            columns = columns.append_column(FILE_NAME, names)
        return cells, columns.select(list(self.features)).cast(self.features.arrow_schema)

    def _file_name(self, cell: dict | None) -> str | None:
        path = None if cell is None else cell["path"]
        if path is None or "://" in path:
            return path and os.path.basename(path.split("::")[0])
        return os.path.relpath(path, self.root) if self.root is not None else path


def read_picture(cell: dict | None) -> Image.Image:
    """
    The upright RGB picture of a cell.

    Raises:
        `ValueError` or `OSError`: if there is none or it cannot be decoded.
        other exceptions: where a remote file cannot be fetched, which says nothing of the picture.
    """
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the row has no picture")
    return open_image(cell["path"] if cell["bytes"] is None else cell["bytes"])


def fetch(cell: dict | None) -> dict | None:
    """
    The cell with its bytes, where these are on another machine.

    Raises:
        Whatever the connection raises: it says nothing of the picture.
    """
    if cell is None or cell["bytes"] is not None or "://" not in (cell["path"] or ""):
        return cell
    with fsspec.open(cell["path"], "rb") as file:
        return {**cell, "bytes": file.read()}


def open_rows(sources: Sequence[str], split: str | None = None) -> ImageRows:
    """
    Opens the data without reading pictures.

    The pictures are in the column `image`, or else in the only column of pictures that there is.

    Args:
        sources (`Sequence[str]`): picture files and folders of them (searched with their subfolders, hidden ones left
            out); or parquet files and folders of them; or one folder of pictures with a metadata file, as
            `datasets` reads it; or one Hub id of a data set.
        split (`str`, *optional*): of a data set on the Hub, or in one folder that is laid out as such. It may be left
            out where there is one only. Without it all files of a folder are taken.

    Raises:
        `ValueError`: for sources that do not exist or hold no pictures, a mixture of pictures and parquet files, a
            split that is missing, does not exist or is given for files, and a data set without a column of pictures.
    """
    sources = list(sources)
    alone = Path(sources[0]) if len(sources) == 1 else None
    if alone is not None and alone.is_dir():
        if any((alone / name).is_file() for name in _METADATA_FILES):
            return _open_dataset(sources, split, "imagefolder", data_dir=sources[0])
        if split is not None:
            return _open_dataset(sources, split, sources[0])
    if alone is not None and not os.path.lexists(alone) and is_hub_id(sources[0]):
        return _open_dataset(sources, split, sources[0])
    if split is not None:
        raise ValueError(f"the split {split!r} is given, but {', '.join(sources)} has no splits, data sets have them")

    several = len(sources) > 1
    names = {file: _relative_name(file, source, several) for source in sources for file in find_files(source)}
    is_parquet = {file.suffix.lower() == ".parquet" for file in names}
    if is_parquet == {False, True}:
        raise ValueError(f"{', '.join(sources)} holds both parquet files and pictures, it must be one of them")
    if is_parquet == {True}:
        return _open_dataset(sources, None, "parquet", data_files=[str(file) for file in names])
    return _open_pictures(sources, names)


def _relative_name(file: Path, source: str, several_sources: bool) -> str:
    """As `alit encode` names outputs: of several folders, with the folder's own name."""
    if not Path(source).is_dir():
        return file.name
    root = Path(source).resolve().name if several_sources else ""
    return os.path.join(root, file.relative_to(source))


def _open_pictures(sources: list[str], names: dict[Path, str]) -> ImageRows:
    # Not as `imagefolder`, which leaves out what Pillow cannot read, where it should be reported.
    columns = {_IMAGE: [str(file) for file in names], FILE_NAME: list(names.values())}
    rows = datasets.Dataset.from_dict(columns).cast_column(_IMAGE, datasets.Image(decode=False))
    # A link that leads nowhere is a picture that cannot be decoded.
    states = [file.stat() if file.exists() else file.lstat() for file in names]
    return ImageRows(
        sources=sources,
        split=None,
        fingerprint=_fingerprint([[n, s.st_size, s.st_mtime_ns] for n, s in zip(names.values(), states, strict=True)]),
        num_rows=len(rows),
        image_column=_IMAGE,
        stream=rows.to_iterable_dataset(),
    )


def _open_dataset(sources: list[str], split: str | None, name: str, **arguments) -> ImageRows:
    described = ", ".join(sources)
    try:
        builder = datasets.load_dataset_builder(name, **arguments)
        split = choose_split(described, [str(known) for known in builder.config.data_files], split)
        stream = builder.as_streaming_dataset(split)
        files = builder.config.data_files[split]
        if "data_files" in arguments:
            split, num_rows = None, sum(pq.read_metadata(file).num_rows for file in files)
        else:
            known = (builder.info.splits or {}).get(split)
            num_rows = known.num_examples if known else None
        image_column = _image_column(described, stream.features)
        stream = stream.cast_column(image_column, datasets.Image(decode=False))
    except (OSError, RuntimeError, pa.ArrowException) as error:
        raise ValueError(f"{described} cannot be opened: {error}") from error
    return ImageRows(
        sources=sources,
        split=split,
        fingerprint=_fingerprint([list(map(str, files)), list(files.origin_metadata)]),
        num_rows=num_rows,
        image_column=image_column,
        stream=stream,
        root=Path(sources[0]).absolute() if name == "imagefolder" else None,
    )


def _image_column(described: str, features: datasets.Features | None) -> str:
    features = features or {}
    if _IMAGE in features:
        return _IMAGE
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        raise ValueError(
            f"{described} has no column `image`, and {len(columns)} columns of pictures among {', '.join(features)}"
        )
    return columns[0]


def _fingerprint(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


__all__ = ["FILE_NAME", "ImageRows", "fetch", "open_rows", "read_picture"]
