"""A tiny model and photos in folders, and the program `alit` run in this process."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import torch
from hub_server import HubServer, logged_in_hub
from PIL import Image
from tiny_model import save_tiny_model

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.cli import main
from alit_hf.utils.progress import _Pace


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The results of `--json`, which must be all that is on stdout."""
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        """Reported errors, without what progress bars leave on stderr."""
        return [line for line in self.err.splitlines() if line.startswith("alit: error: ")]


@pytest.fixture
def alit(capfd) -> Callable[..., Result]:
    """Runs `alit` with arguments and gives its exit code and what it printed."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def progress_at_once(monkeypatch) -> None:
    """Bars are drawn from the start, however short the work."""
    monkeypatch.setattr("alit_hf.utils.progress._IN_FILE", _Pace(0.0, 60.0))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a model."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> str:
    """Folder of a model that differs in its weights alone."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def loaded(tiny_model) -> tuple[ALITModel, ALITImageProcessor]:
    """Model and processor of `tiny_model`."""
    return ALITModel.from_pretrained(tiny_model).eval(), ALITImageProcessor.from_pretrained(tiny_model)


def make_photos(folder: Path, names: Sequence[str]) -> Path:
    """Writes pictures that differ in size, contrast and brightness."""
    for index, name in enumerate(names):
        noise = torch.rand(30 + index, 41, 3, generator=torch.Generator().manual_seed(index))
        pixels = (noise * 255 * (index + 1) / len(names)).to(torch.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five pictures in a folder and its subfolder."""
    return make_photos(tmp_path / "photos", ["a.jpg", "a.png", "b.webp", "sub/c.JPG", "sub/deeper/d.tif"])


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A Hub that data sets are read from and pushed to."""
    monkeypatch.setenv("ALIT_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    # The working directory decides whether a name is a folder.
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with logged_in_hub(monkeypatch) as server:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield server
