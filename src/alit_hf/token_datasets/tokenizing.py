"""Turns the pictures of a data set into tokens, shard by shard, and continues where an earlier run stopped."""

import dataclasses
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alit_hf.codes.picture_codes import Picture, PictureCode, PictureEncoder, to_picture
from alit_hf.codes.rollout_progress import rollout_progress
from alit_hf.data.columns import FILE_NAME
from alit_hf.data.image_rows import ImageRows
from alit_hf.data.picture_cells import fetch, picture_path, read_picture
from alit_hf.model.image_processing_alit import ALITImageProcessor
from alit_hf.model.selection import meets_threshold, resolve_criterion
from alit_hf.utils.error_reason import reason
from alit_hf.utils.prefetch import map_batches, read_ahead
from alit_hf.utils.processes import Processes
from alit_hf.utils.progress import ProgressBar
from alit_hf.utils.shown_text import shown
from alit_hf.utils.sole_use import LOCK_FILE, sole_use
from alit_hf.utils.whole_file import unfinished_files, write_text

from .card import CARD_FILE, UNDECODABLE_FILE, card
from .info import INFO_FILE, TokenDatasetInfo, TokenDatasetSummary
from .shards import ShardRecord, Shards, first_missing_block


TOKEN_FEATURES = datasets.Features(
    {
        "token_ids": datasets.List(datasets.Value("uint16")),
        "num_tokens": datasets.Value("int32"),
        "score": datasets.Value("float32"),
        "original_size": datasets.List(datasets.Value("uint32"), length=2),
    }
)
"""The columns that replace the picture. `score` is null if all lengths are the same, `original_size` is width and
height in pixels."""


class OutputError(ValueError):
    """The output cannot take these tokens. Raised before any work."""


def check_columns(rows: ImageRows) -> None:
    """
    Raises:
        [`OutputError`]: if the data have columns that the tokens' columns would replace.
    """
    if taken := sorted(set(rows.features) & set(TOKEN_FEATURES)):
        raise OutputError(
            f"the data have the columns {', '.join(taken)}, which the tokens need: rename them, or keep only others"
        )


def tokenize_rows(
    rows: ImageRows,
    encoder: PictureEncoder,
    processor: ALITImageProcessor,
    info: TokenDatasetInfo,
    folder: Path,
    batch_size: int,
    processes: Processes | None = None,
    num_workers: int = 0,
) -> TokenDatasetSummary | None:
    """
    Writes a data set of tokens.

    The folder gets `data/*.parquet`, whose rows are those of the data in their order, without the picture and with
    `TOKEN_FEATURES`; `tokenization.json`, see [`TokenDatasetInfo`]; and at the end `undecodable.jsonl`, the pictures
    without a row and the files that are damaged, and `README.md`. Which rows a shard holds depends only on the data
    and `info.rows_per_shard`, and a shard exists whole or not at all. So the same call continues a run that was
    interrupted at any moment, even with another number of processes. A damaged file that has changed is tokenized
    again.

    Args:
        rows ([`ImageRows`]): from `open_rows`.
        encoder ([`PictureEncoder`])
        processor ([`ALITImageProcessor`]): brings pictures to the model's size.
        info ([`TokenDatasetInfo`]): from `TokenDatasetInfo.describe` for these arguments.
        folder (`Path`): new, empty, or from an earlier call with the same arguments; shared by all processes.
        batch_size (`int`): pictures at a time.
        processes ([`Processes`], *optional*): the processes that share the rows. Defaults to this one alone.
        num_workers (`int`, *optional*, defaults to 0): threads of each process that decode the next pictures while the
            model computes, after one more that reads the rows; 0 for none. The rows are the same.

    Returns:
        what the data set holds, on the first process; `None` on the others.

    Raises:
        [`OutputError`]: on all processes and before any work, if the folder holds something else, or tokens of other
            data or of another model or length; if another run is writing to it; and if the data have columns that the
            tokens' columns would replace.
        `ValueError`: if an existing shard has been altered.
        whatever reading the data raises, except for single pictures.
    """
    processes = processes or Processes()
    check_columns(rows)
    shards = Shards(folder, info.output_split)
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_use(folder, processes))
        except OSError as error:
            raise OutputError(f"the output cannot be used: {reason(error)}") from error
        problem = None
        if processes.rank == 0:
            try:
                _prepare(folder, info, rows, shards)
                shards.prepare()
            except (OutputError, OSError) as error:
                problem = str(error)
        # The others wait here for the first.
        if problem := processes.gather([problem])[0]:
            raise OutputError(problem)
        done = _records_by_part(shards)
        was_complete = _missing_shard(rows, done) is None
        _Run(rows, encoder, processor, shards, info.rows_per_shard, batch_size, processes, num_workers).work(done)
        processes.gather([])
        return _finish(folder, rows, info, shards, was_complete) if processes.rank == 0 else None


