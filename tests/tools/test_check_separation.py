"""The check that no evaluation image is in training finds copies, also disguised ones."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from tools import check_separation


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the command on two folders of pictures; gives the exit code and what it wrote."""

    def run(train, evaluation):
        for name, pictures in (("train", train), ("evaluation", evaluation)):
            (tmp_path / name).mkdir()
            for number, save in enumerate(pictures):
                save(tmp_path / name / f"{number}")
        output = tmp_path / "out" / "separation.json"
        arguments = ["--train", str(tmp_path / "train"), "--evaluation", str(tmp_path / "evaluation")]
        monkeypatch.setattr(sys, "argv", ["check_separation.py", *arguments, "--output", str(output)])
        code = check_separation.main()
        found = json.loads(output.read_text())
        assert json.loads(capsys.readouterr().out) == found
        return code, found

    return run


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((300, 300), Image.Resampling.BICUBIC)


def png(seed):
    return lambda path: picture(seed).save(f"{path}.png")


def smaller_jpeg(seed):
    return lambda path: picture(seed).resize((180, 180)).save(f"{path}.jpg", quality=60)


def test_different_pictures(check):
    code, found = check([png(seed) for seed in range(6)], [png(seed) for seed in range(6, 9)])
    assert code == 0
    assert found["same_pixels"] == found["near"] == []
    assert found["train"]["num_images"] == 6
    assert found["evaluation"]["num_images"] == 3
    assert check_separation.NEAR < found["least_bits"] <= found["median_bits"] < 40


def test_a_copy(check):
    code, found = check([png(seed) for seed in range(4)], [png(9), png(2)])
    assert code == 1
    assert [name.rsplit("/")[-1] for name in found["same_pixels"]] == ["1.png"]
    assert found["least_bits"] == 0


def test_a_copy_that_was_scaled_and_compressed(check):
    code, found = check([png(seed) for seed in range(4)], [png(9), smaller_jpeg(2)])
    assert code == 0
    (near,) = found["near"]
    assert near["evaluation"].endswith("1.jpg")
    assert near["train"].endswith("2.png")
    assert near["bits"] <= check_separation.NEAR
