"""Which input becomes which output in `alit encode` and `alit decode`, decided before any work."""

import argparse
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from alit_hf.data.sources import find_files, find_paths
from alit_hf.utils.error_reason import reason

from .errors import UsageError


@dataclass(frozen=True)
class Job:
    """One file to read and the file to write."""

    source: Path
    target: Path


def add_job_arguments(parser: argparse.ArgumentParser, inputs_help: str, output_help: str) -> None:
    parser.add_argument("inputs", metavar="IN", nargs="+", help=inputs_help)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=output_help)


def plan_jobs(
    inputs: list[str], output: str, input_suffixes: frozenset[str], output_suffixes: tuple[str, ...]
) -> list[Job]:
    """
    Finds the input files and names their outputs.

    A folder and its subfolders, which the output mirrors, are searched for files with one of `input_suffixes`; hidden
    ones are left out. With several inputs, each folder's files go into a folder of its name. If files of one folder
    differ only in their suffix, their outputs keep it: `a.jpg` and `a.png` become `a.jpg.alit` and `a.png.alit`,
    `a.jpg` alone `a.alit`.

    Args:
        inputs (`list[str]`): files and folders, or glob patterns of them.
        output (`str`): a folder, which need not exist, or for a single file a file name with a suffix.
        input_suffixes (`frozenset[str]`): lower-case suffixes to look for in folders.
        output_suffixes (`tuple[str, ...]`): allowed suffixes of outputs; folders get files with the first.

    Raises:
        `UsageError`: if an input does not exist or a folder has nothing to work on, if the output cannot be a file or
            folder as needed, cannot be written to or is one of the inputs, or if two files would get the same output.
    """
    if any(name == "" for name in (*inputs, output)):
        raise UsageError("a file name is empty")
    try:
        paths = [path for name in inputs for path in find_paths(name)]
        files = {path: find_files(path, input_suffixes, len(paths) > 1) for path in paths}
    except ValueError as error:
        raise UsageError(str(error)) from error
    for path, found in files.items():
        if not found:
            raise UsageError(f"the folder {path} has no files that end in {', '.join(sorted(input_suffixes))}")
    is_single_file = len(paths) == 1 and not paths[0].is_dir()
    out = Path(output)
    if _is_file_name(output, is_single_file, output_suffixes):
        jobs = [Job(paths[0], out)]
        check_writable(out.parent)
    else:
        if out.exists() and not out.is_dir():
            raise UsageError(f"the output {out} is a file, it must be a folder")
        check_writable(out)
        # An input that was given twice is one.
        once = {(source.resolve(), relative): source for found in files.values() for source, relative in found}
        targets = _targets([relative for _, relative in once], output_suffixes[0])
        jobs = [Job(source, out / target) for source, target in zip(once.values(), targets, strict=True)]
    _raise_on_collisions(jobs)
    return jobs


def check_writable(folder: Path) -> None:
    """
    Raises:
        `UsageError`: if `folder` is not a folder and cannot become one, or is not writable.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UsageError(f"the output cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"the output cannot be written: no permission to write to {existing}")


def make_output_folder(jobs: list[Job]) -> None:
    """
    Raises:
        `UsageError`: if the folder of the outputs cannot be created.
    """
    folder = os.path.commonpath([job.target.absolute().parent for job in jobs])
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the output folder {folder} cannot be made: {reason(error)}") from error


def _is_file_name(output: str, is_single_file: bool, output_suffixes: tuple[str, ...]) -> bool:
    path = Path(output)
    if output.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
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


def _targets(relative: list[Path], suffix: str) -> list[Path]:
    """Names of the outputs; names that would be the same keep the suffix of their input."""
    short = [path.with_name(path.stem + suffix) for path in relative]
    full = [path.with_name(path.name + suffix) for path in relative]
    targets = short
    while True:
        count = Counter(targets)
        renamed = [long if count[target] > 1 else target for target, long in zip(targets, full, strict=True)]
        # A kept suffix can collide with another file's name: a.jpg.png beside a.jpg and a.png.
        if renamed == targets:
            return targets
        targets = renamed


def _raise_on_collisions(jobs: list[Job]) -> None:
    jobs_of_targets: dict[Path, Job] = {}
    for job in jobs:
        other = jobs_of_targets.setdefault(job.target, job)
        if other is not job:
            raise UsageError(f"{other.source} and {job.source} would both be written to {job.target}")
    sources = {job.source.resolve() for job in jobs}
    for target in jobs_of_targets:
        if target.resolve() in sources:
            raise UsageError(f"the input {target} would be overwritten by an output")
