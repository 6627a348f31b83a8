"""`alit evaluate` over two real processes gives the numbers of one."""

import json

import pytest
from many_processes import run_two
from tiny_model import save_tiny_model

from alit_hf.cli import main


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_give_the_numbers_of_one(tmp_path, photos):
    model = save_tiny_model(tmp_path / "model")
    arguments = ["--model", model, "--data", str(photos), "--lpips", "none", "--device", "cpu", "--batch-size", "2"]
    pictures = tmp_path / "saved"
    more = ["--output", str(tmp_path / "two.json"), "--save-reconstructions", str(pictures), "--json"]
    done = run_two("evaluate", *arguments, *more)
    assert done.returncode == 0, done.stderr
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "one.json")]) == 0
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert two["settings"]["processes"] == 2
    assert two["data"] == one["data"]
    assert [image["index"] for image in two["worst"]] == [image["index"] for image in one["worst"]]
    for name in ("l1", "psnr", "ssim", "codebook_usage"):
        for numbers in ("lengths", "thumbnail") if name != "codebook_usage" else ("lengths",):
            got, expected = ([row[name] for row in results[numbers].values()] for results in (two, one))
            assert got == pytest.approx(expected, abs=1e-5)
        assert [row[name] for row in two["adaptive"]] == pytest.approx(
            [row[name] for row in one["adaptive"]], abs=1e-5
        )
    saved = {path.name: len(list(path.iterdir())) for path in pictures.iterdir()}
    assert saved == dict.fromkeys(["originals", "tokens-4", "tokens-8", "tokens-12"], 7)
    # One document, not two.
    assert json.loads(done.stdout) == two


@pytest.mark.slow
def test_wrong_use_is_told_once(tmp_path):
    done = run_two("evaluate", "--data", "missing", "--output", str(tmp_path / "r.json"), "--device", "cpu")
    assert done.returncode != 0
    assert done.stderr.count("--data: missing does not exist") == 1
