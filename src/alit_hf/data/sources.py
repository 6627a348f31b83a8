"""
What names of data mean: a data set on the Hub and its splits, or files, folders, patterns and paths inside packages.
"""

import fnmatch
import glob
import importlib.util
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.utils import HFValidationError, validate_repo_id

from alit_hf.utils.error_reason import reason
from alit_hf.utils.shown_text import shown


class FileKind(NamedTuple):
    """
    A kind of files to look for in folders.

    Args:
        name (`str`): in the plural, for messages.
        suffixes (`Callable[[], Collection[str]]`): gives their suffixes in lower case.
    """

    name: str
    suffixes: Callable[[], Collection[str]]


def _picture_suffixes() -> Collection[str]:
    # Not at the top: what is asked of the command line in vain need not wait for NumPy.
    from alit_hf.model.image_io import picture_suffixes

    return picture_suffixes()


PICTURES = FileKind("pictures that Pillow reads", _picture_suffixes)
DATA = FileKind(
    "pictures that Pillow reads, parquet files and tars", lambda: {*_picture_suffixes(), ".parquet", ".tar"}
)
"""What is taken for data in a folder. A tar is one of webdataset."""

_NO_FILE = "pipe, socket or device"
_READ_ANYWAY = "link to a folder that is read anyway or that it lies in"
_NAMED_SUFFIXES = 5


def is_hub_id(source: str) -> bool:
    """Whether the Hub could have a repository `ORGANIZATION/NAME` of this name."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return source.count("/") == 1


def is_on_hub(sources: Sequence[str]) -> bool:
    """Whether the names mean a data set on the Hub: one only, and neither a path that exists nor a file's name."""
    if len(sources) != 1 or os.path.lexists(sources[0]) or Path(sources[0]).suffix.lower() in DATA.suffixes():
        return False
    return is_hub_id(sources[0])


def choose_split(name: str, splits: Sequence[str], split: str | None) -> str:
    """
    Args:
        name (`str`): of the data set, for messages.
        splits (`Sequence[str]`): that it has.
        split (`str`, *optional*): that is asked for. It may be left out where there is one only.

    Raises:
        `ValueError`: for one that does not exist, and for none where there are several.
    """
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return split
    given = "no split is given" if split is None else f"the split {split!r} does not exist"
    raise ValueError(f"{given}, the data set {name} has {', '.join(splits)}")


def find_paths(source: str) -> list[Path]:
    """
    The paths that a name means: itself, where it exists; those inside an installed package for `package://NAME/PATH`;
    or what matches a glob pattern, in the order of names. What exists is no pattern, neither as a whole nor as a
    folder of the pattern: `set [a]/*.png` are the pictures in `set [a]`.

    Raises:
        `ValueError`: if there are none.
    """
    path = source
    if source.startswith("package://"):
        package, _, inside = source.removeprefix("package://").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{source} cannot be found, the Python package {package} is not installed")
        path = os.path.join(spec.submodule_search_locations[0], inside)
    paths = sorted(_matches(path))
    if not paths:
        raise ValueError(f"{source} does not exist")
    return [Path(found) for found in paths]


def _matches(pattern: str) -> Iterator[str]:
    if os.path.lexists(pattern):
        yield pattern
        return
    if pattern.endswith(os.sep):
        yield from (path for path in _matches(pattern.rstrip(os.sep)) if os.path.isdir(path))
        return
    parent, name = os.path.split(pattern)
    for folder in _matches(parent) if parent else [""]:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            yield path
        elif glob.has_magic(name) and os.path.isdir(folder or os.curdir):
            names = fnmatch.filter(_names(folder or os.curdir), name)
            yield from (os.path.join(folder, found) for found in names if found[0] != "." or name[0] == ".")


def _names(folder: str) -> list[str]:
    # Not by `glob`, which takes a folder that cannot be read for an empty one.
    try:
        return os.listdir(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: str | os.PathLike, error: OSError) -> ValueError:
    return ValueError(f"the folder {shown(folder)} cannot be read: {reason(error)}")


class FoundFiles(NamedTuple):
    """
    What there is at a path.

    Args:
        files (`list[tuple[Path, Path]]`): each file, with a name relative to the folder.
        passed_over (`Counter[str]`): how many of another kind the folder has, by suffix or in words.
    """

    files: list[tuple[Path, Path]]
    passed_over: Counter[str]


def find_files(path: Path, kind: FileKind, several: bool) -> FoundFiles:
    """
    The file itself; or the files of a folder and its subfolders that are of a kind, without hidden ones, in an order
    that is always the same.

    Links to folders are followed. A folder that can be reached in several ways is read once, by its own name rather
    than that of a link, and a link to a folder that it lies in is not followed.

    Args:
        path (`Path`): that exists.
        kind ([`FileKind`])
        several (`bool`): whether there are other paths, so that names begin with the folder's own.

    Raises:
        `ValueError`: if a folder cannot be read.
    """
    if not os.path.isdir(path):
        return FoundFiles([(path, Path(path.name))], Counter())
    suffixes = kind.suffixes()
    files: list[Path] = []
    passed_over: Counter[str] = Counter()
    read: set[tuple[int, int]] = set()
    folders, links = [path], deque()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in read:
                passed_over[_READ_ANYWAY] += 1
                continue
            read.add((state.st_dev, state.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted((entry for entry in scan if entry.name[0] != "."), key=lambda entry: entry.name)
            for entry in entries:
                file, is_link = Path(folder, entry.name), entry.is_symlink()
                if is_link:
                    # A link that leads nowhere is a file that cannot be read.
                    is_folder, is_file = os.path.isdir(file), os.path.isfile(file) or not os.path.exists(file)
                else:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                if is_folder and not is_link:
                    folders.append(file)
                elif is_folder and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(file)):
                    passed_over[_READ_ANYWAY] += 1
                elif is_folder:
                    links.append(file)
                elif file.suffix.lower() not in suffixes:
                    passed_over[file.suffix.lower() or "no suffix"] += 1
                elif not is_file:
                    passed_over[_NO_FILE] += 1
                else:
                    files.append(file)
        except OSError as error:
            raise _unreadable(folder, error) from error
    files.sort(key=lambda file: [(True, part) for part in file.parts[:-1]] + [(False, file.name)])
    root = Path(os.path.basename(os.path.realpath(path)) if several else "")
    return FoundFiles([(file, root / file.relative_to(path)) for file in files], passed_over)


def describe_passed_over(passed_over: Counter[str], kind: FileKind) -> str:
    """In words, what `find_files` has passed over when it looked for a kind; empty for nothing."""
    if not passed_over:
        return ""
    count = passed_over.total()
    parts = [f"{shown(what)}: {number}" for what, number in sorted(passed_over.most_common(_NAMED_SUFFIXES))]
    parts += ["…"] if len(passed_over) > _NAMED_SUFFIXES else []
    were = "file was" if count == 1 else "files were"
    return f"{count} {were} passed over, only {kind.name} are taken ({', '.join(parts)})"


__all__ = [
    "DATA",
    "PICTURES",
    "FileKind",
    "FoundFiles",
    "choose_split",
    "describe_passed_over",
    "find_files",
    "find_paths",
    "is_hub_id",
    "is_on_hub",
]
