"""A tiny model whose pictures differ from length to length, and photos on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lively_model import lively_model
from PIL import Image

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.data.images import Images, open_images


@pytest.fixture(scope="session")
def model() -> ALITModel:
    return lively_model()


@pytest.fixture(scope="session")
def processor() -> ALITImageProcessor:
    return ALITImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Seven smooth pictures with a little noise, of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(7):
        random = np.random.default_rng(index)
        coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((50, 36 + index), Image.Resampling.BICUBIC)) + random.normal(0, 9, (1, 1, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def images(photos) -> Images:
    return open_images([str(photos)])


@pytest.fixture(scope="session")
def pixel_values(images, processor) -> torch.Tensor:
    """All photos as the model sees them, (7, 3, 32, 32)."""
    return processor([images.read(index) for index in range(len(images))], return_tensors="pt").pixel_values
