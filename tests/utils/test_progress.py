"""Progress bars: where they are drawn, when, and what they say."""

import gc
import io
import re
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from alit_hf.utils import progress
from alit_hf.utils.progress import ProgressBar, end_startup, hidden_progress, show_startup


class Terminal(io.StringIO):
    """Keeps what is drawn, and tells when something was."""

    def __init__(self, is_terminal: bool = True):
        super().__init__()
        self.is_terminal = is_terminal
        self.drawn = threading.Semaphore(0)

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        if text.strip():
            self.drawn.release()
        return super().write(text)

    def shows(self) -> str:
        """The last line, as somebody sees it."""
        return self.getvalue().rpartition("\r")[2].strip()


def test_there_is_no_other_progress_bar():
    root = Path(__file__).parents[2]
    files = [path for folder in ("src", "training", "tools") for path in (root / folder).rglob("*.py")]
    using = [path.name for path in files if re.search(r"\btqdm\b(?!_hook)", path.read_text(encoding="utf-8"))]
    assert using == ["progress.py"]


def stderr_is(monkeypatch, stream: Terminal | None) -> Terminal | None:
    # Not `sys.stderr` itself, which pytest replaces between a fixture and its test.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    # A bar is drawn below those that are open, and tests before this one may have left some.
    monkeypatch.setattr(ProgressBar, "_instances", weakref.WeakSet(), raising=False)
    return stderr_is(monkeypatch, Terminal())


@pytest.fixture
def at_once(monkeypatch) -> None:
    for name in ("_IN_TERMINAL", "_IN_FILE"):
        monkeypatch.setattr(progress, name, getattr(progress, name)._replace(delay=0.0))


@pytest.mark.usefixtures("at_once")
def test_a_bar_says_how_much_is_done_and_how_much_time_is_left(terminal):
    with ProgressBar(total=4, desc="working") as bar:
        bar.update(3)
        bar.refresh()
        shown = terminal.shows()
        bar.update(1)
    assert shown.startswith("working:  75%|")
    assert re.search(r"\| 3/4 \[\d\d:\d\d<\d\d:\d\d, ", shown)
    assert terminal.shows().startswith("working: 100%|")


def test_what_ends_soon_leaves_no_trace(terminal):
    with ProgressBar(total=4, desc="working") as bar:
        bar.update(4)
    assert list(ProgressBar([1, 2], desc="working")) == [1, 2]
    assert terminal.getvalue() == ""


def test_a_bar_appears_and_goes_on_where_the_work_does_not(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_IN_TERMINAL", progress._Pace(0.01, 0.01))
    with ProgressBar(total=4, desc="working"):
        for _ in range(3):
            assert terminal.drawn.acquire(timeout=30)
    text = terminal.getvalue()
    assert text.count("working:   0%|") >= 3
    assert text.endswith("\n")


def test_a_file_is_not_filled_with_bars(monkeypatch, at_once):
    file = stderr_is(monkeypatch, Terminal(is_terminal=False))
    with ProgressBar(range(10_000), desc="working") as bar:
        for _ in bar:
            bar.set_postfix(loss=1.0)
    # One at the start, which only time may double, and one at the end, each a line that `tail` can show.
    text = file.getvalue()
    lines = text.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("working: ") for line in lines)
    assert "10000/10000" in lines[-1]
    assert "\r" not in text
    assert text.endswith("\n")


@pytest.mark.usefixtures("at_once")
def test_the_first_of_several_processes_has_the_bar(terminal, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert list(ProgressBar([1, 2])) == [1, 2]
    assert terminal.getvalue() == ""
    monkeypatch.setenv("RANK", "0")
    assert list(ProgressBar([1, 2])) == [1, 2]
    assert "2/2" in terminal.getvalue()


@pytest.mark.usefixtures("at_once")
def test_bars_can_be_hidden(terminal):
    with hidden_progress():
        with hidden_progress(False), ProgressBar(total=1, desc="seen") as bar:
            bar.update()
        with ProgressBar(total=1, desc="unseen") as bar:
            bar.update()
    assert "seen" in terminal.getvalue()
    assert "unseen" not in terminal.getvalue()


def test_without_stderr_the_work_is_done(monkeypatch):
    stderr_is(monkeypatch, None)
    assert list(ProgressBar([1, 2])) == [1, 2]


def test_shares_of_what_is_not_done_yet_are_shown_but_not_counted(terminal):
    with ProgressBar(total=8, initial=2) as bar:
        for expected, shown in ((2.75, "2/8"), (3.5, "3/8"), (4, "4/8"), (4, "4/8")):
            bar.advance(0.75, end=4)
            assert bar.n == expected
            assert f" {shown} [" in str(bar)
        bar.update(2)
        assert (bar.n, bar.done) == (4, 4)
        bar.update(3)
        assert (bar.n, bar.done) == (7, 7)


def test_an_abandoned_bar_leaves_no_thread(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_IN_TERMINAL", progress._Pace(0.01, 0.01))
    before = set(threading.enumerate())
    bar = ProgressBar(total=4)
    (thread,) = set(threading.enumerate()) - before
    del bar
    gc.collect()
    thread.join(timeout=30)
    assert not thread.is_alive()


class TestStartup:
    pytestmark = pytest.mark.usefixtures("at_once")

    def test_it_shows_until_something_else_is_shown(self, terminal):
        show_startup()
        assert terminal.shows() == "loading [00:00]"
        with ProgressBar(total=1, desc="working"):
            pass
        assert terminal.getvalue().index("loading") < terminal.getvalue().index("working")
        assert "loading" not in terminal.getvalue().partition("working")[2]

    def test_it_leaves_nothing(self, terminal):
        show_startup()
        end_startup()
        assert terminal.shows() == ""
        end_startup()

    def test_only_in_a_terminal(self, monkeypatch):
        file = stderr_is(monkeypatch, Terminal(is_terminal=False))
        show_startup()
        assert file.getvalue() == ""


def test_bars_of_transformers_are_ours(terminal, monkeypatch):
    from transformers.utils import logging

    before = logging.set_tqdm_hook(None)
    monkeypatch.setattr("huggingface_hub.utils.disable_progress_bars", lambda: None)
    try:
        progress.adopt_library_bars()
        assert list(logging.tqdm([1, 2], desc="Loading weights")) == [1, 2]
        assert terminal.getvalue() == ""
        monkeypatch.setattr(progress, "_IN_TERMINAL", progress._Pace(0.0, 1.0))
        assert list(logging.tqdm([1, 2], desc="Loading weights")) == [1, 2]
        assert "Loading weights: 100%" in terminal.getvalue()
    finally:
        logging.set_tqdm_hook(before)
