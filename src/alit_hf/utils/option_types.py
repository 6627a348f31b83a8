"""Types of command-line options, for argparse."""

import argparse
import math
from collections.abc import Callable
from typing import TypeVar


_Value = TypeVar("_Value")


def positive_integer(text: str) -> int:
    """A whole number, at least 1."""
    return _whole_number_from(1, text)


def whole_number(text: str) -> int:
    """A whole number, at least 0."""
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
    """A number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must be a finite number")
    return value


def distinct_numbers(text: str) -> tuple[float, ...]:
    """Different finite numbers, separated by commas."""
    return _distinct(finite_number, text)


def distinct_integers(text: str) -> tuple[int, ...]:
    """Different whole numbers from 1, separated by commas."""
    return _distinct(positive_integer, text)


def distinct_names(text: str) -> tuple[str, ...]:
    """Different names, separated by commas; spaces around them do not count."""
    return _distinct(_name, text)


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"it is {text!r}, it must be a name")
    return text.strip()


def _distinct(kind: Callable[[str], _Value], text: str) -> tuple[_Value, ...]:
    values = tuple(kind(part) for part in text.split(","))
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"it is {text!r}, nothing may occur twice")
    return values


__all__ = [
    "distinct_integers",
    "distinct_names",
    "distinct_numbers",
    "finite_number",
    "positive_integer",
    "whole_number",
]
