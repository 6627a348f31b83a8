"""`alit encode`: pictures to `.alit` files."""

import argparse
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alit_hf.data.sources import PICTURES
from alit_hf.utils.shown_text import shown

from .batches import print_jobs, run_jobs
from .errors import FAILED
from .jobs import Job, add_job_arguments, make_output_folder, open_source, plan_jobs, target_name
from .options import (
    add_batch_size_argument,
    add_length_arguments,
    add_model_arguments,
    add_num_workers_argument,
    length_choice,
    make_encoder,
)
from .printing import add_printing_arguments, print_bytes, print_line


if TYPE_CHECKING:
    from alit_hf.codes.picture_codes import Picture, PictureCode, PictureEncoder


class _Written(NamedTuple):
    """What is to be said of a file."""

    num_tokens: int
    file_bytes: int
    score: float | None
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
    add_printing_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    choice = length_choice(arguments)
    jobs = plan_jobs(arguments.inputs, arguments.output, PICTURES, (".alit",), _is_token_file)

    from alit_hf.codes.picture_codes import to_picture
    from alit_hf.codes.rollout_progress import rollout_progress
    from alit_hf.model.image_io import open_image

    from .loading import load_model

    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    encoder = make_encoder(model, choice)
    make_output_folder(jobs)

    def read(path: Path | None) -> "Picture":
        return to_picture(open_image(open_source(path)), processor)

    def write(code: "PictureCode", path: Path | None) -> _Written:
        contents = code.tokens.to_bytes()
        if path is None:
            print_bytes(contents)
        else:
            code.tokens.save(path)
        return _Written(code.tokens.num_tokens, len(contents), code.score, code.satisfied)

    done, failed = run_jobs(
        jobs,
        read,
        encoder.encode,
        write,
        arguments.batch_size,
        arguments.num_workers,
        "encoding",
        partial(rollout_progress, model),
    )
    if done:
        print_line(_summary(done, arguments.output, encoder))
    print_jobs([(job, _facts(written)) for job, written in done], failed, settings=asdict(choice))
    return FAILED if failed else 0


def _is_token_file(path: Path) -> bool:
    from alit_hf.codes.token_file import MAGIC

    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _summary(done: list[tuple[Job, _Written]], output: str, encoder: "PictureEncoder") -> str:
    if len(done) == 1:
        job, file = done[0]
        text = f"{shown(target_name(job.target))}: {file.num_tokens} tokens, {file.file_bytes} bytes"
        if file.score is not None:
            text += f", score {_score(file.score, encoder)}" + ("" if file.satisfied else f" ({encoder.shortfall})")
        return text
    lengths = [file.num_tokens for _, file in done]
    text = (
        f"{len(done)} files in {output}: {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(lengths) / len(lengths):.1f} on average, {sum(file.file_bytes for _, file in done)} bytes"
    )
    num_unsatisfied = sum(file.satisfied is False for _, file in done)
    return text + (f"; {num_unsatisfied} {encoder.shortfall}" if num_unsatisfied else "")


def _facts(written: _Written) -> dict:
    # JSON has no infinity, which is the PSNR of a picture that is reproduced exactly.
    is_number = written.score is not None and math.isfinite(written.score)
    return written._replace(score=written.score if is_number else None)._asdict()


def _score(score: float, encoder: "PictureEncoder") -> str:
    from alit_hf.model.selection import is_higher_better, with_unit

    text = with_unit(encoder.criterion, f"{score:.4f}")
    if encoder.choice.confidence is None:
        return text
    return f"at {'least' if is_higher_better(encoder.criterion) else 'most'} {text}"


__all__ = ["add_parser", "run"]
