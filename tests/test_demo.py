"""`make demo`: what examples/demo.py writes and prints."""

import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny_model

from alit_hf import ALITImageProcessor, ALITModel, pretrained_path
from alit_hf.codes.token_file import TokenFile
from alit_hf.model.image_io import open_image


DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.fixture
def run_demo(monkeypatch):
    """Runs the script in this process, with arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(DEMO), *map(str, arguments)])
        runpy.run_path(str(DEMO), run_name="__main__")

    return run


def table(out: str) -> dict[str, list[str]]:
    lines = [line.split() for line in out.splitlines() if line.endswith("dB")]
    return {name: values[:-1] for name, *values in lines}


def test_photos_of_ones_own(tmp_path, run_demo, capsys):
    model_folder = save_tiny_model(tmp_path / "model")
    Image.fromarray(np.full((40, 60, 3), 255, np.uint8)).save(tmp_path / "white.png")
    Image.fromarray(np.full((50, 33, 3), 40, np.uint8)).save(tmp_path / "dark.jpg")
    model, processor = ALITModel.from_pretrained(model_folder).eval(), ALITImageProcessor.from_pretrained(model_folder)
    codes = {}
    for name in ("white.png", "dark.jpg"):
        pixel_values = processor(open_image(tmp_path / name), return_tensors="pt").pixel_values
        with torch.no_grad():
            codes[name] = model.encode(pixel_values, threshold=0.5, return_reconstruction=True)
    assert {code.num_tokens.item() for code in codes.values()} == {4, 12}

    arguments = ["--model", model_folder, "--threshold", 0.5, "--output", tmp_path / "out"]
    run_demo(tmp_path / "white.png", tmp_path / "dark.jpg", *arguments)
    out = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'demo.png'}: every photo at every length. Framed: the fewest tokens" in out
    assert "below 0.5, or all of them where no length is below." in out
    rows = table(out)
    assert list(rows) == ["white.png", "dark.jpg"]
    for name, code in codes.items():
        tokens = TokenFile.load(tmp_path / "out" / "demo" / f"{name}.alit")
        assert tokens.token_ids.tolist() == code.token_ids[0].tolist()
        assert tokens.original_size == Image.open(tmp_path / name).size
        num_tokens = code.num_tokens.item()
        assert rows[name][:3] == [str(num_tokens), str(num_tokens * 6 // 8), str(num_tokens * 6 // 8 + 33)]
        assert float(rows[name][3]) == pytest.approx(code.score.item(), abs=1e-4)
        decoded = Image.open(tmp_path / "out" / "demo" / f"{name}.png")
        expected = processor.postprocess(code.reconstruction)[0]
        assert np.abs(np.subtract(decoded, expected, dtype=np.int16)).max() <= 1
    with Image.open(tmp_path / "out" / "demo.png") as figure:
        assert figure.width > 1000


def test_unusable_photo_is_named(tmp_path, run_demo, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(SystemExit) as ended:
        run_demo(tmp_path / "broken.jpg", "--output", tmp_path / "out")
    assert ended.value.code == 2
    assert "broken.jpg is not a picture" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_main_job_takes_less_than_two_minutes(tmp_path):
    start = time.monotonic()
    done = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    seconds = time.monotonic() - start
    assert (done.returncode, done.stderr) == (0, "")
    rows = table(done.stdout)
    assert list(rows) == ["astronaut", "cat", "coffee"]
    config = ALITModel.config_class.from_pretrained(pretrained_path())
    for name, (num_tokens, num_bytes, file_size, *_) in rows.items():
        file = tmp_path / "outputs" / "demo" / f"{name}.alit"
        assert int(num_tokens) % config.tokens_per_rollout == 0
        assert int(num_bytes) * 8 == int(num_tokens) * config.bits_per_token
        assert int(file_size) == file.stat().st_size
    assert (tmp_path / "outputs" / "demo.png").exists()
    assert seconds < 120
