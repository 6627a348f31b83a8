"""Which input becomes which output in `alit encode` and `alit decode`, decided before any work."""

import argparse
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from alit_hf.data.sources import FileKind, describe_passed_over, find_files, find_paths
from alit_hf.utils.error_reason import reason
from alit_hf.utils.shown_text import shown

from .errors import UsageError
from .printing import keep_stdout_for_bytes, print_note


STREAM = "-"
"""What stands for stdin as an input, and for stdout as an output. A file of that name is `./-`."""


@dataclass(frozen=True)
class Job:
    """One file to read and the file to write; `None` stands for stdin and stdout."""

    source: Path | None
    target: Path | None


def add_job_arguments(parser: argparse.ArgumentParser, inputs_help: str, output_help: str) -> None:
    parser.add_argument("inputs", metavar="IN", nargs="+", help=f"{inputs_help}; or - for stdin")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help=f"{output_help}; or - for stdout, the default if the input is stdin"
    )


def source_name(path: Path | None) -> str:
    """What to call a job's source."""
    return "<stdin>" if path is None else str(path)


def target_name(path: Path | None) -> str:
    """What to call a job's target."""
    return "<stdout>" if path is None else str(path)


def open_source(path: Path | None) -> Path | BinaryIO:
    """What reads a job's source: its path, or stdin."""
    return sys.stdin.buffer if path is None else path


def check_stdin() -> None:
    """
    Raises:
        `UsageError`: if nothing can come from stdin, or only what somebody types.
    """
    if sys.stdin is None:
        raise UsageError("the input - is stdin, which is closed")
    if sys.stdin.isatty():
        raise UsageError("the input - is stdin, which is a terminal: redirect a file or another program into it")


def plan_jobs(
    inputs: list[str],
    output: str | None,
    kind: FileKind,
    output_suffixes: tuple[str, ...],
    is_own: Callable[[Path], bool],
) -> list[Job]:
    """
    Finds the input files and names their outputs. Notes on stderr what folders have that is of another kind.

    A folder and its subfolders, which the output mirrors, are searched for files of the kind; hidden ones are left
    out. With several inputs, each folder's files go into a folder of its name. If files of one folder differ only in
    their suffix, or in letters' case before it, their outputs keep it: `a.jpg` and `a.png` become `a.jpg.alit` and
    `a.png.alit`, `a.jpg` alone `a.alit`. That holds for files of one folder that are worked on one after another, too.

    Args:
        inputs (`list[str]`): files and folders, or glob patterns of them; or stdin alone.
        output (`str`, *optional*): a folder, which need not exist, or for a single file a file name with a suffix, or
            stdout. Defaults to stdout for stdin.
        kind ([`FileKind`]): to look for in folders.
        output_suffixes (`tuple[str, ...]`): allowed suffixes of outputs; folders get files with the first.
        is_own (`Callable[[Path], bool]`): whether the command can have written an existing file, so that it may
            replace it in an output folder.

    Raises:
        `UsageError`: if an input does not exist or a folder has nothing to work on, if the output cannot be a file or
            folder as needed, cannot be written to or is one of the inputs, if an output folder has another's file of
            an output's name, or if two files would get the same output; if stdin is one of several inputs or stdout is
            to hold several outputs, or one of them is a terminal.
    """
    if output is None and inputs != [STREAM]:
        raise UsageError("the following arguments are required: -o/--output")
    if any(name == "" for name in (*inputs, output)):
        raise UsageError("a file name is empty")
    try:
        if STREAM in (*inputs, output):
            return [_plan_stream(inputs, output or STREAM, output_suffixes)]
        paths = [path for name in inputs for path in find_paths(name)]
        found = {path: find_files(path, kind, len(paths) > 1) for path in paths}
    except ValueError as error:
        raise UsageError(str(error)) from error
    notes = {path: describe_passed_over(files.passed_over, kind) for path, files in found.items()}
    for path, files in found.items():
        if not files.files:
            more = f"; {notes[path]}" if notes[path] else ""
            raise UsageError(f"the folder {shown(path)} has no {kind.name}{more}")
    is_single_file = len(paths) == 1 and not os.path.isdir(paths[0])
    out = Path(output)
    is_file = _is_file_name(output, is_single_file, output_suffixes)
    if is_file:
        jobs = [Job(paths[0], out)]
        check_writable(out.parent)
    else:
        if os.path.exists(out) and not os.path.isdir(out):
            raise UsageError(f"the output {out} is a file, it must be a folder")
        check_writable(out)
        for path in paths:
            if os.path.isdir(path) and os.path.isdir(out) and os.path.samefile(path, out):
                raise UsageError(f"the output {out} is the input {shown(path)}, it must be another folder")
        # An input that was given twice is one.
        sources = [pair for files in found.values() for pair in files.files]
        once = {(os.path.realpath(source), relative): source for source, relative in sources}
        taken = _names_of_siblings([path for path in paths if not os.path.isdir(path)], kind)
        targets = _targets([relative for _, relative in once], taken, output_suffixes[0])
        jobs = [Job(source, out / target) for source, target in zip(once.values(), targets, strict=True)]
        _raise_on_collisions(jobs)
    check_no_input_is_overwritten([job.target for job in jobs], [job.source for job in jobs])
    for job in jobs:
        if not is_file and os.path.isfile(job.target) and not is_own(job.target):
            raise UsageError(
                f"{shown(job.target)} would be overwritten, which this command has not written: choose another output"
            )
    for path, note in notes.items():
        if note:
            print_note(f"{shown(path)}: {note}")
    return jobs


