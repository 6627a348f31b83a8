"""What options of a command take, for the commands and for what defines options of its own. Imports nothing heavy."""

import argparse
import math


DEFAULT_THRESHOLD = 0.1
"""L1 below which a picture has enough tokens, where nobody says otherwise."""


def positive_integer(text: str) -> int:
    """For argparse: a whole number from 1."""
    return _whole_number_from(1, text)


def whole_number(text: str) -> int:
    """For argparse: a whole number from 0."""
    return _whole_number_from(0, text)


def _whole_number_from(lowest: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest:
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must be a whole number from {lowest}")
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


def distinct_numbers(text: str) -> tuple[float, ...]:
    """For argparse: different finite numbers, separated by commas."""
    numbers = tuple(finite_number(part) for part in text.split(","))
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"it is {text!r}, no number may occur twice")
    return numbers


def add_threshold_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        metavar="T",
        type=finite_number,
        default=DEFAULT_THRESHOLD,
        help="L1 below which a picture has enough tokens (default: %(default)s)",
    )
