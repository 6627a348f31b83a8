"""The demo as it is served: eight people at once, each with their own picture, and nothing left behind."""

import datetime
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from html_page import Page
from noise_photo import noise_photo

from alit_hf.demo import serving
from alit_hf.demo.codes import EncodedPicture
from alit_hf.demo.serving import served_demo
from alit_hf.demo.uploads import MAX_UPLOAD_BYTES


PEOPLE = 8
SATISFIED = 0.3  # every length is
DROP, CHOOSE = "/first_drop", "/first_choose"


@pytest.fixture(scope="module")
def url(tokenizer):
    with served_demo(tokenizer) as url:
        yield url


@pytest.fixture
def person(url):
    """A session of its own for every call."""
    clients = []

    def make() -> Client:
        clients.append(new_client(url))
        return clients[-1]

    yield make
    with ThreadPoolExecutor(PEOPLE) as pool:  # each takes a second
        list(pool.map(Client.close, clients))


def new_client(url: str) -> Client:
    """A person with a session; patient, as a busy machine may let them wait."""
    return Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 120})


def dropped(person: Client, path: str, threshold: float = SATISFIED) -> dict[str, str]:
    """What the page shows after a file was dropped in."""
    values = person.predict(handle_file(path), threshold, api_name=DROP)
    return named(("message", "file", "strip", "chosen", "tokens"), values)


def moved(person: Client, threshold: float) -> dict[str, str]:
    """What the page shows after the slider was moved."""
    return named(("strip", "chosen", "tokens"), person.predict(threshold, api_name=CHOOSE))


def named(names: tuple[str, ...], values: tuple) -> dict[str, str]:
    contents = (value.get("value") if isinstance(value, dict) else value for value in values)
    return dict(zip(names, contents, strict=True))


def files_of_people() -> list[Path]:
    """Files with something in them that lie where uploads do."""
    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file() and path.stat().st_size]


def test_eight_people_get_their_own_pictures(person, tokenizer, drop):
    expected = {seed: tokenizer.encode(f"{seed}.png", noise_photo(seed)) for seed in range(PEOPLE)}
    paths = {seed: drop(f"{seed}.png", noise_photo(seed)) for seed in expected}
    people = {seed: person() for seed in expected}
    at_once = threading.Barrier(PEOPLE)

    def visit(seed: int) -> None:
        at_once.wait(60)
        for threshold in (SATISFIED, 0.0, SATISFIED):
            shown = dropped(people[seed], paths[seed]) if threshold else moved(people[seed], threshold)
            page = Page(shown["chosen"])
            original, reconstruction = page.pictures()
            assert np.array_equal(original, expected[seed].original)
            assert np.array_equal(reconstruction, expected[seed].choose(threshold).picture)
            assert f"{seed}.png" in page.text

    with ThreadPoolExecutor(PEOPLE) as pool:
        for visitor in [pool.submit(visit, seed) for seed in expected]:
            visitor.result(120)
    assert not files_of_people()


def test_people_with_the_same_file_take_nothing_from_each_other(person, tokenizer, drop, monkeypatch):
    path, encode = drop("same.png", noise_photo(0)), tokenizer.encode

    def slow(name, image):
        time.sleep(0.2)  # all have uploaded before the first one is done
        return encode(name, image)

    monkeypatch.setattr(tokenizer, "encode", slow)
    jobs = [person().submit(handle_file(path), SATISFIED, api_name=DROP) for _ in range(3)]
    for job in jobs:
        message = job.result(60)[0]
        assert message["value"] == ""
    assert not files_of_people()


def test_model_works_on_one_picture_at_a_time(person, tokenizer, drop, monkeypatch):
    encode, inside, most = tokenizer.encode, [], []

    def watched(name, image):
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.1)
        try:
            return encode(name, image)
        finally:
            inside.remove(name)

    monkeypatch.setattr(tokenizer, "encode", watched)
    jobs = [person().submit(handle_file(drop(f"{n}.png", noise_photo(n))), SATISFIED, api_name=DROP) for n in range(3)]
    for job in jobs:
        job.result(60)
    assert most == [1, 1, 1]


