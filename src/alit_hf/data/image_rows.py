"""
The one source of pictures: rows with a picture each, from whatever names mean (`sources.py`).

`open_rows` decides what holds the pictures (files, parquet files, tars, a data set) and which column they are in, and
decodes none of them. The rows are read from their start to their end, part by part and without copying the whole
([`ImageRows`]: tokenizing, streamed training), or by number after `load` (`images.py`: evaluation, analyses,
training). `read_picture` makes the picture of a row.
"""

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote_to_bytes

import datasets
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from alit_hf.model.image_io import open_file, open_image
from alit_hf.utils.error_reason import reason
from alit_hf.utils.image_count import image_count
from alit_hf.utils.shown_text import shown

from .sources import DATA, choose_split, describe_passed_over, find_files, find_paths, is_on_hub


FILE_NAME = "file_name"

_IMAGE = "image"
_NOT_DECODED = datasets.Image(decode=False)
# What makes a folder of pictures an `imagefolder` with further columns, by the convention of `datasets`.
_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# The builders of `datasets`; what ends in anything else is a picture.
_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
_KINDS = {".parquet": "parquet files", ".tar": "tars", "": "pictures"}
# In which `datasets` names the tar on this machine.
_TAR_PATH = "__url__"
# Arrow holds text only, so that a path that is not UTF-8 is in the rows as a URI.
_FILE_URI = "file://"


class ImageColumnError(ValueError):
    """The data have no such column, or no one column of pictures."""


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
        load (`Callable`): gives the same rows as a `datasets.Dataset`, which is copied to the cache of `datasets`
            where it is not there yet. Raises a `ValueError` where they cannot be read.
        file_names (`Mapping[str, str]`): names for the paths of picture files, where the rows are these.
        root (`Path`, *optional*): the folder that names of other picture files are relative to.
        files (`Sequence[str]`): paths and addresses of the files that the rows come from.
        passed_over (`Sequence[str]`): lines for people, on the files of folders that are not among them.
    """

    sources: list[str]
    split: str | None
    fingerprint: str
    num_rows: int | None
    image_column: str
    stream: datasets.IterableDataset
    load: Callable[[], datasets.Dataset]
    file_names: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    files: Sequence[str] = ()
    passed_over: Sequence[str] = ()

    @property
    def num_parts(self) -> int:
        """Number of parts, at least 1: the files of a data set. Picture files are one part together."""
        return 1 if self.file_names else self.stream.num_shards

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
        if path in self.file_names:
            return self.file_names[path]
        if path is None:
            return None
        if "://" in path:
            return shown(os.path.basename(path.split("::")[0]))
        if os.path.isabs(path):
            # Data sets are shared, and others need not see this machine's folders.
            inside = self.root is not None and Path(path).is_relative_to(self.root)
            path = os.path.relpath(path, self.root) if inside else os.path.basename(path)
        return shown(path)


def picture_path(cell: dict | None) -> str | None:
    """The path of a cell's picture, if it has one, as the file system knows it."""
    path = None if cell is None else cell["path"]
    if path is None or not path.startswith(_FILE_URI):
        return path
    return os.fsdecode(unquote_to_bytes(path.removeprefix(_FILE_URI)))


def _as_text(path: Path) -> str:
    """What `picture_path` makes the path of."""
    return str(path) if _is_utf8(path) else path.absolute().as_uri()


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_picture(cell: dict | None) -> Image.Image:
    """
    The upright RGB picture of a cell.

    Raises:
        `ValueError` or `OSError`: if there is none or it cannot be decoded.
        other exceptions: where a remote file cannot be fetched, which says nothing of the picture.
    """
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the row has no picture")
    return open_image(picture_path(cell) if cell["bytes"] is None else cell["bytes"])


def fetch(cell: dict | None) -> dict | None:
    """
    The cell with its bytes, where these are on another machine.

    Raises:
        Whatever the connection raises: it says nothing of the picture.
    """
    if cell is None or cell["bytes"] is not None or "://" not in (picture_path(cell) or ""):
        return cell
    with fsspec.open(cell["path"], "rb") as file:
        return {**cell, "bytes": file.read()}


