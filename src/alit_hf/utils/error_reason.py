"""What went wrong, in words."""

import os

from .shown_text import one_line


def reason(error: Exception, path: str | os.PathLike | None = None, name: str = "") -> str:
    """
    What went wrong, in one line: the system's message for an `OSError`, else the error's message or its name.

    Args:
        error (`Exception`)
        path (`str` or `Path`, *optional*): is called `name` in it.
        name (`str`, *optional*): see `path`.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if path is not None:
        text = text.replace(os.fspath(path), name)
    return one_line(text) or type(error).__name__


__all__ = ["reason"]
