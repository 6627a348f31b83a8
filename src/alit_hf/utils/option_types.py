"""Types of command-line options, for argparse."""

import argparse
import math


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
    numbers = tuple(finite_number(part) for part in text.split(","))
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"it is {text!r}, no number may occur twice")
    return numbers


__all__ = ["distinct_numbers", "finite_number", "positive_integer", "whole_number"]
