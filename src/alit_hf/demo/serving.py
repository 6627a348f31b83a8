"""Serves the demo to many people, who wait their turn and leave nothing behind."""

import datetime
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from .layout import build_demo
from .tokenizer import DemoTokenizer
from .upload_limits import UploadLimits
from .uploads import MAX_UPLOAD_BYTES


SESSION_SECONDS = 3600
"""After which everything is forgotten of a session in which nothing happened."""

_CHECK_SECONDS = 30
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
            with _forgotten_sessions(demo):
                yield url
        finally:
            demo.close(verbose=False)


@contextmanager
def _forgotten_sessions(demo: gr.Blocks) -> Iterator[None]:
    """
    Forgets sessions in which nothing happens any more. Gradio keeps a closed one's state for an hour, and what the
    page showed until there are too many sessions.
    """
    is_over = threading.Event()

    def forget() -> None:
        sessions = demo.state_holder
        while not is_over.wait(_CHECK_SECONDS):
            oldest = datetime.datetime.now() - datetime.timedelta(seconds=SESSION_SECONDS)
            for session, last_used in list(sessions.time_last_used.items()):
                if last_used < oldest:
                    sessions.session_data.pop(session, None)
                    sessions.time_last_used.pop(session, None)

    thread = threading.Thread(target=forget, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


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


__all__ = ["SESSION_SECONDS", "served_demo"]
