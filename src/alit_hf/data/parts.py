"""
The parts that the rows of a data set stand in: parquet files, tars, or what another builder of `datasets` reads. What
is damaged of one is left out and said.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.features.features import cast_to_python_objects
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from datasets.table import cast_table_to_features
from datasets.utils.file_utils import xopen

from alit_hf.model.image_io import open_file, picture_suffixes
from alit_hf.utils.error_reason import reason
from alit_hf.utils.progress import ProgressBar
from alit_hf.utils.shown_text import shown

from .picture_cells import CELL, Home, fetch, file_name, to_cell


SPLIT = "rows"
"""The only split of a [`PartsBuilder`]."""

# Rows at a time: few, as pictures are large.
_BATCH = 32

# As for `datasets`, the first samples of a tar say what columns there are, and the suffix what is no plain value.
_FIRST_SAMPLES = 5
_MEDIA = {
    datasets.Image: WebDataset.IMAGE_EXTENSIONS,
    datasets.Audio: WebDataset.AUDIO_EXTENSIONS,
    datasets.Video: WebDataset.VIDEO_EXTENSIONS,
    datasets.Mesh: WebDataset.MESH_EXTENSIONS,
}

Piece = pa.Table | str
"""Some rows; or, as the last piece of a part, what of it cannot be read and why."""


@dataclass(frozen=True)
class ParquetPart:
    """
    A parquet file. Row groups that are damaged are left out.

    Args:
        file (`str`): its path or address.
        name (`str`): what to call it.
        home ([`Home`]): where pictures may be that rows only name.
    """

    file: str
    name: str
    home: Home

    def pieces(self, columns: datasets.Features) -> Iterator[Piece]:
        """The rows, with these columns."""
        num_rows, num_lost, why = 0, 0, None
        try:
            with _open(self.file) as stream, pq.ParquetFile(stream) as parquet:
                num_rows = parquet.metadata.num_rows
                for group in range(parquet.num_row_groups):
                    lost = parquet.metadata.row_group(group).num_rows
                    try:
                        for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=list(columns)):
                            lost -= len(batch)
                            yield pa.Table.from_batches([batch]).select(list(columns))
                    except Exception as error:
                        why = _damage(error)
                        num_lost += lost
        except Exception as error:
            yield f"{self.name} is damaged, no row of it can be read: {_damage(error)}"
            return
        if why is not None:
            yield f"{self.name} is damaged, {num_lost} of its {num_rows} rows cannot be read: {why}"


@dataclass(frozen=True)
class TarPart:
    """
    A tar of webdataset. From where it is damaged on, it is left out.

    Args:
        file (`str`): its path or address.
        name (`str`): what to call it.
        picture (`str`): the column of the pictures, called after a suffix. Samples without it may have a picture of
            another suffix.
    """

    file: str
    name: str
    picture: str
    home = Home()

    def pieces(self, columns: datasets.Features) -> Iterator[Piece]:
        """The rows, with these columns."""
        problems: list[str] = []
        rows: list[dict] = []
        num_read = 0

        def table() -> pa.Table:
            objects = cast_to_python_objects(rows, only_1d_for_numpy=True)
            return pa.Table.from_pylist(objects, columns.arrow_schema)

        for sample in _samples(self.file, problems):
            row = self._row(sample, columns)
            if problems and any(value is None for value in row.values()):
                break  # the last sample, of which the rest may be missing
            rows.append(row)
            num_read += 1
            if len(rows) == _BATCH:
                yield table()
                rows = []
        if rows:
            yield table()
        if problems:
            yield f"{self.name} is damaged, what is behind its first {num_read} rows cannot be read: {problems[0]}"

    def _row(self, sample: dict, columns: datasets.Features) -> dict:
        key, others = sample["__key__"], pictures_of(sample)
        row = {}
        for name, feature in columns.items():
            field = others[0] if name == self.picture and name not in sample and len(others) == 1 else name
            row[name] = sample.get(field)
            if row[name] is not None and isinstance(feature, tuple(_MEDIA)):
                row[name] = {"bytes": row[name], "path": f"{key}.{field}"}
        return row


@dataclass(frozen=True)
class BuilderPart:
    """
    What another builder of `datasets` reads from some of its files.

    Args:
        stream (`datasets.IterableDataset`): all its rows.
        number (`int`), count (`int`): which of how many parts.
        home ([`Home`]): where pictures may be, which all rows only name.
    """

    stream: datasets.IterableDataset
    number: int
    count: int
    home: Home

    def pieces(self, columns: datasets.Features) -> Iterator[Piece]:
        """The rows, with these columns."""
        for table in self.stream.shard(self.count, self.number).with_format("arrow").iter(_BATCH):
            yield table.select(list(columns))


Part = ParquetPart | TarPart | BuilderPart


@dataclass
class PartsConfig(datasets.BuilderConfig):
    """
    Args:
        parts (`Sequence[Part]`): in the order of the rows.
        columns (`datasets.Features`): that the rows have in the parts.
        picture (`str`): which of them has the pictures.
        embed (`bool`): whether pictures on other machines are fetched.
        first (`int`, *optional*): only the first so many rows.
    """

    parts: Sequence[Part] = ()
    columns: datasets.Features | None = None
    picture: str = ""
    embed: bool = False
    first: int | None = None


class PartsBuilder(datasets.ArrowBasedBuilder):
    """Rows with a `CELL` for the picture: a stream, or a copy in the cache of `datasets`."""

    BUILDER_CONFIG_CLASS = PartsConfig
    # Copies of another version are not taken for those of this one.
    VERSION = datasets.Version("1.0.0")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features({**self.config.columns, self.config.picture: CELL}))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=SPLIT, gen_kwargs={"parts": list(self.config.parts)})]

    def _generate_tables(self, parts: list[Part]) -> Iterator[tuple[Key, pa.Table]]:
        left = self.config.first
        # A copy of all is made in one go, a stream is read at the pace of what is done with it.
        for number, part in enumerate(ProgressBar(parts, desc="reading", unit="file") if self.config.embed else parts):
            for index, piece in enumerate(part.pieces(self.config.columns)):
                if isinstance(piece, str):
                    yield Key(number, index), self._damage_row(part, piece)
                    continue
                if left is not None:
                    piece = piece.slice(0, left)
                    left -= len(piece)
                yield Key(number, index), self._rows(part, piece)
                if left == 0:
                    return

    def _rows(self, part: Part, table: pa.Table) -> pa.Table:
        cells = [to_cell(value, part.home) for value in table[self.config.picture].to_pylist()]
        if self.config.embed:
            cells = [fetch(cell) for cell in cells]
        others = datasets.Features(
            {name: feature for name, feature in self.config.columns.items() if name != self.config.picture}
        )
        kept = cast_table_to_features(table.select(list(others)), others)
        for index, feature in enumerate(others.values()):
            if isinstance(feature, tuple(_MEDIA)):
                kept = kept.set_column(index, kept.field(index), _without_folders(kept[index], part.home))
        return self._with_cells(cells, kept)

    def _damage_row(self, part: Part, damage: str) -> pa.Table:
        cell = {"bytes": None, "path": part.name, "problem": None, "damage": damage}
        nothing = {field.name: pa.nulls(1, field.type) for field in self.info.features.arrow_schema}
        return self._with_cells([cell], pa.table(nothing))

    def _with_cells(self, cells: list[dict | None], others: pa.Table) -> pa.Table:
        schema = self.info.features.arrow_schema
        picture = self.config.picture
        arrays = [pa.array(cells, field.type) if field.name == picture else others[field.name] for field in schema]
        return pa.Table.from_arrays(arrays, schema=schema)


def parquet_footer(file: str) -> pq.FileMetaData | str:
    """What the end of a parquet file says of it; or, if the file is damaged, how."""
    try:
        with _open(file) as stream:
            return pq.read_metadata(stream)
    except Exception as error:
        return _damage(error)


def tar_columns(file: str) -> datasets.Features | str:
    """
    The columns of a tar; or, if no sample of it can be read, why.

    Pictures of different suffixes are one column where no sample has two, called after the first.
    """
    problems: list[str] = []
    samples = list(islice(_samples(file, problems), _FIRST_SAMPLES))
    if problems:
        samples = samples[:-1]  # the rest of the last one may be missing
    if not samples:
        return problems[0] if problems else "it has no samples"
    tables = [pa.Table.from_pylist(cast_to_python_objects([sample], only_1d_for_numpy=True)) for sample in samples]
    columns = datasets.Features.from_arrow_schema(pa.concat_tables(tables, promote_options="default").schema)
    pictures = [pictures_of(sample) for sample in samples]
    if all(len(names) <= 1 for names in pictures):
        for other in list(dict.fromkeys(name for names in pictures for name in names))[1:]:
            del columns[other]
    for name in columns:
        suffix = name.rsplit(".", 1)[-1].lower()
        for feature, suffixes in _MEDIA.items():
            if suffix in suffixes or (feature is datasets.Image and f".{suffix}" in picture_suffixes()):
                columns[name] = feature()
    return columns


def pictures_of(columns: Iterable[str]) -> list[str]:
    """The columns of a tar whose suffix is that of a picture and nothing more, as `png` and unlike `mask.png`."""
    return [name for name in columns if f".{name.lower()}" in picture_suffixes()]


def _without_folders(media: pa.ChunkedArray, home: Home) -> pa.ChunkedArray:
    """Pictures and the like with names as `file_name` gives them."""
    if not any(path and os.path.isabs(path) for path in pc.struct_field(media, "path").to_pylist()):
        return media
    cells = [cell and {**cell, "path": file_name(cell, home.folder)} for cell in media.to_pylist()]
    return pa.chunked_array([pa.array(cells, media.type)])


def _samples(file: str, problems: list[str]) -> Iterator[dict]:
    """The samples of a tar, up to where it is damaged; what is wrong with it is appended to `problems`."""
    try:
        yield from WebDataset._get_pipeline_from_tar(shown(file), _members(file, problems))
    except ValueError as error:
        problems.append(reason(error))


def _members(file: str, problems: list[str]) -> Iterator[tuple[str, IO[bytes]]]:
    try:
        with _open(file, block_size=0) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                if member.isreg() and not os.path.basename(member.name).startswith((".", "__")):
                    # Read here, so that a damaged one ends the samples and not the program.
                    yield member.name, io.BytesIO(archive.extractfile(member).read())
                archive.members = []
    except Exception as error:
        problems.append(_damage(error))


class _Member(tarfile.TarInfo):
    """`tarfile` takes a header that is broken or missing for the end of the archive, without an error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the mark at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"unexpected end of data ({error})") from error


def _open(file: str, **kwargs) -> IO[bytes]:
    return xopen(file, "rb", **kwargs) if "://" in file else open_file(file)


def _damage(error: Exception) -> str:
    """What is wrong with a file. Raises errors that say nothing of it, such as those of a connection."""
    # Those of Arrow are plain ones without a number.
    is_plain = type(error) is OSError and error.errno is None
    if not is_plain and not isinstance(error, tarfile.TarError | EOFError | pa.ArrowInvalid):
        raise error
    return reason(error)


__all__ = [
    "SPLIT",
    "BuilderPart",
    "ParquetPart",
    "Part",
    "PartsBuilder",
    "TarPart",
    "parquet_footer",
    "pictures_of",
    "tar_columns",
]
