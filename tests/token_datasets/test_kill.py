"""SIGKILL at random moments: the same command goes on, and at the end nothing is missing, doubled or different."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from lively_model import lively_model
from token_data import contents, png

from alit_hf import ALITImageProcessor


NUM_IMAGES = 500
NUM_KILLS = 10
BROKEN = {17, 18, 250, 499}


@pytest.fixture
def command(tmp_path) -> list[str]:
    """`alit tokenize` of 500 pictures in three parquet files, without its output."""
    model = lively_model()
    model.save_pretrained(tmp_path / "model")
    ALITImageProcessor.for_config(model.config).save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for file, numbers in enumerate((range(200), range(200, 400), range(400, NUM_IMAGES))):
        pictures = [
            {"bytes": b"x" if number in BROKEN else png(number), "path": f"{number}.png"} for number in numbers
        ]
        columns = {"image": pictures, "number": list(numbers)}
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "data" / f"{file}.parquet")
    arguments = ["--threshold", "0.38", "--rows-per-shard", "10", "--batch-size", "3", "--device", "cpu"]
    data, model_folder = str(tmp_path / "data"), str(tmp_path / "model")
    return [sys.executable, "-m", "alit_hf.cli", "tokenize", data, "--model", model_folder, *arguments, "--output"]


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("data/train-*.parquet")}


def kill(command: list[str], out: Path, moment: random.Random) -> int:
    """Starts the command and kills it a random while after it has begun to write; gives the number of its shards."""
    before = shards(out)
    with subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL) as process:
        while shards(out) == before:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.25))
        assert process.poll() is None
        process.kill()
    return len(shards(out) - before)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_lose_and_double_nothing(command, tmp_path):
    out = tmp_path / "out"
    moment = random.Random(0)
    written = [kill(command, out, moment) for _ in range(NUM_KILLS)]
    print("shards before each kill:", written, "of", NUM_IMAGES // 10)
    for path in out.glob("data/train-*.parquet"):
        pq.read_table(path)
    assert not (out / "README.md").exists()
    assert subprocess.run([*command, str(out)], check=False).returncode == 1  # of the undecodable pictures

    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["number"][:] == [number for number in range(NUM_IMAGES) if number not in BROKEN]
    listed = [json.loads(line)["file_name"] for line in (out / "undecodable.jsonl").read_text().splitlines()]
    assert listed == [f"{number}.png" for number in sorted(BROKEN)]
    assert not list(out.glob("data/.*"))

    assert subprocess.run([*command, str(tmp_path / "whole")], check=False).returncode == 1
    assert contents(out) == contents(tmp_path / "whole")
