"""`alit tokenize`: a data set of pictures to one of tokens."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from alit_hf.data.sources import is_hub_id, is_on_hub
from alit_hf.utils.cache import cache_folder
from alit_hf.utils.error_reason import reason
from alit_hf.utils.image_count import image_count
from alit_hf.utils.option_types import distinct_names, positive_integer
from alit_hf.utils.processes import Processes

from .errors import FAILED, FileError, UsageError
from .jobs import check_outside_data, check_writable
from .options import (
    SOURCES,
    add_batch_size_argument,
    add_length_arguments,
    add_model_arguments,
    add_num_workers_argument,
    add_source_arguments,
    length_choice,
    make_encoder,
    open_source,
)
from .printing import add_printing_arguments, print_error, print_json, print_line, print_note
from .shared_work import run_shared


if TYPE_CHECKING:
    from alit_hf.codes.picture_codes import PictureEncoder
    from alit_hf.token_datasets.info import TokenDatasetSummary


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "tokenize",
        help="a data set of pictures to one of tokens, in parquet or on the Hub",
        description="Replaces the pictures of a data set by tokens and keeps its other columns, for "
        "`datasets.load_dataset` to read. After an interruption, the same command continues where it stopped.",
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        nargs="+",
        help=SOURCES,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--keep",
        metavar="COLUMN,COLUMN",
        type=distinct_names,
        help="the other columns to keep, such as label,caption (default: all)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="a folder, created if needed; or ORGANIZATION/NAME on the Hub, if there is no folder ORGANIZATION (write "
        "./ORGANIZATION/NAME for a folder): the data set is pushed at the end, private if the repository is new",
    )
    add_length_arguments(parser)
    parser.add_argument(
        "--rows-per-shard",
        metavar="R",
        type=positive_integer,
        default=1000,
        help="rows of the data in one parquet file, the most that an interruption can cost (default: %(default)s)",
    )
    add_model_arguments(parser)
    add_batch_size_argument(parser)
    add_num_workers_argument(parser)
    add_printing_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    return run_shared(_tokenize, arguments)


def _tokenize(arguments: argparse.Namespace, processes: Processes) -> int:
    """With several processes, the first one prints and pushes."""
    choice = length_choice(arguments)
    repo_id = arguments.output if _is_on_the_hub(arguments.output) else None
    folder = Path(arguments.output) if repo_id is None else _folder_before_push(repo_id)
    check_outside_data(folder, arguments.dataset)
    check_writable(folder)

    import datasets

    from alit_hf.token_datasets.hub import check_repository, push
    from alit_hf.token_datasets.info import TokenDatasetInfo
    from alit_hf.token_datasets.tokenizing import OutputError, check_columns, tokenize_rows

    from .loading import load_model

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        rows = open_source(arguments.dataset, arguments, columns=arguments.keep)
        check_columns(rows)
    except ValueError as error:
        raise UsageError(f"DATASET: {reason(error)}") from error
    for note in rows.passed_over if processes.rank == 0 else ():
        print_note(note)
    model, processor = load_model(arguments.model, arguments.device, arguments.dtype, processes)
    encoder = make_encoder(model, choice)
    info = TokenDatasetInfo.describe(rows, encoder, processor, arguments.rows_per_shard)
    try:
        if repo_id is not None:
            check_repository(repo_id, info)
        summary = tokenize_rows(
            rows, encoder, processor, info, folder, arguments.batch_size, processes, arguments.num_workers
        )
    except OutputError as error:
        raise UsageError(reason(error)) from error
    except Exception as error:  # the libraries that read the data raise their own
        raise FileError(
            f"tokenizing failed: {reason(error)} (what is in {folder} stays, the same command goes on from there)"
        ) from error
    if summary is None:
        return 0
    for file in summary.damage:
        print_error(file)
    if summary.damage and not is_on_hub(arguments.dataset):
        print_error("once these files are whole, the same command goes on with them")
    if summary.num_images == 0:
        raise FileError(f"none of {image_count(summary.num_undecodable)} can be decoded, see {folder}")
    commit = None
    if repo_id is not None:
        if summary.damage:
            raise FileError(f"{repo_id} was not pushed, as rows are missing; the others are in {folder}")
        try:
            commit = push(folder, repo_id)
        except Exception as error:
            raise FileError(f"{repo_id} was not pushed: {reason(error)} (the same command pushes {folder})") from error
        print_line(commit)
    if summary.num_undecodable:
        undecodable = image_count(summary.num_undecodable)
        print_error(f"{undecodable} could not be decoded, {folder} lists them in undecodable.jsonl")
    print_line(_summary(folder, summary, encoder))
    print_json({"output": str(folder), "commit": commit, **asdict(summary), "num_tokens": summary.num_tokens})
    return FAILED if summary.num_undecodable or summary.damage else 0


def _is_on_the_hub(output: str) -> bool:
    return is_hub_id(output) and not any(os.path.lexists(path) for path in (output, output.split("/")[0]))


def _folder_before_push(repo_id: str) -> Path:
    return cache_folder() / "tokenized" / repo_id.replace("/", "--")


def _summary(folder: Path, summary: "TokenDatasetSummary", encoder: "PictureEncoder") -> str:
    shortest, longest = min(summary.lengths), max(summary.lengths)
    complete = ""
    if summary.was_complete:
        complete = " has what can be read" if summary.damage else " was complete"
        complete += ", nothing was tokenized"
    text = (
        f"{folder}{complete}: {image_count(summary.num_images)}, {shortest} to {longest} tokens, "
        f"{summary.num_tokens / summary.num_images:.1f} on average"
    )
    return text + (f"; {summary.num_unsatisfied} {encoder.shortfall}" if summary.num_unsatisfied else "")


__all__ = ["add_parser", "run"]