def _prepare(folder: Path, info: TokenDatasetInfo, rows: ImageRows, shards: Shards) -> None:
    path = folder / INFO_FILE
    left = unfinished_files(folder)
    if not path.is_file():
        others = sorted(other.name for other in folder.iterdir() if other not in left and other.name != LOCK_FILE)
        if others:
            raise OutputError(f"the output {folder} is not empty and holds no {INFO_FILE}, but {others[0]}")
        write_text(path, info.to_json())
    try:
        before = TokenDatasetInfo.load(folder)
        repaired = _repaired_parts(rows, _records_by_part(shards))
    except ValueError as error:
        raise OutputError(f"the output {folder}: {error}") from error
    if repaired:
        before = dataclasses.replace(before, data_fingerprint=info.data_fingerprint)
    if differences := info.differences(before):
        raise OutputError(
            f"the output {folder} holds tokens of another run, {'; '.join(differences)}: choose another output, or "
            "delete it"
        )
    if repaired:
        write_text(path, info.to_json())
        (folder / CARD_FILE).unlink(missing_ok=True)
        for part in repaired:
            shards.delete(part)
    for file in left:
        file.unlink()


def _repaired_parts(rows: ImageRows, records: dict[int, dict[int, ShardRecord]]) -> list[int]:
    """The parts whose files are others than their shards were made from, if all of these files were damaged."""
    fingerprints = dict(enumerate(rows.part_fingerprints))
    changed = [
        part
        for part, blocks in records.items()
        if any(record.part_fingerprint != fingerprints.get(part) for record in blocks.values())
    ]
    were_damaged = all(any(record.damage for record in records[part].values()) for part in changed)
    return changed if were_damaged else []


class _Piece(NamedTuple):
    """Rows of one shard, and whether they are its last and the part's last."""

    table: pa.Table | None
    ends_shard: bool
    ends_part: bool


def _pieces(tables: Iterable[pa.Table], rows_per_shard: int, batch_size: int) -> Iterator[_Piece]:
    """
    Cuts tables into batches that begin where shards begin, so that a batch holds the same rows wherever a run started.
    A part without rows is one piece without a table.
    """
    waiting, rest, filled = None, None, 0
    for table in tables:
        rest = pa.concat_tables([rest, table]) if rest is not None and rest.num_rows else table
        while rest.num_rows >= (size := min(batch_size, rows_per_shard - filled)):
            if waiting is not None:
                yield waiting
            filled = (filled + size) % rows_per_shard
            waiting, rest = _Piece(rest.slice(0, size), filled == 0, False), rest.slice(size)
    if rest is not None and rest.num_rows:
        if waiting is not None:
            yield waiting
        waiting = _Piece(rest, True, True)
    yield _Piece(None if waiting is None else waiting.table, True, True)


@dataclass(frozen=True)
class _Batch:
    """Rows of one shard that this process tokenizes: the pictures' cells, and the other columns."""

    part: int
    block: int
    row: int
    cells: list[dict | None]
    columns: pa.Table
    ends_shard: bool
    ends_part: bool

    def __iter__(self) -> Iterator[dict | None]:
        return iter(self.cells)


