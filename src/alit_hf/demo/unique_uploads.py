"""Keeps uploads apart: Gradio puts files of equal content and name at one path, whoever they are from."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradio import route_utils


@contextmanager
def unique_uploads() -> Iterator[None]:
    """Within it every upload gets a path that nobody can guess, so that who deletes it deletes nobody else's."""
    upload_file = route_utils.GradioUploadFile

    class UniqueUpload(upload_file):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.sha.update(secrets.token_bytes(16))

    route_utils.GradioUploadFile = UniqueUpload
    try:
        yield
    finally:
        route_utils.GradioUploadFile = upload_file


__all__ = ["unique_uploads"]
