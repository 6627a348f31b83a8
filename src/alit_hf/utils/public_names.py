"""Names of files and folders for results and data sets that are shared."""

import os
from pathlib import Path

from .shown_text import shown


def public_name(name: str) -> str:
    """A Hub id or relative pattern as it is; the path of a file or folder without this machine's folders."""
    if os.path.lexists(name):
        name = os.path.realpath(name)
    return shown(Path(name).name if os.path.isabs(name) else name)


__all__ = ["public_name"]
