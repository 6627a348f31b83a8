"""
The one source of pictures: rows with a picture each, from whatever names mean (`sources.py`).

`open_rows` decides what holds the pictures (files, parquet files, tars, a data set), `columns.py` which columns are
taken, and neither decodes any. The rows are read from their start to their end, part by part and without copying the
whole ([`ImageRows`]: tokenizing, streamed training), or by number after `load` (`images.py`: evaluation, analyses,
training). `parts.py` reads them, and `picture_cells.py` makes the picture of a row.
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
from typing import NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.data_files import DataFilesList
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from alit_hf.model.image_io import open_file
from alit_hf.utils.error_reason import reason
from alit_hf.utils.image_count import image_count
from alit_hf.utils.progress import ProgressBar
from alit_hf.utils.shown_text import shown

from .columns import FILE_NAME, IMAGE, check_parquet_files, image_column_of, other_columns
from .parts import SPLIT, BuilderPart, ParquetPart, PartsBuilder, TarPart, parquet_footer, tar_columns
from .picture_cells import CELL, Home, as_text, file_name, is_utf8
from .sources import DATA, choose_split, describe_passed_over, find_files, find_paths, is_on_hub


# What makes a folder of pictures an `imagefolder` with further columns, by the convention of `datasets`.
_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# The builders of `datasets`; what ends in anything else is a picture.
_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
_KINDS = {".parquet": "parquet files", ".tar": "tars", "": "pictures"}


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """
    Rows with a picture each, in an order that is always the same.

    The rows stand in parts, such as the files of a data set. A part can be read from any of its rows on; what is
    before is passed over without being decoded.

    Args:
        sources (`list[str]`): where the rows come from, as the user named it.
        config_name (`str`, *optional*): the configuration that was asked for, of a data set that has several.
        split (`str`, *optional*): of a data set that has splits.
        fingerprint (`str`): another one where the data are others, by names of files and times of change, or by the
            Hub's revision.
        part_fingerprints (`Sequence[str]`): the same of each part.
        num_rows (`int`, *optional*): of all parts; `None` where nobody knows before the end.
        image_column (`str`): the column of the picture.
        kept_columns (`list[str]`, *optional*): the other columns, if some of the data's were left out.
        stream (`datasets.IterableDataset`): the rows, with a `CELL` for the picture. A part that is damaged ends in a
            row that says so.
        load (`Callable`): gives the same rows, or only so many of the first as its argument says, as a
            `datasets.Dataset`, which is copied to the cache of `datasets` where it is not there yet. Raises a
            `ValueError` where they cannot be read.
        file_names (`Mapping[str, str]`): names for the paths of picture files, where the rows are these.
        root (`Path`, *optional*): the folder that names of other picture files are relative to.
        files (`Sequence[str]`): paths and addresses of the files that the rows come from.
        passed_over (`Sequence[str]`): lines for people, on the files of folders that are not among them.
    """

    sources: list[str]
    split: str | None
    fingerprint: str
    part_fingerprints: Sequence[str]
    num_rows: int | None
    image_column: str
    stream: datasets.IterableDataset
    load: Callable[[int | None], datasets.Dataset]
    config_name: str | None = None
    kept_columns: list[str] | None = None
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
        """The pictures of some rows, a `CELL` each, and the columns of `features`."""
        cells = table[self.image_column].to_pylist()
        columns = table.drop_columns([self.image_column])
        if FILE_NAME not in columns.column_names:
            names = pa.array([self._file_name(cell) for cell in cells], pa.string())
            columns = columns.append_column(FILE_NAME, names)
        return cells, columns.select(list(self.features)).cast(self.features.arrow_schema)

    def _file_name(self, cell: dict | None) -> str | None:
        path = cell and cell["path"]
        return self.file_names.get(path) or file_name(cell, self.root)


def open_rows(
    sources: Sequence[str],
    split: str | None = None,
    image_column: str | None = None,
    *,
    config_name: str | None = None,
    columns: Sequence[str] | None = None,
) -> ImageRows:
    """
    Opens the data without reading pictures.

    Args:
        sources (`Sequence[str]`): picture files and folders of them (searched with their subfolders, hidden ones left
            out); or parquet files and folders of them; or webdataset tars and folders of them; or one folder of
            pictures with a metadata file, as `datasets` reads it; or one Hub id of a data set. Files and folders may
            be glob patterns, or `package://NAME/PATH` inside an installed Python package.
        split (`str`, *optional*): of a data set on the Hub, or in one folder that is laid out as such. It may be left
            out where there is one only. Without it all files of a folder are taken.
        image_column (`str`, *optional*): the column of the pictures. By default `image` if it has pictures, or else
            the only column of pictures. The columns of tars are called after suffixes, so there the only column of
            pictures also stands for one of another name; samples may have different suffixes. Picture files have no
            columns, whatever is asked for.
        config_name (`str`, *optional*): the configuration of a data set that has several, as `split`.
        columns (`Sequence[str]`, *optional*): which other columns are kept, in the order of the data. By default all
            are. If it is empty, metadata files are left out, too. `file_name` is there in any case.

    Files that are damaged are left out from where they are, and the rows end in one that says so. Pictures that rows
    name instead of holding them are read only from the data set's own folder.

    Raises:
        [`ImageColumnError`]: for data without the column of pictures, or without pictures in it; it says which columns
            there are.
        `ValueError`: for sources that do not exist, hold no pictures or cannot be read, a mixture of pictures, parquet
            files and tars, parquet files whose columns or names of class labels differ, other columns that do not
            exist, and a split or configuration that is missing, does not exist or is given for files.
    """
    sources = list(sources)
    described = ", ".join(sources)
    asked = _Asked(split, image_column, config_name, columns)
    if is_on_hub(sources):
        problem = f"{described} is no file or folder, and from the Hub it cannot be loaded"
        return _open_dataset(sources, asked, problem, sources[0])
    problem = f"{described}: no images can be read"
    paths = [path for source in sources for path in find_paths(source)]
    alone = paths[0] if len(paths) == 1 and os.path.isdir(paths[0]) else None
    for kind, name in (("split", split), ("configuration", config_name)):
        if name is None:
            continue
        if alone is None:
            raise ValueError(f"the {kind} {name!r} is given, but {described} has no {kind}s, data sets have them")
        if glob.has_magic(os.path.realpath(alone)):
            # `datasets` would take it for a pattern, and read another folder.
            raise ValueError(
                f"the {kind} {name!r} cannot be found in {described}, whose path has one of *?[ in it: rename it, or "
                f"name the {kind}'s files"
            )
        root = Path(os.path.realpath(alone))
        return _open_dataset(sources, asked, problem, str(alone), root)

    files, folders, passed_over = [], {}, []
    has_metadata = alone is not None and any((alone / name).is_file() for name in _METADATA_FILES)
    for path in paths:
        found = find_files(path, DATA, len(paths) > 1)
        note = describe_passed_over(found.passed_over, DATA)
        if not found.files:
            more = f"; {note}" if note else ""
            raise ValueError(f"the folder {shown(path)} holds no pictures and no parquet files or tars{more}")
        files += found.files
        folder = (path if os.path.isdir(path) else path.parent).absolute()
        folders |= {os.path.abspath(file): (folder, name) for file, name in found.files}
        passed_over += [f"{shown(path)}: {note}"] if note else []
    kinds = {suffix if (suffix := file.suffix.lower()) in _BUILDERS else "" for file, _ in files}
    if has_metadata and "" in kinds and (columns is None or columns):
        return _open_imagefolder(sources, asked, problem, alone, [str(name) for _, name in files])
    if len(kinds) > 1:
        names = " and ".join(sorted(_KINDS[kind] for kind in kinds))
        raise ValueError(f"{described} holds both {names}, it must be one of them")
    (kind,) = kinds
    if not kind:
        other_columns(described, {}, IMAGE, columns)
        return _open_pictures(sources, files, passed_over)
    for file, _ in files:
        with _named(f"{shown(file)} cannot be read"):
            open_file(file).close()
    patterns = [glob.escape(str(file)) for file, _ in files]
    rows = _open_dataset(sources, asked, problem, _BUILDERS[kind], None, folders, data_files=patterns)
    return replace(rows, passed_over=passed_over)


def _open_pictures(sources: list[str], files: list[tuple[Path, Path]], passed_over: list[str]) -> ImageRows:
    # Not as `imagefolder`, which leaves out what Pillow cannot read, where it should be reported.
    features = datasets.Features({IMAGE: CELL})
    states = [_state(file) for file, _ in files]
    paths = [as_text(file) for file, _ in files]
    fingerprint = _fingerprint(
        [[str(name), s.st_size, s.st_mtime_ns] for (_, name), s in zip(files, states, strict=True)]
    )
    return ImageRows(
        sources=sources,
        split=None,
        fingerprint=fingerprint,
        part_fingerprints=[fingerprint],
        num_rows=len(files),
        image_column=IMAGE,
        stream=datasets.IterableDataset.from_generator(_cells, features, gen_kwargs={"files": paths}),
        load=lambda first: datasets.Dataset.from_list(list(_cells(paths[:first])), features),
        file_names={path: shown(name) for path, (_, name) in zip(paths, files, strict=True)},
        files=[str(file) for file, _ in files],
        passed_over=passed_over,
    )


def _state(file: Path) -> os.stat_result:
    try:
        # A link that leads nowhere is a picture that cannot be decoded.
        return os.stat(file) if os.path.exists(file) else os.lstat(file)
    except OSError as error:
        raise ValueError(f"the folder {shown(file.parent)} cannot be read: {reason(error)}") from error


def _cells(files: list[str]) -> Iterator[dict]:
    for file in files:
        yield {IMAGE: {**dict.fromkeys(CELL), "path": file}}


class _Asked(NamedTuple):
    """What `open_rows` is asked for of the sources."""

    split: str | None
    image_column: str | None
    config_name: str | None
    columns: Sequence[str] | None


def _open_imagefolder(sources: list[str], asked: _Asked, problem: str, folder: Path, pictures: list[str]) -> ImageRows:
    """A folder with a metadata file; `pictures` are the relative names of those in it."""
    root = Path(os.path.realpath(folder))
    if not is_utf8(root):
        raise ValueError(f"the name {shown(root)} is not UTF-8, as it must be with a metadata file: rename it")
    pattern = os.path.join(glob.escape(str(root)), "**")
    rows = _open_dataset(sources, asked, problem, "imagefolder", root, data_files=[pattern])
    complete = rows
    if asked.columns is not None:
        # A picture in a column that is left out is listed all the same.
        all_columns = asked._replace(columns=None)
        complete = _open_dataset(sources, all_columns, problem, "imagefolder", root, data_files=[pattern])
    others = [name for name, feature in complete.stream.features.items() if isinstance(feature, datasets.Image)]
    unlisted = set(map(shown, pictures))
    with _named(problem):
        for table in complete.stream.with_format("arrow").iter(1000):
            for column in (complete.image_column, *others):
                paths = pc.struct_field(table[column], "path").to_pylist()
                unlisted.difference_update(file_name({"path": path}, root) for path in paths)
    if not unlisted:
        return rows
    note = f"{shown(folder)}: {image_count(len(unlisted))} passed over, which the metadata file does not list"
    return replace(rows, passed_over=[note])


class _Place(NamedTuple):
    """A file of a data set, the data set's folder (`None` on the Hub), and what to call the file in there."""

    file: str
    folder: Path | None
    name: str | Path


