"""What a cell of a column of pictures may hold, and the picture in it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import datasets
import fsspec
import numpy as np
from PIL import Image

from alit_hf.model.image_io import open_image, upright_size
from alit_hf.utils.shown_text import shown


CELL = datasets.Features(
    {"bytes": datasets.Value("binary"), **dict.fromkeys(("path", "problem", "damage"), datasets.Value("string"))}
)
"""
A picture, whatever the data have it in: its `bytes`, or the `path` or address of its file, which [`Home`] has checked;
of a picture with `bytes`, the path is no more than a name. Without both, `problem` may say why. A row with `damage`
stands for the rows of a file that cannot be read.
"""

# Arrow holds text only, so that a path that is not UTF-8 is in the rows as a URI.
_FILE_URI = "file://"

_INTEGER = re.compile(r"u?int\d+")
_BYTES = (datasets.Value("binary"), datasets.Value("large_binary"))


@dataclass(frozen=True)
class Home:
    """
    Where pictures may be that rows only name: data sets come from others, who could name any file of this machine and
    any address.

    Args:
        folder (`Path`, *optional*): a folder; what leads out of it, by links as well, is outside.
        files (`frozenset[str]`): files and addresses, also of zip files.
    """

    folder: Path | None = None
    files: frozenset[str] = frozenset()

    def find(self, path: str) -> str | None:
        """The file or address of the picture that a row names; `None` if it is outside."""
        inside, _, archive = path.partition("::")
        if path in self.files or (inside.startswith("zip://") and archive in self.files):
            return path
        if self.folder is None or "://" in path:
            return None
        named = self.folder / path
        try:
            is_inside = named.resolve().is_relative_to(self.folder.resolve())
        except (OSError, ValueError, RuntimeError):  # no name that a file could have
            return None
        return as_text(named) if is_inside else None


def holds_pictures(feature: Any) -> bool:
    """Whether cells of this type can be files of pictures."""
    if isinstance(feature, dict):
        return feature.get("bytes") in _BYTES
    return isinstance(feature, datasets.Image) or feature in _BYTES


def holds_pixels(feature: Any) -> bool:
    """Whether cells of this type can be pixels: whole numbers in two or three dimensions."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return _INTEGER.fullmatch(feature.dtype) is not None
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    return depth in (2, 3) and isinstance(feature, datasets.Value) and _INTEGER.fullmatch(feature.dtype) is not None


def to_cell(value: Any, home: Home) -> dict | None:
    """
    What a column of pictures has in a row, as a `CELL`.

    Args:
        value: bytes, a path, `{"bytes": …, "path": …}` with one of both, or pixels; `None` without a picture.
        home ([`Home`]): of the data.
    """
    if value is None:
        return None
    if isinstance(value, list):
        try:
            value = datasets.Image().encode_example(np.array(value))
        except (TypeError, ValueError) as error:
            return _cell(problem=f"its pixels make no picture: {error}")
    if isinstance(value, bytes):
        return _cell(value)
    path = value if isinstance(value, str) else value.get("path")
    content = None if isinstance(value, str) else value.get("bytes")
    if content is not None or path is None:
        return _cell(content, path)
    if (found := home.find(path)) is None:
        return _cell(None, path, "it names a file or address outside the data, which is not read")
    return _cell(None, found)


def _cell(content: bytes | None = None, path: str | None = None, problem: str | None = None) -> dict:
    return {"bytes": content, "path": path, "problem": problem, "damage": None}


def picture_path(cell: dict | None) -> str | None:
    """The path of the picture of a `CELL`, if it has one, as the file system knows it."""
    path = None if cell is None else cell["path"]
    if path is None or not path.startswith(_FILE_URI):
        return path
    return os.fsdecode(unquote_to_bytes(path.removeprefix(_FILE_URI)))


def as_text(path: Path) -> str:
    """What `picture_path` makes the path of."""
    return str(path) if is_utf8(path) else path.absolute().as_uri()


def is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_picture(cell: dict | None) -> Image.Image:
    """
    The upright RGB picture of a `CELL`.

    Raises:
        `ValueError` or `OSError`: if there is none or it cannot be decoded.
        other exceptions: where a remote file cannot be fetched, which says nothing of the picture.
    """
    return open_image(_source(cell))


def read_size(cell: dict | None) -> tuple[int, int]:
    """
    The (width, height) of what `read_picture` gives, in most files without decoding it.

    Raises:
        As `read_picture`, except for what only decoding finds.
    """
    return upright_size(_source(cell))


def _source(cell: dict | None) -> str | bytes:
    if cell is not None and (why := cell["damage"] or cell["problem"]):
        raise ValueError(why)
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError("the row has no picture")
    return picture_path(cell) if cell["bytes"] is None else cell["bytes"]


def fetch(cell: dict | None) -> dict | None:
    """
    The `CELL` with its bytes, where these are on another machine.

    Raises:
        Whatever the connection raises: it says nothing of the picture.
    """
    if cell is None or cell["bytes"] is not None or cell["problem"] or "://" not in (picture_path(cell) or ""):
        return cell
    with fsspec.open(cell["path"], "rb") as file:
        return {**cell, "bytes": file.read()}


def file_name(cell: dict | None, root: Path | None) -> str | None:
    """
    What to call the picture of a `CELL`: relative to a folder, or the last part of an address or other path. Data sets
    are shared, and others need not see this machine's folders.
    """
    path = cell and cell["path"]
    if not path:
        return None
    if "://" in path:
        return shown(os.path.basename(path.split("::")[0]))
    if os.path.isabs(path):
        inside = root is not None and Path(path).is_relative_to(root)
        path = os.path.relpath(path, root) if inside else os.path.basename(path)
    return shown(path)


__all__ = [
    "CELL",
    "Home",
    "as_text",
    "fetch",
    "file_name",
    "holds_pictures",
    "holds_pixels",
    "is_utf8",
    "picture_path",
    "read_picture",
    "read_size",
    "to_cell",
]