def open_rows(sources: Sequence[str], split: str | None = None, image_column: str | None = None) -> ImageRows:
    """
    Opens the data without reading pictures.

    Args:
        sources (`Sequence[str]`): picture files and folders of them (searched with their subfolders, hidden ones left
            out); or parquet files and folders of them; or webdataset tars and folders of them; or one folder of
            pictures with a metadata file, as `datasets` reads it; or one Hub id of a data set. Files and folders may
            be glob patterns, or `package://NAME/PATH` inside an installed Python package.
        split (`str`, *optional*): of a data set on the Hub, or in one folder that is laid out as such. It may be left
            out where there is one only. Without it all files of a folder are taken.
        image_column (`str`, *optional*): the column of the pictures; all others, and metadata files, are left out. By
            default all columns are kept, and the pictures are in `image`, or else in the only column of pictures.
            In tars, whose columns are called after suffixes, the first column of pictures stands for one of another
            name.

    Raises:
        [`ImageColumnError`]: for data without the column of pictures, or with values in it that cannot be pictures.
        `ValueError`: for sources that do not exist, hold no pictures or cannot be read, a mixture of pictures, parquet
            files and tars, parquet files whose class labels have different names, and a split that is missing, does
            not exist or is given for files.
    """
    sources = list(sources)
    described = ", ".join(sources)
    if is_on_hub(sources):
        problem = f"{described} is no file or folder, and from the Hub it cannot be loaded"
        return _open_dataset(sources, split, image_column, problem, sources[0])
    problem = f"{described}: no images can be read"
    paths = [path for source in sources for path in find_paths(source)]
    alone = paths[0] if len(paths) == 1 and os.path.isdir(paths[0]) else None
    if split is not None:
        if alone is None:
            raise ValueError(f"the split {split!r} is given, but {described} has no splits, data sets have them")
        if glob.has_magic(os.path.realpath(alone)):
            # `datasets` would take it for a pattern, and read another folder.
            raise ValueError(
                f"the split {split!r} cannot be found in {described}, whose path has one of *?[ in it: rename it, or "
                "name the split's files"
            )
        return _open_dataset(sources, split, image_column, problem, str(alone), root=Path(os.path.realpath(alone)))

    files, passed_over = [], []
    has_metadata = alone is not None and any((alone / name).is_file() for name in _METADATA_FILES)
    for path in paths:
        found = find_files(path, DATA, len(paths) > 1)
        note = describe_passed_over(found.passed_over, DATA)
        if not found.files:
            more = f"; {note}" if note else ""
            raise ValueError(f"the folder {shown(path)} holds no pictures and no parquet files or tars{more}")
        files += found.files
        passed_over += [f"{shown(path)}: {note}"] if note else []
    kinds = {suffix if (suffix := file.suffix.lower()) in _BUILDERS else "" for file, _ in files}
    if has_metadata and "" in kinds and image_column is None:
        return _open_imagefolder(sources, problem, alone, [str(name) for _, name in files])
    if len(kinds) > 1:
        names = " and ".join(sorted(_KINDS[kind] for kind in kinds))
        raise ValueError(f"{described} holds both {names}, it must be one of them")
    (kind,) = kinds
    if not kind:
        return _open_pictures(sources, files, passed_over)
    for file, _ in files:
        if kind == ".tar":
            _check_utf8(file)
        with _named(f"{shown(file)} cannot be read"):
            open_file(file).close()
    data_files = [str(file) for file, _ in files]
    if kind == ".parquet" and image_column is None:
        _check_class_names(data_files)
    rows = _open_dataset(
        sources, None, image_column, problem, _BUILDERS[kind], data_files=[glob.escape(file) for file in data_files]
    )
    return replace(rows, passed_over=passed_over)


def _open_pictures(sources: list[str], files: list[tuple[Path, Path]], passed_over: list[str]) -> ImageRows:
    # Not as `imagefolder`, which leaves out what Pillow cannot read, where it should be reported.
    features = datasets.Features({_IMAGE: _NOT_DECODED})
    states = [_state(file) for file, _ in files]
    paths = [_as_text(file) for file, _ in files]
    return ImageRows(
        sources=sources,
        split=None,
        fingerprint=_fingerprint(
            [[str(name), s.st_size, s.st_mtime_ns] for (_, name), s in zip(files, states, strict=True)]
        ),
        num_rows=len(files),
        image_column=_IMAGE,
        stream=datasets.IterableDataset.from_generator(_cells, features, gen_kwargs={"files": paths}),
        load=lambda: datasets.Dataset.from_dict({_IMAGE: paths}).cast_column(_IMAGE, _NOT_DECODED),
        file_names={path: shown(name) for path, (_, name) in zip(paths, files, strict=True)},
        files=[str(file) for file, _ in files],
        passed_over=passed_over,
    )


def _check_utf8(path: Path) -> None:
    """`datasets` gives the paths of tars and of pictures with metadata to Arrow."""
    if not _is_utf8(path):
        raise ValueError(f"the name {shown(path)} is not UTF-8, as it must be for tars and metadata: rename it")


def _state(file: Path) -> os.stat_result:
    try:
        # A link that leads nowhere is a picture that cannot be decoded.
        return os.stat(file) if os.path.exists(file) else os.lstat(file)
    except OSError as error:
        raise ValueError(f"the folder {shown(file.parent)} cannot be read: {reason(error)}") from error


def _cells(files: list[str]) -> Iterator[dict]:
    for file in files:
        yield {_IMAGE: {"bytes": None, "path": file}}