class _Run:
    """The work of one process."""

    def __init__(
        self,
        rows: ImageRows,
        encoder: PictureEncoder,
        processor: ALITImageProcessor,
        shards: Shards,
        rows_per_shard: int,
        batch_size: int,
        processes: Processes,
        num_workers: int,
    ):
        self.rows = rows
        self.encoder = encoder
        self.processor = processor
        self.shards = shards
        self.rows_per_shard = rows_per_shard
        self.batch_size = batch_size
        self.processes = processes
        self.num_workers = num_workers
        self.schema = datasets.Features({**rows.features, **TOKEN_FEATURES}).arrow_schema

    def work(self, done: dict[int, dict[int, ShardRecord]]) -> None:
        """Makes this process's missing shards."""
        count = self.processes.count
        batches = read_ahead(self._batches(done), self.num_workers)
        draft = None
        with (
            closing(map_batches(self._read, batches, self.batch_size, self.num_workers)) as read_batches,
            ProgressBar(
                # About as many for each process.
                total=None if self.rows.num_rows is None else math.ceil(self.rows.num_rows / count),
                initial=sum(
                    record.num_rows
                    for part, records in done.items()
                    for block, record in records.items()
                    if self._shares_part(part) and self._is_mine(block)
                ),
                desc="tokenizing" if count == 1 else f"tokenizing, process 0 of {count}",
            ) as progress,
        ):
            for batch, pictures in read_batches:
                fingerprint = self.rows.part_fingerprints[batch.part]
                draft = draft or _Draft(batch.part, batch.block, batch.row, fingerprint)
                with rollout_progress(self.encoder.model, progress, len(batch.cells)):
                    self._tokenize(batch, pictures, draft)
                progress.update(len(batch.cells))
                if batch.ends_shard:
                    table = pa.concat_tables([self.schema.empty_table(), *draft.tables])
                    self.shards.write(table, draft.record(batch.ends_part))
                    draft = None

    def _shares_part(self, part: int) -> bool:
        """Each part is read by one process if there are enough parts, and by all processes otherwise."""
        rank, count = self.processes.rank, self.processes.count
        return self.rows.num_parts < count or part % count == rank

    def _is_mine(self, block: int) -> bool:
        rank, count = self.processes.rank, self.processes.count
        return self.rows.num_parts >= count or block % count == rank

    def _batches(self, done: dict[int, dict[int, ShardRecord]]) -> Iterator[_Batch]:
        """The rows of this process's missing shards, shard after shard."""
        for part in range(self.rows.num_parts):
            block = first_missing_block(done[part])
            if block is None or not self._shares_part(part):
                continue
            row = block * self.rows_per_shard
            tables = self.rows.tables(part, row, self.batch_size)
            for table, ends_shard, ends_part in _pieces(tables, self.rows_per_shard, self.batch_size):
                if self._is_mine(block) and block not in done[part]:
                    cells, columns = [], self.rows.features.arrow_schema.empty_table()
                    if table is not None:
                        cells, columns = self.rows.pictures_and_columns(table)
                    yield _Batch(part, block, row, cells, columns, ends_shard, ends_part)
                row += 0 if table is None else table.num_rows
                block += ends_shard

    def _read(self, cell: dict | None) -> Picture | Exception | None:
        """The picture, or what is wrong with it; nothing if the whole file is damaged."""
        if cell is not None and cell["damage"]:
            return None
        cell = fetch(cell)
        try:
            return to_picture(read_picture(cell), self.processor)
        except Exception as error:
            # Whatever is wrong with one picture must not stop the others.
            return error

    def _tokenize(self, batch: _Batch, pictures: list[Picture | Exception | None], draft: "_Draft") -> None:
        kept = []
        for number, (cell, picture) in enumerate(zip(batch.cells, pictures, strict=True)):
            if picture is None:
                draft.add_damage(number, cell)
            elif isinstance(picture, Exception):
                draft.add_undecodable(number, cell, batch.columns[FILE_NAME][number].as_py(), picture)
            else:
                kept.append(number)
        codes = self.encoder.encode([pictures[number] for number in kept]) if kept else []
        columns = batch.columns.take(pa.array(kept, pa.int64())).columns
        draft.add(len(pictures), pa.Table.from_arrays([*columns, *_columns(codes)], schema=self.schema))


