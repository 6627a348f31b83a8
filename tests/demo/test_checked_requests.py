"""Whoever posts addresses to the page does not make it fetch them, and values that no component has do nothing."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import safehttpx
from gradio import processing_utils
from noise_photo import noise_photo

from alit_hf.demo.serving import served_demo


USUAL = {"file": None, "slider": 0.1, "checkbox": False, "state": None}


@pytest.fixture(scope="module")
def url(tokenizer):
    with served_demo(tokenizer) as url:
        yield url


@pytest.fixture(scope="module")
def events(url) -> dict[int, list[str]]:
    """What each event of the page takes, by its number."""
    config = httpx.get(f"{url}config", timeout=60).json()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    return {event["id"]: [kinds[number] for number in event["inputs"]] for event in config["dependencies"]}


@pytest.fixture
def listener(monkeypatch):
    """A server on this machine that Gradio takes for a public one; `.asked` has the paths of all requests."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    async def public(host):
        return host

    monkeypatch.setattr(processing_utils, "PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])
    monkeypatch.setattr(safehttpx, "async_validate_url", public)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.asked = []
    server.address = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def post(url: str, event: int, data: list, event_data: object = None) -> dict:
    """The outcome of an event, as the page gets it."""
    body = {"data": data, "fn_index": event, "session_hash": "person", "event_data": event_data}
    # httpx writes no NaN.
    sent = {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
    assert httpx.post(f"{url}gradio_api/queue/join", **sent, timeout=60).status_code == 200
    with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=person", timeout=60) as messages:
        for line in messages.iter_lines():
            message = json.loads(line.removeprefix("data: ") or "{}")
            if message.get("msg") == "process_completed":
                return message["output"]
    raise AssertionError("no outcome came")


def uploaded(url: str) -> dict:
    picture = io.BytesIO()
    noise_photo(0).save(picture, "PNG")
    files = {"files": ("a.png", picture.getvalue())}
    [path] = httpx.post(f"{url}gradio_api/upload", files=files, timeout=60).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_no_address_in_a_value_is_fetched(url, events, listener):
    address = {"path": f"{listener.address}a.png", "meta": {"_type": "gradio.FileData"}}
    beside_a_file = {**uploaded(url), "orig_name": address, "more": [address]}
    without_meta = {"path": beside_a_file["path"], "more": [address]}
    assert {kind for kinds in events.values() for kind in kinds} == set(USUAL)
    for event, kinds in events.items():
        usual = [USUAL[kind] for kind in kinds]
        for place, kind in enumerate(kinds):
            # One event of each kind gets all of them.
            values = [address, [address], {"value": address}, beside_a_file, without_meta] if event < 2 else [address]
            for value in values:
                outcome = post(url, event, [*usual[:place], value, *usual[place + 1 :]], {"token": address})
                assert kind in ("state", "file") or "error" in outcome
        assert "values, there must be" in post(url, event, [*usual, address])["error"]
    assert listener.asked == []


def test_no_route_fetches_an_address(url, listener):
    address = f"{listener.address}a.png"
    for start in ("file=", "file/", "proxy="):
        for path in (address, address.replace("/", "%2F")):
            assert httpx.get(f"{url}gradio_api/{start}{path}", timeout=60).status_code == 403
            assert httpx.head(f"{url}gradio_api/{start}{path}", timeout=60).status_code in (403, 405)
    payload = {"path": address, "meta": {"_type": "gradio.FileData"}}
    for route in ("run", "api", "call"):
        httpx.post(f"{url}gradio_api/{route}/first_choose", json={"data": [None, payload, None]}, timeout=60)
    httpx.post(f"{url}gradio_api/call/v2/first_choose", json={"param_1": payload}, timeout=60)
    assert post(url, 1, [payload, False])["error"]  # the queue has done what was posted before
    assert listener.asked == []


@pytest.mark.parametrize("value", [None, True, "0.1", "", float("nan"), float("inf"), -0.1, 0.31, [0.1], {}])
def test_a_threshold_is_a_number_of_its_range(url, events, value):
    assert events[1] == ["slider", "checkbox"]
    assert "`Threshold` is " in (error := post(url, 1, [value, False], {"example": "cat"})["error"])
    assert error.endswith(", it must be a number from 0 to 0.3.")


def test_other_values_are_those_of_their_components(url, events):
    (compare,) = [event for event, kinds in events.items() if kinds == ["checkbox"]]
    for value in (None, 0, "true", [True]):
        assert "it must be true or false" in post(url, compare, [value])["error"]
    for path in (None, 3, "", "a.png", "/etc/passwd", "\0", "\ud800", "https://example.com/a.png"):
        value = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert "Only files can be dropped in" in post(url, 0, [value, 0.1, False])["error"]
    assert "Only files can be dropped in" in post(url, 0, [None, 0.1, False])["error"]


def test_only_what_is_on_the_page_is_clicked(url, events, tokenizer):
    (press, _) = [event for event, kinds in events.items() if kinds == ["state", "slider", "checkbox"]]
    for clicked in (None, [], "cat", {}, {"example": None}, {"example": ["cat"]}, {"example": "dog"}):
        assert "`example` is " in post(url, 1, [0.1, False], clicked)["error"]
    assert "data" in post(url, 0, [uploaded(url), 0.1, False])
    longest = tokenizer.model.config.max_tokens
    for clicked in (None, {}, {"token": 1}, {"token": "-1"}, {"token": str(longest)}, {"token": "1" * 5000}):
        assert "`token` is " in post(url, press, [None, 0.1, False], clicked)["error"]
    assert post(url, press, [None, 0.0, False], {"token": str(longest - 1)})["data"][3]["props"]["pressed"] == longest
