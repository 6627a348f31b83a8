"""Measurements of each image, in parquet files that are written batch by batch and reused by later runs."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from alit_hf.evaluation.settings import SettingsError
from alit_hf.utils.whole_file import whole_file


_IDENTITY_KEY = b"alit"
_MERGED = "images.parquet"


class ImageStore:
    """
    Rows of images in a folder: a file for each batch, and `images.parquet` once they are merged.

    Args:
        folder (`Path`): created when the first rows are added.
        identity (`dict`): what the rows depend on, in JSON's types; stored in every file.

    Raises:
        `SettingsError`: if the folder holds rows of another identity, or a file that cannot be read.
    """

    def __init__(self, folder: Path, identity: dict):
        self._folder = folder
        self._identity = json.loads(json.dumps(identity))
        self.digests: dict[tuple[str, int], str] = {}
        """The digest of each stored image, by data set and index."""
        for file in self._files():
            rows = self._read(file, ["data", "index", "digest"])
            for data, index, digest in zip(*rows.to_pydict().values(), strict=True):
                self.digests[data, index] = digest

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows of a batch, each with `data`, `index` and `digest`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Only for this process: another one's files must not be replaced, or removed when this one merges.
        writer = f"{socket.gethostname()}-{os.getpid()}"
        name = f"images-{rows[0]['data']}-{rows[0]['index']:08d}-{writer}.parquet"
        self._write(pa.Table.from_pylist([dict(row) for row in rows]), self._folder / name)

    def merge(self) -> pd.DataFrame:
        """Merges the rows of all processes into one file and returns them, ordered by `data` and `index`."""
        files = self._files()
        if not files:
            return pd.DataFrame({"data": [], "index": []})
        tables = [self._read(file, None) for file in files]
        table = pa.concat_tables(tables, promote_options="permissive").sort_by(
            [("data", "ascending"), ("index", "ascending")]
        )
        # A run that ended while merging leaves batches that are also in the merged file.
        rows = table.to_pandas().drop_duplicates(["data", "index"])
        if files != [self._folder / _MERGED]:
            self._write(table.take(rows.index.to_numpy()), self._folder / _MERGED)
            for file in files:
                if file.name != _MERGED:
                    file.unlink()
        return rows.reset_index(drop=True)

    def _files(self) -> list[Path]:
        batches = sorted(self._folder.glob("images-*.parquet"))
        return [file for file in (self._folder / _MERGED, *batches) if file.is_file()]

    def _read(self, file: Path, columns: list[str] | None) -> pa.Table:
        try:
            stored = json.loads(pq.read_schema(file).metadata[_IDENTITY_KEY])
            table = pq.read_table(file, columns=columns)
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            raise SettingsError(
                f"{file} holds no results that can be taken up, remove it or choose another folder"
            ) from error
        if stored != self._identity:
            pairs = {name: (stored.get(name), self._identity.get(name)) for name in self._identity | stored}
            differences = "; ".join(
                f"{name} {theirs!r} instead of {ours!r}" for name, (theirs, ours) in pairs.items() if theirs != ours
            )
            raise SettingsError(
                f"{self._folder} holds results of another run, remove them or choose another folder: {differences}"
            )
        return table

    def _write(self, table: pa.Table, path: Path) -> None:
        with whole_file(path) as unfinished:
            pq.write_table(table.replace_schema_metadata({_IDENTITY_KEY: json.dumps(self._identity)}), unfinished)


__all__ = ["ImageStore"]