class _Draft:
    """A shard that is not complete yet."""

    def __init__(self, part: int, block: int, first_row: int, part_fingerprint: str):
        self.part = part
        self.block = block
        self.first_row = first_row
        self.part_fingerprint = part_fingerprint
        self.num_rows = 0
        self.tables: list[pa.Table] = []
        self.undecodable: list[dict] = []
        self.damage: list[dict] = []

    def add(self, num_rows: int, table: pa.Table) -> None:
        """Adds the tokens of `num_rows` rows."""
        self.num_rows += num_rows
        self.tables.append(table)

    def add_undecodable(self, number: int, cell: dict | None, file_name: str | None, error: Exception) -> None:
        """Records an undecodable picture among the rows that are added next."""
        path = picture_path(cell)
        # Data sets are shared, and others need not see this machine's folders.
        why = reason(error, path, file_name or shown(os.path.basename(path or "")))
        self.undecodable.append(self._entry(number, file_name, why))

    def add_damage(self, number: int, cell: dict) -> None:
        """Records that the part's file is damaged, in place of a row among those that are added next."""
        self.damage.append(self._entry(number, cell["path"], cell["damage"]))

    def _entry(self, number: int, file_name: str | None, why: str) -> dict:
        row = self.first_row + self.num_rows + number
        return {"part": self.part, "row": row, "file_name": file_name, "reason": why}

    def record(self, is_last: bool) -> ShardRecord:
        return ShardRecord(
            self.part, self.block, self.num_rows, is_last, self.undecodable, self.damage, self.part_fingerprint
        )


def _columns(codes: list[PictureCode]) -> list[pa.Array]:
    """The values of `TOKEN_FEATURES`."""
    values = {
        "token_ids": [code.tokens.token_ids.astype(np.uint16) for code in codes],
        "num_tokens": [code.tokens.num_tokens for code in codes],
        "score": [code.score for code in codes],
        "original_size": [code.tokens.original_size for code in codes],
    }
    return [pa.array(values[field.name], field.type) for field in TOKEN_FEATURES.arrow_schema]


def _records_by_part(shards: Shards) -> dict[int, dict[int, ShardRecord]]:
    records = defaultdict(dict)
    for record in shards.records():
        records[record.part][record.block] = record
    return records


def _missing_shard(rows: ImageRows, records: dict[int, dict[int, ShardRecord]]) -> tuple[int, int] | None:
    """Part and block of the first missing shard, `None` if there is none."""
    for part in range(rows.num_parts):
        if (block := first_missing_block(records[part])) is not None:
            return part, block
    return None


def _finish(
    folder: Path, rows: ImageRows, info: TokenDatasetInfo, shards: Shards, was_complete: bool
) -> TokenDatasetSummary:
    if missing := _missing_shard(rows, _records_by_part(shards)):
        raise ValueError(f"{shards.path(*missing)} is not there, though all processes are done")
    records = list(shards.records())
    undecodable = [image for record in records for image in record.undecodable]
    damage = [file for record in records for file in record.damage]
    write_text(folder / UNDECODABLE_FILE, "".join(json.dumps(line) + "\n" for line in [*undecodable, *damage]))
    summary = _summarize(shards, info, len(undecodable), was_complete, [file["reason"] for file in damage])
    write_text(folder / CARD_FILE, card(info, shards, summary))
    return summary


def _summarize(
    shards: Shards, info: TokenDatasetInfo, num_undecodable: int, was_complete: bool, damage: list[str]
) -> TokenDatasetSummary:
    lengths: dict[int, int] = defaultdict(int)
    num_unsatisfied = 0
    for path in shards.paths():
        columns = pq.read_table(path, columns=["num_tokens", "score"]).to_pydict()
        for length in columns["num_tokens"]:
            lengths[length] += 1
        if info.threshold is not None:
            criterion = resolve_criterion(info.criterion)
            num_unsatisfied += sum(not meets_threshold(criterion, score, info.threshold) for score in columns["score"])
    return TokenDatasetSummary(
        sum(lengths.values()), num_undecodable, dict(sorted(lengths.items())), num_unsatisfied, was_complete, damage
    )


__all__ = ["TOKEN_FEATURES", "OutputError", "check_columns", "tokenize_rows"]
