"""The parquet files of a data set of tokens: which rows are in which, written whole, and what is there already."""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alit_hf.utils.whole_file import unfinished_files, whole_file


_FOLDER = "data"
_METADATA_KEY = b"alit_hf"


@dataclass(frozen=True)
class ShardRecord:
    """
    What a shard was made of. Stands in the shard, so that both are there or neither.

    Args:
        part (`int`): of the data, from 0.
        block (`int`): of the part, from 0. The shard is made of `rows_per_shard` rows from row
            `block * rows_per_shard` on.
        num_rows (`int`): of the data, the undecodable ones among them; fewer than `rows_per_shard` at most where
            the part ends.
        is_last (`bool`): whether the part ends here.
        undecodable (`list[dict]`): `{"part", "row", "file_name", "reason"}` of the pictures that could not be decoded.
    """

    part: int
    block: int
    num_rows: int
    is_last: bool
    undecodable: list[dict]


class Shards:
    """
    The shards in a folder, `data/SPLIT-PART-BLOCK.parquet`.

    Args:
        folder (`Path`): of the data set.
        split (`str`): that `load_dataset` finds the rows in.
    """

    def __init__(self, folder: Path, split: str):
        self.folder = folder / _FOLDER
        self.split = split

    @property
    def pattern(self) -> str:
        """Of the paths of the shards in the data set."""
        return f"{_FOLDER}/{self.split}-*.parquet"

    def path(self, part: int, block: int) -> Path:
        return self.folder / f"{self.split}-{part:05d}-{block:05d}.parquet"

    def write(self, table: pa.Table, record: ShardRecord) -> None:
        """Writes a shard. Whenever the process ends, it is there as a whole or not at all."""
        metadata = {**(table.schema.metadata or {}), _METADATA_KEY: json.dumps(dataclasses.asdict(record)).encode()}
        with (
            whole_file(self.path(record.part, record.block)) as unfinished,
            pq.ParquetWriter(unfinished, table.schema.with_metadata(metadata)) as writer,
        ):
            # `load_dataset` takes a file without row groups, but none with a row group that has no rows.
            if table.num_rows:
                writer.write_table(table)

    def prepare(self) -> None:
        """Makes the folder, and takes away what a process left that was killed while it was writing."""
        self.folder.mkdir(exist_ok=True)
        for path in unfinished_files(self.folder):
            path.unlink()

    def paths(self) -> list[Path]:
        """The shards that are there, in the order of the data."""
        name = re.compile(rf"{re.escape(self.split)}-(\d+)-(\d+)\.parquet")
        found = [(name.fullmatch(path.name), path) for path in self.folder.glob("*.parquet")]
        return [path for _, path in sorted((tuple(map(int, match.groups())), path) for match, path in found if match)]

    def records(self) -> Iterator[ShardRecord]:
        """
        Of the shards that are there, in the order of the data.

        Raises:
            `ValueError`: if one has been altered, or another program wrote it.
        """
        for path in self.paths():
            try:
                record = ShardRecord(**json.loads(pq.read_schema(path).metadata[_METADATA_KEY]))
            except (pa.ArrowException, TypeError, KeyError, ValueError) as error:
                raise ValueError(f"{path} is no shard that `alit tokenize` has written: {error}") from error
            if self.path(record.part, record.block) != path:
                raise ValueError(f"{path} holds the rows of {self.path(record.part, record.block).name}")
            yield record


def first_missing_block(records: dict[int, ShardRecord]) -> int | None:
    """
    The first block of a part that is not there, `None` where the part is complete.

    Args:
        records (`dict[int, ShardRecord]`): of the part's shards that are there, by block.
    """
    block = 0
    while block in records:
        if records[block].is_last:
            return None
        block += 1
    return block


__all__ = ["ShardRecord", "Shards", "first_missing_block"]
