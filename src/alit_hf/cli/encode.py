"""`alit encode`: pictures to `.alit` files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alit_hf.data.sources import PICTURES
from alit_hf.utils.shown_text import shown

from .batches import run_jobs
from .errors import FAILED
from .jobs import add_job_arguments, make_output_folder, plan_jobs
from .options import (
    add_batch_size_argument,
    add_length_arguments,
    add_model_arguments,
    add_num_workers_argument,
    length_choice,
    make_encoder,
)
from .printing import print_line


if TYPE_CHECKING:
    from alit_hf.codes.picture_codes import Picture, PictureCode, PictureEncoder


class _Written(NamedTuple):
    """What the summary says about a file."""

    num_tokens: int
    num_bytes: int
    score: str | None
    satisfied: bool | None


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "encode",
        help="pictures to .alit files",
        description="Encodes pictures, each in as many tokens as it needs or all in the same number, to .alit files.",
    )
    add_job_arguments(
        parser,
        inputs_help="pictures, or folders of them (with their subfolders, hidden ones left out)",
        output_help="a folder (only .alit files in it are replaced), or for one picture a file name ending in .alit; "
        "an existing file is replaced",
    )
    add_length_arguments(parser)
    add_model_arguments(parser)
    add_batch_size_argument(parser)
    add_num_workers_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    choice = length_choice(arguments)
    jobs = plan_jobs(arguments.inputs, arguments.output, PICTURES, (".alit",), _is_token_file)

    from alit_hf.codes.picture_codes import to_picture
    from alit_hf.model.image_io import open_image
    from alit_hf.model.selection import is_higher_better, with_unit

    from .loading import load_model

    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    encoder = make_encoder(model, choice)
    make_output_folder(jobs)

    def read(path: Path) -> "Picture":
        return to_picture(open_image(path), processor)

    def write(code: "PictureCode", path: Path) -> _Written:
        code.tokens.save(path)
        score = None if code.score is None else with_unit(encoder.criterion, f"{code.score:.4f}")
        if choice.confidence is not None:
            score = f"at {'least' if is_higher_better(encoder.criterion) else 'most'} {score}"
        return _Written(code.tokens.num_tokens, path.stat().st_size, score, code.satisfied)

    done, num_failed = run_jobs(
        jobs, read, encoder.encode, write, arguments.batch_size, arguments.num_workers, "encoding"
    )
    if done:
        print_line(_summary([(job.target, written) for job, written in done], arguments.output, encoder))
    return FAILED if num_failed else 0


def _is_token_file(path: Path) -> bool:
    from alit_hf.codes.token_file import MAGIC

    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _summary(written: list[tuple[Path, _Written]], output: str, encoder: "PictureEncoder") -> str:
    if len(written) == 1:
        path, file = written[0]
        text = f"{shown(path)}: {file.num_tokens} tokens, {file.num_bytes} bytes"
        if file.score is not None:
            text += f", score {file.score}" + ("" if file.satisfied else f" ({encoder.shortfall})")
        return text
    lengths = [file.num_tokens for _, file in written]
    text = (
        f"{len(written)} files in {output}: {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(lengths) / len(lengths):.1f} on average, {sum(file.num_bytes for _, file in written)} bytes"
    )
    num_unsatisfied = sum(file.satisfied is False for _, file in written)
    return text + (f"; {num_unsatisfied} {encoder.shortfall}" if num_unsatisfied else "")


__all__ = ["add_parser", "run"]
