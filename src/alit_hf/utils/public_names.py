"""Names of files and folders for results and data sets that are shared."""

import os
from pathlib import Path


def public_name(name: str) -> str:
    """A Hub id unchanged; the path of a file or folder without this machine's folders."""
    return Path(name).resolve().name if os.path.lexists(name) else name


__all__ = ["public_name"]