def _open_dataset(
    sources: list[str],
    asked: _Asked,
    problem: str,
    name: str,
    root: Path | None = None,
    folders: Mapping[str, tuple[Path, Path]] | None = None,
    **arguments,
) -> ImageRows:
    """
    Args:
        root (`Path`, *optional*): the folder that is the data set.
        folders (`Mapping[str, tuple[Path, Path]]`, *optional*): for each file its folder and its name in there, where
            the data set is files.
    """
    with _named(problem):
        builder = datasets.load_dataset_builder(name, asked.config_name, **arguments)
    described = ", ".join(sources)
    split = choose_split(described, [str(known) for known in builder.config.data_files], asked.split)
    found = builder.config.data_files[split]
    files = [str(file) for file in found]
    places = [_Place(file, *(folders or {}).get(file, (root, _name_in_data_set(file, root)))) for file in files]
    is_tar, num_rows, stream = isinstance(builder, WebDataset), None, None
    in_files: list[tuple[str, datasets.Features]] = []
    with _named(problem):
        if is_tar:
            columns = _columns_of_tars(places)
        elif isinstance(builder, Parquet):
            in_files, num_rows = _columns_of_parquet_files(places)
            columns = builder.info.features or in_files[0][1]
        else:
            stream = builder.as_streaming_dataset(split)
            # Where the columns are not declared, none is of pictures.
            columns = stream.features or datasets.Dataset.from_list(list(stream.take(1))).features
            known = (builder.info.splits or {}).get(split)
            num_rows = known and known.num_examples
    column = image_column_of(described, columns, asked.image_column, is_tar)
    others = other_columns(described, columns, column, asked.columns)
    names = [name for name in columns if name == column or name in others]
    with _named(problem):
        check_parquet_files(in_files, columns, None if asked.columns is None else names)
    if is_tar:
        parts = [TarPart(place.file, shown(place.name), column) for place in places]
    elif stream is None:
        parts = [ParquetPart(place.file, shown(place.name), Home(place.folder)) for place in places]
    else:
        home = Home(root, frozenset(files))
        # Decoding would open whatever files and addresses the rows name, in any column.
        stream = stream.decode(False)
        parts = [BuilderPart(stream, number, stream.num_shards, home) for number in range(stream.num_shards)]
    fingerprint = _fingerprint([files, list(found.origin_metadata)])

    def rows(embed: bool, first: int | None = None) -> PartsBuilder:
        names_of_places = [[str(place.folder), str(place.name)] for place in places]
        return PartsBuilder(
            dataset_name="alit_rows",
            config_id=_fingerprint([fingerprint, names, names_of_places, first]),
            parts=parts,
            columns=datasets.Features({name: columns[name] for name in names}),
            picture=column,
            embed=embed,
            first=first,
        )

    def load(first: int | None) -> datasets.Dataset:
        with _named(problem):
            builder = rows(embed=True, first=first)
            builder.download_and_prepare()
            return builder.as_dataset(SPLIT)

    homes = {place.folder for place in places}
    return ImageRows(
        sources=sources,
        split=None if folders else split,
        fingerprint=fingerprint,
        part_fingerprints=_part_fingerprints(found, len(parts)),
        num_rows=num_rows,
        image_column=column,
        stream=rows(embed=False).as_streaming_dataset(SPLIT),
        load=load,
        config_name=asked.config_name,
        kept_columns=None if others == other_columns(described, columns, column, None) else others,
        root=homes.pop() if len(homes) == 1 else None,
        files=files,
    )


