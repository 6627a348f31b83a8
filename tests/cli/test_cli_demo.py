"""`alit demo` on this machine: a page until Ctrl-C, or one line that says why not."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from tiny_model import save_tiny_model

from alit_hf.cli import demo


@pytest.fixture
def until_interrupted(monkeypatch):
    """What happens while the command waits for Ctrl-C; gives the list of its outcomes."""

    def install(visit) -> list:
        outcomes = []

        def wait():
            outcomes.append(visit())
            raise KeyboardInterrupt

        monkeypatch.setattr(demo, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=wait)))
        return outcomes

    return install


@pytest.fixture
def taken_port(monkeypatch):
    """A socket at the port that the demo is told to take."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(taken.getsockname()[1]))
        yield taken


def test_serves_the_model_until_it_is_interrupted(alit, tiny_model, until_interrupted, taken_port):
    address = f"http://127.0.0.1:{taken_port.getsockname()[1]}/"
    taken_port.close()
    pages = until_interrupted(lambda: httpx.get(address, timeout=60))
    result = alit("demo", "--model", tiny_model, "--device", "cpu")
    assert result.code == 0
    assert result.out == f"{address} (Ctrl-C ends it)\n"
    assert [page.status_code for page in pages] == [200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_it_and_leave_nothing(alit, tiny_model, until_interrupted, name):
    folders = []

    def visit():
        folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        (folders[0] / "private.png").write_bytes(b"somebody's")
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(60)

    before = signal.getsignal(getattr(signal, name))
    until_interrupted(visit)
    assert alit("demo", "--model", tiny_model, "--device", "cpu").code == 0
    assert not folders[0].exists()
    assert signal.getsignal(getattr(signal, name)) == before


def test_port_that_is_taken_is_named(alit, tiny_model, taken_port):
    port = taken_port.getsockname()[1]
    result = alit("demo", "--model", tiny_model, "--device", "cpu")
    assert (result.code, result.out, len(result.errors)) == (2, "", 1)
    assert f"the demo cannot be served: Cannot find empty port in range: {port}-{port}" in result.err


def test_missing_packages_are_named(alit, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for module in [name for name in sys.modules if name.startswith("alit_hf.demo.")]:
        monkeypatch.delitem(sys.modules, module)
    result = alit("demo", "--model", tiny_model)
    assert (result.code, result.out) == (2, "")
    assert "pip install 'alit-hf[demo]'" in result.err


def test_model_without_a_grid_is_refused(alit, tmp_path):
    model = save_tiny_model(tmp_path / "model", image_size=4)
    result = alit("demo", "--model", model, "--device", "cpu")
    assert (result.code, result.out) == (2, "")
    assert "--model cannot be used: The model's grid has one position" in result.err
