"""`alit encode`: pictures to `.alit` files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alit_hf.picture_files import PICTURE_SUFFIXES

from .batches import run_jobs
from .errors import FAILED, UsageError
from .jobs import add_job_arguments, make_output_folder, plan_jobs
from .options import DEFAULT_THRESHOLD, add_batch_size_argument, add_model_arguments, finite_number, positive_integer


if TYPE_CHECKING:
    import torch

    from alit_hf.token_file import TokenFile


class _Picture(NamedTuple):
    """A picture that was read: pixels (3, H, W) in [0, 1], and width and height of its file."""

    pixel_values: "torch.Tensor"
    original_size: tuple[int, int]


class _Code(NamedTuple):
    """A picture's code, with the criterion's value where a threshold chose its length."""

    tokens: "TokenFile"
    score: float | None
    satisfied: bool | None


class _Written(NamedTuple):
    """What the summary says of a file."""

    num_tokens: int
    num_bytes: int
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
        inputs_help="pictures, or folders of them (with their subfolders)",
        output_help="a folder, or for one picture a file name ending in .alit; existing files are replaced",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--threshold",
        metavar="T",
        type=finite_number,
        help="use the fewest tokens whose criterion is below this, and all where none is "
        f"(default: {DEFAULT_THRESHOLD}, for the criterion l1)",
    )
    length.add_argument("--num-tokens", metavar="N", type=positive_integer, help="use N tokens for every picture")
    parser.add_argument(
        "--criterion",
        metavar="C",
        help="l1 (mean absolute error of pixels in [0, 1]), l2 (mean squared error), psnr (minus dB: --threshold -25 "
        "for more than 25 dB) or lpips (default: l1)",
    )
    add_model_arguments(parser)
    add_batch_size_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    threshold, num_tokens, criterion = _check_selection(arguments)
    jobs = plan_jobs(arguments.inputs, arguments.output, PICTURE_SUFFIXES, (".alit",))

    import torch

    from alit_hf.image_io import open_image
    from alit_hf.selection import resolve_criterion
    from alit_hf.token_file import TokenFile, model_fingerprint

    from .loading import load_model

    try:
        criterion = resolve_criterion(criterion)
    except (ValueError, OSError) as error:
        raise UsageError(f"--criterion {criterion} cannot be used: {error}") from error
    model, processor = load_model(arguments.model, arguments.device, arguments.dtype)
    config = model.config
    if not config.quantize:
        raise UsageError("the model has continuous latent tokens, an .alit file holds ids of discrete ones")
    step, longest = config.tokens_per_rollout, config.max_tokens
    if num_tokens is not None and (num_tokens % step or num_tokens > longest):
        raise UsageError(f"--num-tokens is {num_tokens}, it must be a multiple of {step} between {step} and {longest}")
    fingerprint = model_fingerprint(model)
    make_output_folder(jobs)

    def read(path: Path) -> _Picture:
        image = open_image(path)
        return _Picture(processor(image, return_tensors="pt").pixel_values[0], image.size)

    @torch.inference_mode()
    def encode(pictures: list[_Picture]) -> list[_Code]:
        pixel_values = torch.stack([picture.pixel_values for picture in pictures]).to(model.device)
        # Only a model with dynamic halting draws numbers; the same command is to give the same files.
        generator = torch.Generator(model.device).manual_seed(0)
        code = model.encode(
            pixel_values, num_tokens=num_tokens, threshold=threshold, criterion=criterion, generator=generator
        )
        codes = []
        for row, (picture, length) in enumerate(zip(pictures, code.num_tokens.tolist(), strict=True)):
            tokens = TokenFile(
                token_ids=code.token_ids[row, :length],
                original_size=picture.original_size,
                grid_size=code.grid_size,
                codebook_size=config.codebook_size,
                fingerprint=fingerprint,
            )
            chosen = (None, None) if threshold is None else (code.score[row].item(), code.satisfied[row].item())
            codes.append(_Code(tokens, *chosen))
        return codes

    def write(code: _Code, path: Path) -> _Written:
        code.tokens.save(path)
        return _Written(code.tokens.num_tokens, path.stat().st_size, code.score, code.satisfied)

    done, num_failed = run_jobs(jobs, read, encode, write, arguments.batch_size, "encoding")
    if done:
        print(_summary([(job.target, written) for job, written in done], arguments.output))
    return FAILED if num_failed else 0


def _check_selection(arguments: argparse.Namespace) -> tuple[float | None, int | None, str]:
    """Threshold, number of tokens and criterion."""
    if arguments.num_tokens is not None:
        if arguments.criterion is not None:
            raise UsageError("--criterion chooses lengths together with --threshold, not with --num-tokens")
        return None, arguments.num_tokens, "l1"
    criterion = arguments.criterion or "l1"
    if arguments.threshold is None:
        if criterion != "l1":
            raise UsageError(f"--criterion {criterion} needs a --threshold in its own units")
        return DEFAULT_THRESHOLD, None, criterion
    return arguments.threshold, None, criterion


def _summary(written: list[tuple[Path, _Written]], output: str) -> str:
    if len(written) == 1:
        path, file = written[0]
        text = f"{path}: {file.num_tokens} tokens, {file.num_bytes} bytes"
        if file.score is not None:
            text += f", score {file.score:.4f}" + ("" if file.satisfied else " (not below the threshold)")
        return text
    lengths = [file.num_tokens for _, file in written]
    text = (
        f"{len(written)} files in {output}: {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(lengths) / len(lengths):.1f} on average, {sum(file.num_bytes for _, file in written)} bytes"
    )
    num_unsatisfied = sum(file.satisfied is False for _, file in written)
    return text + (f"; {num_unsatisfied} not below the threshold" if num_unsatisfied else "")


__all__ = ["add_parser", "run"]
