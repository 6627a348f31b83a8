"""`alit tokenize` over two real processes writes what one writes."""

import pytest
import torch
from lively_model import lively_model
from many_processes import run_two
from token_data import contents

from alit_hf import ALITImageProcessor
from alit_hf.cli import main


@pytest.fixture
def one_thread():
    """As many as each of the two processes has: with others, sums are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("one_thread")
def test_two_processes_write_what_one_writes(tmp_path, parquet):
    model = lively_model()
    model.save_pretrained(tmp_path / "model")
    ALITImageProcessor.for_config(model.config).save_pretrained(tmp_path / "model")
    arguments = [str(parquet), "--model", str(tmp_path / "model"), "--threshold", "0.3", "--rows-per-shard", "2"]
    arguments += ["--device", "cpu"]
    done = run_two("tokenize", *arguments, "--output", str(tmp_path / "two"))
    assert done.stderr.count("1 image could not be decoded") == 1, done.stderr
    assert main(["tokenize", *arguments, "--output", str(tmp_path / "one")]) == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert done.stdout.count("10 images, ") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wrong_use_is_told_once(tmp_path):
    done = run_two("tokenize", "missing", "--output", str(tmp_path / "out"), "--device", "cpu")
    assert done.returncode != 0
    assert done.stderr.count("DATASET: missing does not exist") == 1
