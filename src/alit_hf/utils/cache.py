"""Where the package caches what it has downloaded or made."""

import os
from pathlib import Path

from huggingface_hub import constants


def cache_folder() -> Path:
    """`$ALIT_HF_CACHE`, by default `alit_hf` in `$HF_HOME`. It may not exist yet."""
    return Path(os.environ.get("ALIT_HF_CACHE") or os.path.join(constants.HF_HOME, "alit_hf")).expanduser()


__all__ = ["cache_folder"]
