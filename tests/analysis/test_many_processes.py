"""`alit analyze` over two real processes gives the numbers of one."""

import json

import pytest
from many_processes import run_two
from small_run import tiny_photos
from tiny_model import save_tiny_model

from alit_hf.cli import main


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    (tmp_path / "photos").mkdir()
    photos = tiny_photos(tmp_path / "photos", 11)[0]
    model = save_tiny_model(tmp_path / "model")
    arguments = ["thresholds", "--model", model, "--data", photos, "--batch-size", "2"]
    done = run_two("analyze", *arguments, "--output", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert main(["analyze", *arguments, "--output", str(tmp_path / "one")]) == 0
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert (two["settings"]["processes"], one["settings"]["processes"]) == (2, 1)
    assert two["data"] == one["data"]
    assert two["results"] == one["results"]
    # One finding, not two.
    assert done.stdout.count("thresholds: ") == 1


@pytest.mark.slow
def test_wrong_use_is_told_once(tmp_path):
    done = run_two("analyze", "thresholds", "--data", "missing", "--output", str(tmp_path), "--device", "cpu")
    assert done.returncode != 0
    assert done.stderr.count("--data: missing does not exist") == 1
