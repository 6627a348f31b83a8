"""Serves the demo to many users, who wait their turn and leave nothing behind."""

import datetime
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import route_utils
from starlette.middleware import Middleware

from .checked_requests import NoAddresses
from .layout import build_demo
from .tokenizer import DemoTokenizer
from .upload_limits import UploadLimits
from .uploads import MAX_UPLOAD_BYTES


SESSION_SECONDS = 3600
"""Idle time after which a session is forgotten."""

# Nobody waits that long for an answer.
_LONGEST_ANSWER_SECONDS = 3600

# Uploads are deleted when they are read. Older ones were never used, or broke off.
_FORGOTTEN_UPLOAD_SECONDS = 300

_CHECK_SECONDS = 30
_FOLDER_VARIABLE = "GRADIO_TEMP_DIR"
_PORT_VARIABLE = "GRADIO_SERVER_PORT"
_MOST_WAITING = 32
_MOST_SESSIONS = 200
_SYSTEM_FONTS = ["system-ui", "sans-serif"]


@contextmanager
def served_demo(tokenizer: DemoTokenizer) -> Iterator[str]:
    """
    Serves the demo until the context ends, and yields its URL. Gradio's variables `GRADIO_SERVER_NAME` and
    `GRADIO_SERVER_PORT` say where; without them, this machine at the first free port from 7860.

    Uploads are kept in a separate folder until they are read, and the folder is removed at the end.

    Raises:
        `OSError`: if the port is not free, or none is.
    """
    port = os.environ.get(_PORT_VARIABLE)
    with _folder_of_uploads() as folder, _unique_uploads():
        demo = build_demo(tokenizer).queue(max_size=_MOST_WAITING)
        try:
            _, url, _ = demo.launch(
                prevent_thread_lock=True,
                quiet=True,
                # With only the variable, Gradio would also take a later port.
                server_port=None if port is None else int(port),
                max_file_size=MAX_UPLOAD_BYTES,
                app_kwargs={
                    "middleware": [Middleware(NoAddresses), Middleware(UploadLimits, max_bytes=MAX_UPLOAD_BYTES)]
                },
                state_session_capacity=_MOST_SESSIONS,
                theme=gr.themes.Default(font=_SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"]).set(
                    body_text_color_subdued="*neutral_600"
                ),
                css_paths=Path(__file__).with_name("style.css"),
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
            )
            with _forgetting(demo, folder):
                yield url
        finally:
            demo.close(verbose=False)


@contextmanager
def _forgetting(demo: gr.Blocks, folder: Path) -> Iterator[None]:
    """Periodically forgets idle sessions and unused uploads."""
    is_over = threading.Event()
    first_seen: dict[str, datetime.datetime] = {}

    def forget() -> None:
        while not is_over.wait(_CHECK_SECONDS):
            _forget_sessions(demo, first_seen)
            _delete_uploads(folder, before=time.time() - _FORGOTTEN_UPLOAD_SECONDS)

    thread = threading.Thread(target=forget, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _forget_sessions(demo: gr.Blocks, first_seen: dict[str, datetime.datetime]) -> None:
    """
    Gradio keeps a closed session's state for an hour, what the page showed until there are too many sessions, and
    answers that were never fetched even longer.

    Args:
        demo (`gr.Blocks`): the demo that is served.
        first_seen (`dict[str, datetime.datetime]`): since when sessions have had such answers; updated in place.
    """
    now = datetime.datetime.now()
    oldest = now - datetime.timedelta(seconds=SESSION_SECONDS)
    sessions, answers = demo.state_holder, demo._queue.pending_messages_per_session
    for session in first_seen.keys() - answers.keys():
        del first_seen[session]
    for session in list(answers):
        if first_seen.setdefault(session, now) < now - datetime.timedelta(seconds=_LONGEST_ANSWER_SECONDS):
            answers.pop(session, None)
    for session, last_used in list(sessions.time_last_used.items()):
        if last_used < oldest:
            sessions.session_data.pop(session, None)
            sessions.time_last_used.pop(session, None)


def _delete_uploads(folder: Path, before: float) -> None:
    """Deletes files last written `before` that time (seconds since 1970), and folders left empty."""
    for path in folder.rglob("*"):
        with suppress(OSError):  # already deleted, or the folder is not empty
            if path.stat().st_mtime < before:
                path.rmdir() if path.is_dir() else path.unlink()


@contextmanager
def _folder_of_uploads() -> Iterator[Path]:
    """A temporary folder for Gradio's files, instead of a permanent one."""
    before = os.environ.get(_FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="alit-demo-") as folder:
        os.environ[_FOLDER_VARIABLE] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[_FOLDER_VARIABLE]
            if before is not None:
                os.environ[_FOLDER_VARIABLE] = before


@contextmanager
def _unique_uploads() -> Iterator[None]:
    """
    Context in which every upload gets a unique path that cannot be guessed, so that deleting it never affects another
    user: Gradio puts files of equal content and name at one path, whoever uploads them.
    """
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


__all__ = ["SESSION_SECONDS", "served_demo"]
