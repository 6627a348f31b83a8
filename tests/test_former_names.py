"""Modules that have moved can be imported and run under the names they had."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import alit_hf


def test_a_former_name_exists_no_more():
    """Else what lies there would be found, and not what has moved."""
    package = Path(alit_hf.__file__).parent
    for former in alit_hf._FORMER_NAMES:
        path = package.joinpath(*former.split("."))
        assert not path.exists()
        assert not path.with_suffix(".py").exists()


@pytest.mark.parametrize(("former", "name"), alit_hf._FORMER_NAMES.items())
def test_a_former_name_gives_the_same_module(former, name):
    sys.modules.pop(f"alit_hf.{former}", None)
    with pytest.warns(DeprecationWarning, match=rf"alit_hf\.{former} is now alit_hf\.{name}"):
        module = importlib.import_module(f"alit_hf.{former}")
    assert module is importlib.import_module(f"alit_hf.{name}")
    assert module.__name__ == module.__spec__.name == f"alit_hf.{name}"


def test_the_names_of_a_former_module(recwarn):
    from alit_hf import image_io
    from alit_hf.losses.perceptual import LPIPS
    from alit_hf.model.image_io import open_image
    from alit_hf.networks.lpips import LPIPS as CLASS

    assert image_io.open_image is open_image
    assert LPIPS is CLASS


def test_a_former_name_runs(tmp_path):
    cached = [tmp_path / "lpips" / f"{net}-v0.1.safetensors" for net in ("alex", "vgg")]
    cached[0].parent.mkdir()
    for path in cached:
        path.touch()  # so that nothing is downloaded
    environment = {"PYTHONPATH": str(Path(alit_hf.__file__).parents[1]), "ALIT_HF_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "alit_hf.losses.perceptual"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(path) for path in cached]


def test_another_name_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("alit_hf.nothing")
