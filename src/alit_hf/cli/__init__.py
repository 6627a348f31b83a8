"""The command line `alit`: one file per command, each with `add_parser` and `run`.

Heavy libraries are imported when a command runs, not with this package, so that help, version and wrong use are
answered at once.
"""

import io
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from alit_hf import __version__
from alit_hf.utils.processes import is_first_process
from alit_hf.utils.progress import end_startup, show_startup

from . import analyze, convert, decode, demo, encode, evaluate, explore, info, tokenize
from .errors import FAILED, INTERRUPTED, NO_READER, WRONG_USE, FileError, NoReaderError, UsageError
from .options import OneLineParser
from .printing import flush, print_error, printing_for


def make_parser() -> OneLineParser:
    """The program's parser, with one for each command."""
    parser = OneLineParser(
        prog="alit",
        description="Adaptive length image tokenization: every picture in as many tokens as it needs, and back.",
        epilog="Exit codes: 0 done, 1 a file failed, 2 wrong use (nothing was done), 130 interrupted, 141 nobody "
        "reads the output.",
    )
    parser.add_argument("--version", action="version", version=f"alit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (encode, decode, explore, info, convert, evaluate, analyze, tokenize, demo):
        command.add_parser(commands)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    arguments = make_parser().parse_args(argv)
    with printing_for(arguments), warnings.catch_warnings():
        if not sys.warnoptions:
            # Libraries warn those who program with them, by warnings and by loggers that nobody has set up.
            warnings.simplefilter("ignore")
            logging.lastResort.setLevel(logging.ERROR)
        show_startup()
        return arguments.run(arguments)


def _run_and_report(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may contain characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _run(argv)
        except SystemExit as done:  # --help and --version
            code = done.code
        flush()
        return code
    except UsageError as error:
        if is_first_process():
            print_error(str(error))
        return WRONG_USE
    except FileError as error:
        print_error(str(error))
        return FAILED
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the program.

    Args:
        argv (`Sequence[str]`, *optional*): arguments without the program's name. Defaults to the process's own.

    Returns:
        the exit code: 0 done, 1 a file failed, 2 wrong use, 130 interrupted, 141 nobody reads the output any more.
    """
    try:
        return _run_and_report(argv)
    except (NoReaderError, BrokenPipeError):  # the latter is that of a progress bar
        with suppress(NoReaderError, FileError):
            flush()
        return NO_READER
    finally:
        end_startup()


__all__ = ["main", "make_parser"]