def _open_imagefolder(sources: list[str], problem: str, folder: Path, pictures: list[str]) -> ImageRows:
    """A folder with a metadata file; `pictures` are the relative names of those in it."""
    root = Path(os.path.realpath(folder))
    _check_utf8(root)
    pattern = os.path.join(glob.escape(str(root)), "**")
    rows = _open_dataset(sources, None, None, problem, "imagefolder", root=root, data_files=[pattern])
    columns = [name for name, feature in rows.stream.features.items() if isinstance(feature, datasets.Image)]
    unlisted = {str(root / picture) for picture in pictures}
    with _named(problem):
        for table in rows.stream.with_format("arrow").iter(1000):
            for column in columns:
                unlisted.difference_update(pc.struct_field(table[column], "path").to_pylist())
    if not unlisted:
        return rows
    note = f"{shown(folder)}: {image_count(len(unlisted))} passed over, which the metadata file does not list"
    return replace(rows, passed_over=[note])


def _open_dataset(
    sources: list[str],
    split: str | None,
    image_column: str | None,
    problem: str,
    name: str,
    root: Path | None = None,
    **arguments,
) -> ImageRows:
    with _named(problem):
        builder = datasets.load_dataset_builder(name, **arguments)
    described = ", ".join(sources)
    split = choose_split(described, [str(known) for known in builder.config.data_files], split)
    files = builder.config.data_files[split]
    with _named(problem):
        stream = builder.as_streaming_dataset(split)
        is_parquet = name == "parquet"
        known = (builder.info.splits or {}).get(split)
        num_rows = sum(_num_rows(file) for file in files) if is_parquet else known and known.num_examples
    features = stream.features or {}
    column = _image_column(described, features, image_column)
    columns = [column] if image_column is not None else [other for other in features if other != _TAR_PATH]

    def load() -> datasets.Dataset:
        with _named(problem):
            builder.download_and_prepare()
            return builder.as_dataset(split).select_columns(columns).cast_column(column, _NOT_DECODED)

    return ImageRows(
        sources=sources,
        split=None if name in _BUILDERS.values() else split,
        fingerprint=_fingerprint([list(map(str, files)), list(files.origin_metadata)]),
        num_rows=num_rows,
        image_column=column,
        stream=stream.select_columns(columns).cast_column(column, _NOT_DECODED),
        load=load,
        root=root,
        files=list(map(str, files)),
    )


@contextmanager
def _named(problem: str) -> Iterator[None]:
    """Makes a `ValueError` of the many kinds of errors of the libraries that read data."""
    try:
        yield
    except (
        *(OSError, RuntimeError, ValueError, TypeError, LookupError),
        *(pa.ArrowException, tarfile.TarError, datasets.exceptions.DatasetsError),
    ) as error:
        generating = isinstance(error, datasets.exceptions.DatasetGenerationError)
        why = error.__cause__ if generating and error.__cause__ else error
        raise ValueError(f"{problem}: {reason(why)}") from error


def _image_column(described: str, features: datasets.Features, wanted: str | None) -> str:
    name = wanted or _IMAGE
    pictures = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name not in features:
        is_tar = _TAR_PATH in features
        if not pictures or (not is_tar and (wanted is not None or len(pictures) > 1)):
            raise ImageColumnError(
                f"{described} has no column `{name}`, and {len(pictures)} columns of pictures among "
                f"{', '.join(features)}"
            )
        name = pictures[0]
    try:
        _NOT_DECODED.cast_storage(pa.array([], datasets.Features({name: features[name]}).arrow_schema.types[0]))
    except (pa.ArrowException, TypeError) as error:
        raise ImageColumnError(f"{described}: its column `{name}` has no pictures, but {features[name]}") from error
    return name


def _check_class_names(files: Sequence[str]) -> None:
    """`datasets` takes the names of the first file for those of all."""
    known: dict[str, tuple[list[str], str]] = {}
    for file in files:
        try:
            # Arrow does not open what has a name that is not UTF-8.
            with open_file(file) as stream:
                features = datasets.Features.from_arrow_schema(pq.read_schema(stream))
        except (pa.ArrowInvalid, OSError):
            continue  # a file that is no parquet is named when it is loaded
        for name, feature in features.items():
            if isinstance(feature, datasets.ClassLabel):
                names, first = known.setdefault(name, (feature.names, file))
                if names != feature.names:
                    raise ValueError(f"the classes of `{name}` are {names} in {first}, but {feature.names} in {file}")


def _num_rows(parquet: str) -> int:
    with open_file(parquet) as stream:
        return pq.read_metadata(stream).num_rows


def _fingerprint(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


__all__ = ["FILE_NAME", "ImageColumnError", "ImageRows", "fetch", "open_rows", "picture_path", "read_picture"]