def _plan_stream(inputs: list[str], output: str, output_suffixes: tuple[str, ...]) -> Job:
    """The job whose source is stdin, or whose target is stdout, or both."""
    source = target = None
    if inputs == [STREAM]:
        check_stdin()
    elif STREAM in inputs:
        raise UsageError("the input - is stdin, it must be the only input")
    else:
        paths = [path for name in inputs for path in find_paths(name)]
        if len(paths) > 1 or os.path.isdir(paths[0]):
            raise UsageError("the output - is stdout, which holds the output of one file, not of several or a folder")
        source = paths[0]
    if output == STREAM:
        keep_stdout_for_bytes()
    else:
        target = Path(output)
        if output.endswith(("/", os.sep)) or os.path.isdir(target) or target.suffix.lower() not in output_suffixes:
            suffixes = " or ".join(output_suffixes)
            raise UsageError(f"the output {output} must be a file name ending in {suffixes}, as stdin has no name")
        check_writable(target.parent)
    return Job(source, target)


def check_outside_data(folder: Path, sources: Iterable[str]) -> None:
    """
    Raises:
        `UsageError`: if the folder for results is, or lies in, a folder of data, which they would become a part of.
    """
    for source in sources:
        if os.path.isdir(source) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(source)):
            raise UsageError(f"the output {folder} lies in the data {source}, it must be elsewhere")


def check_no_input_is_overwritten(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike]) -> None:
    """
    Raises:
        `UsageError`: if an output is one of the inputs, by whatever name.
    """
    written = {place for output in outputs if (place := _place(output)) is not None}
    for path in inputs if written else ():
        if _place(path) in written:
            raise UsageError(f"the input {shown(path)} would be overwritten by an output")


def _place(path: str | os.PathLike) -> tuple[int, int] | None:
    """What all names of an existing file have in common."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def check_writable(folder: Path) -> None:
    """
    Raises:
        `UsageError`: if `folder` is not a folder and cannot become one, or is not writable.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        raise UsageError(f"the output cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"the output cannot be written: no permission to write to {existing}")


def make_output_folder(jobs: list[Job]) -> None:
    """
    Raises:
        `UsageError`: if the folder of the outputs cannot be created.
    """
    folders = [job.target.absolute().parent for job in jobs if job.target is not None]
    if not folders:
        return
    folder = os.path.commonpath(folders)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the output folder {folder} cannot be made: {reason(error)}") from error


def _is_file_name(output: str, is_single_file: bool, output_suffixes: tuple[str, ...]) -> bool:
    path = Path(output)
    if output.endswith(("/", os.sep)) or os.path.isdir(path) or not path.suffix:
        return False
    allowed = path.suffix.lower() in output_suffixes
    if not is_single_file:
        if allowed:
            raise UsageError(f"the output {output} is a file name, several inputs or a folder need a folder")
        return False
    if not allowed:
        raise UsageError(
            f"the output {output} must end in {' or '.join(output_suffixes)}, or in / if it is to be a folder"
        )
    return True


def _names_of_siblings(files: list[Path], kind: FileKind) -> list[Path]:
    """Names of what is beside the files and may be an input another time."""
    suffixes, names = kind.suffixes(), []
    given = {(file.parent, file.name) for file in files}
    for folder in {file.parent for file in files}:
        try:
            names += [Path(name) for name in os.listdir(folder) if (folder, name) not in given]
        except OSError:  # who may only search a folder sees nothing beside the files
            continue
    return [name for name in names if name.suffix.lower() in suffixes]


def _targets(relative: list[Path], taken: list[Path], suffix: str) -> list[Path]:
    """Names of the outputs; those that would be the same, or that of a `taken` file, keep the suffix of the input."""
    short = [path.with_name(path.stem + suffix) for path in relative]
    full = [path.with_name(path.name + suffix) for path in relative]
    others = [_in_any_case(path.with_name(path.stem + suffix)) for path in taken]
    targets = short
    while True:
        count = Counter([*map(_in_any_case, targets), *others])
        renamed = [long if count[_in_any_case(name)] > 1 else name for name, long in zip(targets, full, strict=True)]
        # A kept suffix can collide with another file's name: a.jpg.png beside a.jpg and a.png.
        if renamed == targets:
            return targets
        targets = renamed


def _in_any_case(path: Path) -> str:
    """The same for names that some file systems take for one."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _raise_on_collisions(jobs: list[Job]) -> None:
    jobs_of_targets: dict[Path, Job] = {}
    for job in jobs:
        other = jobs_of_targets.setdefault(job.target, job)
        if other is not job:
            raise UsageError(
                f"{shown(other.source)} and {shown(job.source)} would both be written to {shown(job.target)}"
            )
