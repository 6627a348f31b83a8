"""Limits the number and size of uploads before anything is stored."""

import time
from collections import deque

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


UPLOADS_A_MINUTE = 60
"""For all users together: more pictures than a machine with two cores can process."""

_MINUTE = 60.0
# Allowance for the rest of a form with one file.
_FORM_BYTES = 2**16


class UploadLimits:
    """
    Middleware that refuses uploads that are too large or too many. Gradio itself limits the size of a file, but not
    the number of files in a request or of requests.

    Args:
        app (`ASGIApp`): answers the other requests.
        max_bytes (`int`): size limit of a file.
        uploads_a_minute (`int`): limit in any 60 seconds.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, uploads_a_minute: int = UPLOADS_A_MINUTE):
        self._app = app
        self._max_bytes = max_bytes
        self._uploads_a_minute = uploads_a_minute
        self._times: deque[float] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload"):
            answer = self._refusal(dict(scope["headers"])) or self._app
        await answer(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> PlainTextResponse | None:
        length = headers.get(b"content-length", b"").decode("latin-1")
        if not length.isdecimal():
            return PlainTextResponse("The upload must say how long it is.", status_code=411)
        if int(length) > self._max_bytes + _FORM_BYTES:
            return PlainTextResponse(f"At most {self._max_bytes // 2**20} MB can be uploaded.", status_code=413)
        now = time.monotonic()
        while self._times and self._times[0] <= now - _MINUTE:
            self._times.popleft()
        if len(self._times) >= self._uploads_a_minute:
            return PlainTextResponse("Too many pictures at once, please try again in a minute.", status_code=429)
        self._times.append(now)
        return None


__all__ = ["UPLOADS_A_MINUTE", "UploadLimits"]
