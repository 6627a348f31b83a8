"""Files that are written whole or not at all."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


_PREFIX = ".alit-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    Yields a hidden path beside `path`, with its suffix, to write to; the file written there replaces `path` at the
    end. An exception leaves `path` unchanged.

    Raises:
        `OSError`: if it cannot be replaced.
    """
    # Only the end of the name, as names can be as long as the file system allows.
    unfinished = path.with_name(f"{_PREFIX}{os.getpid()}-{threading.get_ident()}-{path.name[-50:]}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with a UTF-8 file of this text."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """
    Replaces `path` with a JSON file of this value.

    Raises:
        `ValueError`: for NaN and infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def unfinished_files(folder: Path) -> list[Path]:
    """Files in a folder that processes are still writing, or left behind when they were killed."""
    return [path for path in folder.glob(f"{_PREFIX}*") if path.is_file()]


__all__ = ["unfinished_files", "whole_file", "write_json", "write_text"]
