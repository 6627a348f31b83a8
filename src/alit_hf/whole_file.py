"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    Gives a path beside `path`, hidden and with its suffix, to write to; what is there at the end replaces `path`. An
    exception leaves `path` as it was.

    Raises:
        `OSError`: if it cannot be replaced.
    """
    unfinished = path.with_name(f".alit-{os.getpid()}-{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


__all__ = ["whole_file"]
