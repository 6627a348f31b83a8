"""How long the demo takes to answer: a photo of 12 megapixels, and a moved slider.

    python -m pytest -s -m benchmark tests/benchmarks/bench_demo.py

With the checkpoint of the package, two CPU threads, over HTTP on this machine, upload included.
"""

import tempfile
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image
from timing import seconds, threads

from alit_hf.cli.loading import load_model
from alit_hf.demo.example_photos import example_photo
from alit_hf.demo.serving import served_demo
from alit_hf.demo.tokenizer import DemoTokenizer


THRESHOLDS = (0.3, 0.2, 0.15, 0.1, 0.05)
PHOTO_SIZE = (4000, 3000)
MOST_FOR_A_PHOTO = 6.0
MOST_FOR_THE_SLIDER = 0.5


def measure() -> dict[str, list[float]]:
    """Seconds of every repetition, the first one without a warm-up."""
    model, processor = load_model(device="cpu")
    with served_demo(DemoTokenizer(model, processor)) as url, tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        example_photo("astronaut").resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(photo, quality=92)
        person = Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 120})
        found = {"photo": [], "slider": []}
        for threshold in THRESHOLDS:
            found["photo"].append(seconds(person.predict, handle_file(photo), threshold, api_name="/first_drop"))
            found["slider"].append(seconds(person.predict, threshold / 2, api_name="/first_choose"))
        person.close()
    return found


def report(found: dict[str, list[float]]) -> str:
    return "\n".join(
        f"{name:8}" + "".join(f"{value:8.2f}" for value in values) + f"   at most {max(values):.2f} s"
        for name, values in found.items()
    )


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_demo_answers_at_once():
    with threads(2):
        found = measure()
    print(f"\n{report(found)}")
    assert max(found["photo"]) < MOST_FOR_A_PHOTO
    assert max(found["slider"]) < MOST_FOR_THE_SLIDER