def _part_fingerprints(files: DataFilesList, num_parts: int) -> list[str]:
    states = list(files.origin_metadata)
    if len(states) == len(files) == num_parts:
        return [_fingerprint([str(file), state]) for file, state in zip(files, states, strict=True)]
    # On the Hub, a revision has all files; and other builders divide them in their own way.
    return [_fingerprint([list(map(str, files)), states])] * num_parts


def _name_in_data_set(file: str, root: Path | None) -> str:
    if root is not None:
        return os.path.relpath(file, root)
    # On the Hub: hf://datasets/ORGANIZATION/NAME@REVISION/…
    return file.partition("@")[2].partition("/")[2] or os.path.basename(file)


def _columns_of_tars(places: Sequence[_Place]) -> datasets.Features:
    """Those of the first tar that is not damaged from its start on."""
    problems = []
    for file, _, name in places:
        if isinstance(columns := tar_columns(file), datasets.Features):
            return columns
        problems.append(f"{name}: {columns}")
    raise ValueError(problems[0])


def _columns_of_parquet_files(places: Sequence[_Place]) -> tuple[list[tuple[str, datasets.Features]], int]:
    """Name and columns of each file whose end is there, and the number of rows."""
    problems, num_rows, in_files = [], 0, []
    for file, _, name in ProgressBar(places, desc="opening", unit="file"):
        footer = parquet_footer(file)
        if isinstance(footer, str):
            problems.append(f"{name}: {footer}")
            continue
        num_rows += footer.num_rows
        in_files.append((str(name), datasets.Features.from_arrow_schema(footer.schema.to_arrow_schema())))
    if not in_files:
        raise ValueError(problems[0])
    return in_files, num_rows


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


def _fingerprint(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


__all__ = ["ImageRows", "open_rows"]
