"""A tiny model behind the demo, and files to drop in."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_config import tiny_model

from alit_hf import ALITImageProcessor
from alit_hf.demo.tokenizer import DemoTokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., DemoTokenizer]:
    def make(**config) -> DemoTokenizer:
        model = tiny_model(**config)
        return DemoTokenizer(model, ALITImageProcessor.for_config(model.config))

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer) -> DemoTokenizer:
    """32 px, 4 rollouts of 3 tokens of 6 bits; dark noise has an L1 of about 0.27 at every length."""
    return make_tokenizer()


@pytest.fixture
def drop(tmp_path) -> Callable[[str, object], str]:
    """Puts a file (bytes, a picture or what has `to_bytes`) where an upload would lie, and gives its path."""

    def put(name: str, content: object) -> str:
        path: Path = tmp_path / "uploads" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.to_bytes())
        return str(path)

    return put
