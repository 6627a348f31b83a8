"""How the command line prints: never what a terminal would obey, which names of files may contain."""

import sys

from alit_hf.utils.shown_text import one_line, shown


def print_line(text: str) -> None:
    """Prints one line to stdout at once."""
    print(shown(text), flush=True)


def print_note(text: str) -> None:
    """Prints to stderr, in one line, what people should know although it is no error."""
    print("alit: note:", one_line(text), file=sys.stderr)


def print_error(message: str) -> None:
    """Prints one line to stderr."""
    print("alit: error:", one_line(message), file=sys.stderr)