def test_slider_waits_for_nobody_and_encodes_nothing(person, tokenizer, drop, monkeypatch):
    me, other = person(), person()
    dropped(me, drop("a.png", noise_photo(0)))
    goes_on = threading.Event()
    calls = []

    def slow(name, image):
        calls.append(name)
        assert goes_on.wait(60)
        raise ValueError("stopped by the test")

    monkeypatch.setattr(tokenizer, "encode", slow)
    job = other.submit(handle_file(drop("b.png", noise_photo(1))), SATISFIED, api_name=DROP)
    while not calls:
        time.sleep(0.01)
    assert "12 tokens" in moved(me, 0.0)["chosen"]
    assert "3 tokens" in moved(me, SATISFIED)["chosen"]
    assert (calls, job.done()) == (["b.png"], False)
    goes_on.set()
    job.result(60)


def test_wrong_file_is_explained_and_the_picture_stays(person, drop):
    me = person()
    before = dropped(me, drop("a.png", noise_photo(0)))
    wrong = dropped(me, drop("notes.txt", b"dear diary"))
    assert "notes.txt is not a picture" in wrong["message"]
    assert wrong["file"] is None
    assert moved(me, SATISFIED)["chosen"] == before["chosen"]
    again = dropped(me, drop("a.png", noise_photo(0)))
    assert again["message"] == ""
    assert not files_of_people()


def test_slider_without_a_picture_asks_for_one(person):
    me = person()
    with pytest.raises(AppError, match="There is no picture any more"):
        moved(me, 0.1)
    assert not any(named(("strip", "chosen", "tokens"), me.predict(0.1, api_name="/second_choose")).values())


def test_unused_sessions_are_forgotten(tokenizer, drop, monkeypatch):
    monkeypatch.setattr(serving, "SESSION_SECONDS", 0)
    monkeypatch.setattr(serving, "_CHECK_SECONDS", 0.05)

    def remembered() -> int:
        gc.collect()
        return sum(isinstance(thing, EncodedPicture) and thing.name == "secret.png" for thing in gc.get_objects())

    with served_demo(tokenizer) as url:
        me = new_client(url)
        dropped(me, drop("secret.png", noise_photo(0)))
        until = time.monotonic() + 30
        while remembered() and time.monotonic() < until:
            time.sleep(0.1)
        assert remembered() == 0
        with pytest.raises(AppError, match="There is no picture any more"):
            moved(me, 0.1)
        me.close()


def test_answers_that_nobody_fetches_are_forgotten():
    now = datetime.datetime.now()
    long_ago = now - datetime.timedelta(seconds=2 * serving.SESSION_SECONDS)
    state = SimpleNamespace(session_data={"old": 1, "new": 2}, time_last_used={"old": long_ago, "new": now})
    answers = dict.fromkeys(["unfetched", "fresh"])
    demo = SimpleNamespace(state_holder=state, _queue=SimpleNamespace(pending_messages_per_session=answers))
    # The one that was fetched meanwhile may come back.
    first_seen = {"unfetched": long_ago, "fetched": long_ago}
    serving._forget_sessions(demo, first_seen)
    assert set(state.session_data) == set(state.time_last_used) == {"new"}
    assert set(answers) == {"fresh"}
    answers["fetched"] = None
    serving._forget_sessions(demo, first_seen)
    assert set(answers) == {"fresh", "fetched"}


def test_uploads_that_nobody_asks_for_are_deleted(tmp_path):
    for name in ("old/a.png", "new/b.png", "tmpbroken", "empty/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty" / "x").unlink()
    for name in ("old/a.png", "tmpbroken", "empty", "new"):
        os.utime(tmp_path / name, (1000, 1000))
    serving._delete_uploads(tmp_path, before=2000)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"new/b.png"}
    assert not (tmp_path / "empty").exists()


def test_large_file_is_refused(url, drop):
    content = b"x" * (MAX_UPLOAD_BYTES + 1)
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", content)}, timeout=60)
    assert answer.status_code == 413
    answer = httpx.post(f"{url}gradio_api/upload", files=[("files", ("a.png", content[1:]))] * 2, timeout=60)
    assert answer.status_code == 413
    assert not files_of_people()


def test_page_asks_nobody_else(url):
    page = httpx.get(url, timeout=60).text
    config = httpx.get(f"{url}config", timeout=60).json()
    assert "fonts.googleapis.com" not in page
    assert config["analytics_enabled"] is False


def test_folder_of_uploads_is_gone_in_the_end(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with served_demo(tokenizer) as url:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"never asked for")}, timeout=60)
        [path] = answer.json()
        assert Path(path).read_bytes() == b"never asked for"
        assert Path(path).is_relative_to(folder)
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
