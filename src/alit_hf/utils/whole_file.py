"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


_PREFIX = ".alit-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    Gives a path beside `path`, hidden and with its suffix, to write to; what is there at the end replaces `path`. An
    exception leaves `path` as it was.

    Raises:
        `OSError`: if it cannot be replaced.
    """
    # The end of the name alone, as a name can be as long as a file system allows.
    unfinished = path.with_name(f"{_PREFIX}{os.getpid()}-{path.name[-50:]}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by a file of this text, in UTF-8."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """
    Replaces `path` by a file of this value.

    Raises:
        `ValueError`: for NaN and infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def unfinished_files(folder: Path) -> list[Path]:
    """What processes are writing in a folder, or have left there because they were killed while they wrote."""
    return [path for path in folder.glob(f"{_PREFIX}*") if path.is_file()]


__all__ = ["unfinished_files", "whole_file", "write_json", "write_text"]
