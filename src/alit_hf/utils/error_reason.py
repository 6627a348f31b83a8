"""What went wrong, in words."""


def reason(error: Exception) -> str:
    """What went wrong, in one line: the system's message for an `OSError`, else the error's message or its name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


__all__ = ["reason"]
