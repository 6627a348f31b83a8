"""Uploads that are too large or too many are refused before anything of them is read."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from alit_hf.demo import upload_limits
from alit_hf.demo.upload_limits import UploadLimits


MAX_BYTES = 2 * 2**20
PATH = "/gradio_api/upload"


@pytest.fixture
def clock(monkeypatch):
    """The time, which only moves when the test says so."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(upload_limits.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def client(clock):
    async def answer(request):
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route("/{path:path}", answer, methods=["GET", "POST"])]
    limits = Middleware(UploadLimits, max_bytes=MAX_BYTES, uploads_a_minute=3)
    return TestClient(Starlette(routes=routes, middleware=[limits]))


def test_small_upload_arrives_whole(client):
    answer = client.post(PATH, content=b"x" * MAX_BYTES)
    assert (answer.status_code, answer.text) == (200, str(MAX_BYTES))


def test_large_upload_is_refused(client):
    answer = client.post(PATH, content=b"x" * (2 * MAX_BYTES))
    assert (answer.status_code, answer.text) == (413, "At most 2 MB can be uploaded.")


def test_upload_of_unknown_length_is_refused(client):
    assert client.post(PATH, content=iter([b"x", b"y"])).status_code == 411


def test_number_is_limited_within_any_minute(client, clock):
    def post() -> int:
        return client.post(PATH, content=b"x").status_code

    codes = []
    for seconds in (0, 20, 20, 5):
        clock.now += seconds
        codes.append(post())
    assert codes == [200, 200, 200, 429]
    clock.now += 15.1  # a minute after the first
    assert [post(), post()] == [200, 429]


def test_other_requests_are_not_counted(client):
    for _ in range(5):
        assert client.get("/").status_code == 200
        assert client.post("/gradio_api/queue/join", content=b"x" * (2 * MAX_BYTES)).status_code == 200
        assert client.get(PATH).status_code == 200
    assert client.post(PATH, content=b"x").status_code == 200
