"""Serves the demo to many people, who wait their turn and leave nothing behind."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from .layout import build_demo
from .tokenizer import DemoTokenizer
from .upload_limits import UploadLimits
from .uploads import MAX_UPLOAD_BYTES


_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"
_MOST_WAITING = 32
_MOST_SESSIONS = 200
_SYSTEM_FONTS = ["system-ui", "sans-serif"]


@contextmanager
def served_demo(tokenizer: DemoTokenizer) -> Iterator[str]:
    """
    Serves the demo until the context ends, and gives its address. Gradio's variables `GRADIO_SERVER_NAME` and
    `GRADIO_SERVER_PORT` say where; without them, this machine at the first free port from 7860.

    What is uploaded lies in a folder of its own until it is read, and nothing of that folder is left in the end.

    Raises:
        `OSError`: if there is no free port.
    """
    with _folder_of_uploads():
        demo = build_demo(tokenizer).queue(max_size=_MOST_WAITING)
        try:
            _, url, _ = demo.launch(
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=MAX_UPLOAD_BYTES,
                app_kwargs={"middleware": [Middleware(UploadLimits, max_bytes=MAX_UPLOAD_BYTES)]},
                state_session_capacity=_MOST_SESSIONS,
                theme=gr.themes.Default(font=_SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"]),
                css_paths=Path(__file__).with_name("style.css"),
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
            )
            yield url
        finally:
            demo.close(verbose=False)


@contextmanager
def _folder_of_uploads() -> Iterator[None]:
    """A folder for Gradio's files that is removed in the end, in place of one that lasts."""
    before = os.environ.get(_FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="alit-demo-") as folder:
        os.environ[_FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[_FOLDER_VARIABLE]
            if before is not None:
                os.environ[_FOLDER_VARIABLE] = before


__all__ = ["served_demo"]
