"""What names of data mean: a data set on the Hub and its splits, or files and folders of them."""

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id


PICTURE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""What is taken for a picture in a folder. Pillow cannot read HEIF: better reported than left out in silence."""


class SplitError(ValueError):
    """A split is missing or does not exist."""


def is_hub_id(source: str) -> bool:
    """Whether the Hub could have a repository `ORGANIZATION/NAME` of this name."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return source.count("/") == 1


def choose_split(name: str, splits: Sequence[str], split: str | None) -> str:
    """
    Args:
        name (`str`): of the data set, for messages.
        splits (`Sequence[str]`): that it has.
        split (`str`, *optional*): that is asked for. It may be left out where there is one only.

    Raises:
        [`SplitError`]: for one that does not exist, and for none where there are several.
    """
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return split
    given = "no split is given" if split is None else f"the split {split!r} does not exist"
    raise SplitError(f"{given}, the data set {name} has {', '.join(splits)}")


def find_files(source: str) -> list[Path]:
    """
    The file itself, or the pictures and parquet files of a folder and its subfolders, without hidden ones, in an
    order that is always the same.

    Raises:
        `ValueError`: if it does not exist, or the folder has none.
    """
    path = Path(source)
    if not os.path.lexists(path):
        raise ValueError(f"{source} does not exist")
    if not path.is_dir():
        return [path]
    found = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [
            Path(folder, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES | {".parquet"}
        ]
    if not found:
        raise ValueError(f"the folder {source} holds no pictures and no parquet files")
    return found


__all__ = ["PICTURE_SUFFIXES", "SplitError", "choose_split", "find_files", "is_hub_id"]
