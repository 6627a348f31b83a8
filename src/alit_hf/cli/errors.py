"""How the command line fails: exit codes, exceptions and the one line that reports them."""

import os

from alit_hf.utils.error_reason import reason
from alit_hf.utils.shown_text import shown


FAILED = 1
WRONG_USE = 2
# What shells report for a process ended by a signal: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED = 130
NO_READER = 141


class UsageError(Exception):
    """The command cannot be run as given. Raised before any work."""


class FileError(Exception):
    """The one file that a command is about could not be read, used or written."""


class NoReaderError(Exception):
    """Nobody reads any more what the command prints. No `OSError`, which would be taken for one of a file."""


def file_problem(path: str | os.PathLike, error: Exception) -> str:
    """Names the file and what went wrong."""
    return named(shown(path), reason(error, path, shown(path)))


def named(name: str, text: str) -> str:
    """The text, with the name in front if it is not in it."""
    return text if name in text else f"{name}: {text}"
