"""
What names of data mean: a data set on the Hub and its splits, or files, folders, patterns and paths inside packages.
"""

import glob
import importlib.util
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from alit_hf.utils.error_reason import reason


PICTURE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""What is taken for a picture in a folder. Pillow cannot read HEIF: better reported than left out in silence."""

DATA_SUFFIXES = PICTURE_SUFFIXES | {".parquet", ".tar"}
"""What is taken for data in a folder. A tar is one of webdataset."""


def is_hub_id(source: str) -> bool:
    """Whether the Hub could have a repository `ORGANIZATION/NAME` of this name."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return source.count("/") == 1


def is_on_hub(sources: Sequence[str]) -> bool:
    """Whether the names mean a data set on the Hub: one only, and neither a path that exists nor a file's name."""
    if len(sources) != 1 or os.path.lexists(sources[0]) or Path(sources[0]).suffix.lower() in DATA_SUFFIXES:
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
    or what matches a glob pattern, in the order of names.

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
    paths = [path] if os.path.lexists(path) else sorted(glob.glob(path))
    if not paths:
        raise ValueError(f"{source} does not exist")
    return [Path(found) for found in paths]


def find_files(path: Path, suffixes: Collection[str], several: bool) -> list[tuple[Path, Path]]:
    """
    The file itself; or the files of a folder and its subfolders that end in one of the suffixes, without hidden ones,
    in an order that is always the same.

    Args:
        path (`Path`): that exists.
        suffixes (`Collection[str]`): in lower case.
        several (`bool`): whether there are other paths, so that names begin with the folder's own.

    Returns:
        `list[tuple[Path, Path]]`: each file, with a name relative to the folder. Empty if the folder has none.

    Raises:
        `ValueError`: if a folder cannot be read.
    """
    if not path.is_dir():
        return [(path, Path(path.name))]

    def fail(error: OSError):
        raise ValueError(f"the folder {error.filename} cannot be read: {reason(error)}") from error

    root = Path(path.resolve().name if several else "")
    found = []
    for folder, subfolders, names in os.walk(path, onerror=fail):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        found += [(file, root / file.relative_to(path)) for file in files if file.suffix.lower() in suffixes]
    return found


__all__ = ["DATA_SUFFIXES", "PICTURE_SUFFIXES", "choose_split", "find_files", "find_paths", "is_hub_id", "is_on_hub"]
