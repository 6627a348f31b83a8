"""Options that several commands share, and what they mean."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from alit_hf.codes.length_choice import DEFAULT_THRESHOLD, LengthChoice
from alit_hf.utils.error_reason import reason
from alit_hf.utils.option_types import finite_number, positive_integer, whole_number
from alit_hf.utils.progress import end_startup

from .errors import UsageError


if TYPE_CHECKING:
    from alit_hf import ALITModel
    from alit_hf.codes.picture_codes import PictureEncoder
    from alit_hf.data.image_rows import ImageRows


class OneLineParser(argparse.ArgumentParser):
    """Reports wrong use in one line, like every other error."""

    def print_help(self, file=None) -> None:
        # That of an analysis comes late.
        end_startup()
        super().print_help(file)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


SOURCES = "pictures, parquet files or tars, folders of them, or a Hub id of a data set"
"""What names of data may mean, for the help of the option that takes them."""


def add_source_arguments(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """
    `--split`, `--config-name` and `--image-column`, which say what is taken of a data set.

    Args:
        prefix (`str`): of their names, such as `"train-"` beside `--train-data`.
    """
    of = f"of --{prefix}data" if prefix else "of the data set"
    parser.add_argument(f"--{prefix}split", metavar="S", help=f"{of}; needed on the Hub if it has several")
    parser.add_argument(f"--{prefix}config-name", metavar="C", help=f"configuration {of}; needed if it has several")
    parser.add_argument(
        f"--{prefix}image-column",
        metavar="COLUMN",
        help=f"column of the pictures {of} (default: image, or the only column of pictures)",
    )


def open_source(
    sources: Sequence[str], arguments: argparse.Namespace, prefix: str = "", columns: Sequence[str] | None = None
) -> "ImageRows":
    """
    Opens the data that the options of `add_source_arguments` belong to.

    Args:
        sources (`Sequence[str]`): the data's names.
        columns (`Sequence[str]`, *optional*): which columns to keep; by default all.

    Raises:
        `ValueError`: as `open_rows`, and for an image column of picture files.
    """
    from alit_hf.data.image_rows import open_rows

    def given(name: str) -> str | None:
        return getattr(arguments, f"{prefix}{name}".replace("-", "_"))

    image_column = given("image-column")
    rows = open_rows(sources, given("split"), image_column, config_name=given("config-name"), columns=columns)
    if rows.file_names and image_column is not None:
        raise ValueError(
            f"the image column {image_column!r} is given, but {', '.join(sources)} has no columns, data sets have them"
        )
    return rows


def add_batch_size_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", metavar="B", type=positive_integer, default=8, help="files at a time (default: %(default)s)"
    )


def add_num_workers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-workers",
        metavar="N",
        type=whole_number,
        default=2,
        help="threads of each process that read and decode files while the model computes; 0 for none (default: "
        "%(default)s)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="M", help="a folder or a Hub id (default: the checkpoint that comes with the package)"
    )
    parser.add_argument("--device", metavar="D", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="float32",
        help="dtype that the model computes in; auto is bfloat16 where the processor or GPU has instructions for it, "
        "else float32 (default: %(default)s)",
    )


def add_length_arguments(parser: argparse.ArgumentParser) -> None:
    """`--threshold`, `--num-tokens` and `--criterion`, which decide how many tokens a picture gets."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--threshold",
        metavar="T",
        type=finite_number,
        help="use the fewest tokens whose criterion is below this (for psnr: above it), or all if none is "
        f"(default: {DEFAULT_THRESHOLD}, for the criterion l1)",
    )
    length.add_argument("--num-tokens", metavar="N", type=positive_integer, help="use N tokens for every picture")
    parser.add_argument(
        "--criterion",
        metavar="C",
        help="l1 (mean absolute error of pixels in [0, 1]), l2 (mean squared error), psnr (dB: --threshold 25 for "
        "more than 25 dB) or lpips (default: l1)",
    )
    parser.add_argument(
        "--confidence",
        metavar="P",
        type=finite_number,
        help="choose lengths by the model's length predictor, without decoding: P of the pictures, such as 0.9, meet "
        "the threshold or get all tokens",
    )


def length_choice(arguments: argparse.Namespace) -> LengthChoice:
    """
    The choice that the options of `add_length_arguments` make.

    Raises:
        `UsageError`: for a criterion without a threshold.
    """
    if arguments.num_tokens is not None:
        for name in ("criterion", "confidence"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} chooses lengths together with --threshold, not with --num-tokens")
        return LengthChoice(num_tokens=arguments.num_tokens)
    criterion = arguments.criterion or "l1"
    if arguments.threshold is None:
        if criterion != "l1":
            raise UsageError(f"--criterion {criterion} needs a --threshold in its own units")
        return LengthChoice(threshold=DEFAULT_THRESHOLD, confidence=arguments.confidence)
    return LengthChoice(threshold=arguments.threshold, criterion=criterion, confidence=arguments.confidence)


def make_encoder(model: "ALITModel", choice: LengthChoice) -> "PictureEncoder":
    """
    Raises:
        `UsageError`: if the model cannot give such codes, the criterion is unknown or the threshold makes no sense for
            it.
    """
    from alit_hf.codes.picture_codes import PictureEncoder

    try:
        return PictureEncoder(model, choice)
    except (ValueError, OSError) as error:
        raise UsageError(reason(error)) from error
