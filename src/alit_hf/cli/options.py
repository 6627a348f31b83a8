"""Options that several commands share."""

import argparse
import math


DEFAULT_THRESHOLD = 0.1
"""L1 below which a picture has enough tokens, where nobody says otherwise."""


def positive_integer(text: str) -> int:
    """For argparse: a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must be a whole number from 1")
    return value


def finite_number(text: str) -> float:
    """For argparse: a number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must be a finite number")
    return value


def add_batch_size_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", metavar="B", type=positive_integer, default=8, help="files at a time (default: %(default)s)"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="M", help="a folder or a Hub id (default: the checkpoint that comes with the package)"
    )
    parser.add_argument("--device", metavar="D", help="such as cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="what the model computes in (default: %(default)s)",
    )
