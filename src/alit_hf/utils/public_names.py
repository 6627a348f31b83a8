"""What results and data sets, which are given to others, call the files and folders that they come from."""

import os
from pathlib import Path


def public_name(name: str) -> str:
    """A Hub id as it is; the path of a file or folder without the folders of this machine."""
    return Path(name).resolve().name if os.path.lexists(name) else name


__all__ = ["public_name"]
