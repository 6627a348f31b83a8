"""How the command line fails: exit codes, exceptions and the one line that reports them."""

import os
import sys

from alit_hf.utils.error_reason import reason


FAILED = 1
WRONG_USE = 2
# What shells report for a process ended by a signal: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED = 130
NO_READER = 141


class UsageError(Exception):
    """The command cannot be run as given. Raised before any work."""


class FileError(Exception):
    """The one file that a command is about could not be read, used or written."""


def file_problem(path: str | os.PathLike, error: Exception) -> str:
    """Names the file and what went wrong."""
    text = reason(error)
    return text if os.fspath(path) in text else f"{os.fspath(path)}: {text}"


def print_error(message: str) -> None:
    """Prints one line to stderr."""
    print("alit: error:", " ".join(message.split()), file=sys.stderr)
