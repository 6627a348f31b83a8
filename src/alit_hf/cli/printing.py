"""
How the command line prints: results for people or as JSON, or the bytes of an output; notes and errors. Never what a
terminal would obey, which names of files may contain.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from alit_hf.utils.error_reason import reason
from alit_hf.utils.progress import ProgressBar, end_startup, hidden_progress
from alit_hf.utils.shown_text import one_line, shown

from .errors import FileError, NoReaderError, UsageError


@dataclass
class _Wanted:
    """What the command is to print."""

    lines: bool = True
    notes: bool = True
    json: bool = False
    bytes: bool = False


_wanted = _Wanted()


def add_quiet_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print errors only: no progress, no notes, no summary")


def add_printing_arguments(parser: argparse.ArgumentParser) -> None:
    """`--quiet` and `--json`."""
    add_quiet_argument(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the results to stdout as JSON, and nothing else there"
    )


@contextmanager
def printing_for(arguments: argparse.Namespace) -> Iterator[None]:
    """
    Within it, what these options ask for is printed; all but JSON where a command has no such options.

    Raises:
        `UsageError`: for `--json` with a closed stdout.
    """
    global _wanted
    quiet, as_json = getattr(arguments, "quiet", False), getattr(arguments, "json", False)
    if as_json and sys.stdout is None:
        raise UsageError("--json prints to stdout, which is closed")
    before, _wanted = _wanted, _Wanted(lines=not quiet and not as_json, notes=not quiet, json=as_json)
    try:
        with hidden_progress(quiet):
            yield
    finally:
        _wanted = before


def keep_stdout_for_bytes() -> None:
    """
    Leaves stdout to `print_bytes`; lines go to stderr.

    Raises:
        `UsageError`: if it is a terminal or closed, or `--json` needs it.
    """
    instead = "name a file with --output"
    if _wanted.json:
        raise UsageError(f"--json and the output would both go to stdout: {instead}")
    if sys.stdout is None:
        raise UsageError(f"the output cannot go to stdout, which is closed: {instead}")
    if sys.stdout.isatty():
        raise UsageError(f"the output is binary and not written to a terminal: redirect it, or {instead}")
    _wanted.bytes = True


def print_line(text: str) -> None:
    """Prints a line of results for people at once."""
    if _wanted.lines:
        _print(sys.stderr if _wanted.bytes else sys.stdout, shown(text) + "\n")


def print_json(results: Any) -> None:
    """Prints the results for programs, where `--json` asks for them. They must have neither NaN nor infinity."""
    if _wanted.json:
        # In ASCII, whatever characters names have.
        _print(sys.stdout, json.dumps(results, allow_nan=False) + "\n")


def print_bytes(data: bytes) -> None:
    """Prints an output, after `keep_stdout_for_bytes`."""
    _print(sys.stdout, data)


def print_note(text: str) -> None:
    """Prints to stderr, in one line, what people should know although it is no error."""
    if _wanted.notes:
        _print(sys.stderr, f"alit: note: {one_line(text)}\n")


def print_error(message: str) -> None:
    """Prints one line to stderr."""
    _print(sys.stderr, f"alit: error: {one_line(message)}\n")


def flush() -> None:
    """Prints what others than this file have left in stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        _print(stream, "")


def _print(stream: TextIO | None, text: str | bytes) -> None:
    """
    Raises:
        [`NoReaderError`]: if nobody reads the stream any more.
        [`FileError`]: if it cannot be written to for another reason, such as a full disk.
    """
    end_startup()
    if stream is None:  # it was closed before the program started
        return
    try:
        if isinstance(text, bytes):
            stream.buffer.write(text)
            stream.flush()
        else:
            # Not at the end of a bar, such as that of an upload which has failed.
            with ProgressBar.external_write_mode(stream):
                print(text, end="", file=stream)
                stream.flush()
    except OSError as error:
        # Python would try what is left once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise NoReaderError from error
        raise FileError(f"{stream.name}: {reason(error)}") from error
