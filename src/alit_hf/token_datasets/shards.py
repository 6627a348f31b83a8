"""The parquet files of a data set of tokens: which rows each holds, writing them whole, and finding existing ones."""

import dataclasses
import hashlib
import json
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alit_hf.codes.token_file import whole_number
from alit_hf.utils.whole_file import unfinished_files, whole_file


_FOLDER = "data"
_METADATA_KEY = b"alit_hf"


@dataclass(frozen=True)
class ShardRecord:
    """
    What a shard was made from. Stored inside the shard, so that both exist or neither.

    Args:
        part (`int`): of the data, from 0.
        block (`int`): of the part, from 0. The shard is made from `rows_per_shard` rows, starting at row
            `block * rows_per_shard`.
        num_rows (`int`): of the data, including undecodable ones; fewer than `rows_per_shard` only at the end of the
            part.
        is_last (`bool`): whether the part ends here.
        undecodable (`list[dict]`): `{"part", "row", "file_name", "reason"}` of the pictures that could not be decoded.
        damage (`list[dict]`): the same of the part's file, where the shard ends because it is damaged.
        part_fingerprint (`str`, *optional*): of the part, see [`~image_rows.ImageRows`]; older shards have none.

    Raises:
        `ValueError`: if a field is not as above.
    """

    part: int
    block: int
    num_rows: int
    is_last: bool
    undecodable: list[dict]
    damage: list[dict] = dataclasses.field(default_factory=list)
    part_fingerprint: str | None = None

    def __post_init__(self):
        for name in ("part", "block", "num_rows"):
            whole_number(name, getattr(self, name), 0, 2**63 - 1)
        if not isinstance(self.is_last, bool):
            raise ValueError(f"`is_last` is {reprlib.repr(self.is_last)}, it must be true or false")
        for name in ("undecodable", "damage"):
            value = getattr(self, name)
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise ValueError(f"`{name}` is {reprlib.repr(value)}, it must be a list of objects")


class Shards:
    """
    The shards in a folder, `data/SPLIT-PART-BLOCK.parquet`.

    Args:
        folder (`Path`): of the data set.
        split (`str`): the split in which `load_dataset` finds the rows.
    """

    def __init__(self, folder: Path, split: str):
        self.folder = folder / _FOLDER
        self.split = split

    @property
    def pattern(self) -> str:
        """Glob pattern of the shards' paths in the data set."""
        return f"{_FOLDER}/{self.split}-*.parquet"

    def path(self, part: int, block: int) -> Path:
        return self.folder / f"{self.split}-{part:05d}-{block:05d}.parquet"

    def write(self, table: pa.Table, record: ShardRecord) -> None:
        """Writes a shard. Even if the process is killed, it exists whole or not at all."""
        metadata = {**(table.schema.metadata or {}), _METADATA_KEY: json.dumps(dataclasses.asdict(record)).encode()}
        with (
            whole_file(self.path(record.part, record.block)) as unfinished,
            pq.ParquetWriter(unfinished, table.schema.with_metadata(metadata)) as writer,
        ):
            # `load_dataset` accepts a file without row groups, but not one with an empty row group.
            if table.num_rows:
                writer.write_table(table)

    def delete(self, part: int) -> None:
        """Deletes the shards of a part, the last one last: it says whether the part was damaged."""
        for path in self.paths():
            if path.name.startswith(f"{self.split}-{part:05d}-"):
                path.unlink()

    def prepare(self) -> None:
        """Creates the folder, and removes what a process killed while writing left behind."""
        self.folder.mkdir(exist_ok=True)
        for path in unfinished_files(self.folder):
            path.unlink()

    def paths(self) -> list[Path]:
        """The existing shards, in the order of the data."""
        name = re.compile(rf"{re.escape(self.split)}-(\d+)-(\d+)\.parquet")
        found = [(name.fullmatch(path.name), path) for path in self.folder.glob("*.parquet")]
        return [path for _, path in sorted((tuple(map(int, match.groups())), path) for match, path in found if match)]

    def digest(self) -> str:
        """SHA-256 of the shards' names and contents, in hexadecimal digits."""
        digest = hashlib.sha256()
        for path in self.paths():
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def records(self) -> Iterator[ShardRecord]:
        """
        Records of the existing shards, in the order of the data.

        Raises:
            `ValueError`: if one has been altered, or another program wrote it.
        """
        for path in self.paths():
            try:
                record = ShardRecord(**json.loads(pq.read_schema(path).metadata[_METADATA_KEY]))
            except (pa.ArrowException, TypeError, KeyError, ValueError, RecursionError) as error:
                raise ValueError(f"{path} is no shard that `alit tokenize` has written: {error}") from error
            if self.path(record.part, record.block) != path:
                raise ValueError(f"{path} holds the rows of {self.path(record.part, record.block).name}")
            yield record


def first_missing_block(records: dict[int, ShardRecord]) -> int | None:
    """
    The first missing block of a part, `None` if the part is complete.

    Args:
        records (`dict[int, ShardRecord]`): of the part's existing shards, by block.
    """
    block = 0
    while block in records:
        if records[block].is_last:
            return None
        block += 1
    return block


__all__ = ["ShardRecord", "Shards", "first_missing_block"]
