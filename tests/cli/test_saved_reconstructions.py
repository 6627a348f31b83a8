"""`alit evaluate --save-reconstructions`: pairs that other programs get the same metrics from as the results have."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from lively_model import lively_model
from PIL import Image
from token_data import png
from torch import nn

from alit_hf import ALITImageProcessor
from alit_hf.evaluation import frechet
from alit_hf.model.image_io import open_image


NUM_FEATURES = 6


@pytest.fixture(scope="module")
def loaded():
    model = lively_model()
    return model, ALITImageProcessor.for_config(model.config)


@pytest.fixture(scope="module")
def model(tmp_path_factory, loaded) -> str:
    folder = tmp_path_factory.mktemp("models") / "lively"
    for part in loaded:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def evaluate(alit, photos, tmp_path, model):
    def run(*arguments, data=photos, folder=tmp_path / "saved"):
        output = tmp_path / "results.json"
        common = ["--data", data, "--model", model, "--output", output, "--lpips", "none", "--thresholds", "0.2"]
        return alit("evaluate", *common, "--save-reconstructions", folder, *arguments)

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def saved(folder: Path) -> dict[str, list[str]]:
    return {path.name: sorted(file.name for file in path.iterdir()) for path in folder.iterdir()}


def test_pictures_are_those_that_were_measured(evaluate, photos, tmp_path, loaded):
    result = evaluate("--batch-size", 2)
    assert (result.code, result.errors) == (0, [])
    assert result.out.endswith(f"results.json: 5 images; {tmp_path / 'saved'}\n")
    names = [f"{number:06d}.png" for number in range(5)]
    assert saved(tmp_path / "saved") == dict.fromkeys(["originals", "tokens-4", "tokens-8", "tokens-12"], names)
    model, processor = loaded
    files = ["a.jpg", "a.png", "b.webp", "sub/c.JPG", "sub/deeper/d.tif"]
    inputs = processor([open_image(photos / file) for file in files], return_tensors="pt")
    made = {"originals": inputs.pixel_values}
    with torch.no_grad():
        for length in (4, 8, 12):
            made[f"tokens-{length}"] = model.decode(model.encode(**inputs, num_tokens=length)).pixel_values
    for folder, pixel_values in made.items():
        for name, picture in zip(names, processor.postprocess(pixel_values), strict=True):
            difference = pixels(tmp_path / "saved" / folder / name).astype(int) - np.asarray(picture)
            # Rounding at the edge between two levels, and never another picture.
            assert np.abs(difference).max() <= 1, (folder, name)
            assert Image.open(tmp_path / "saved" / folder / name).mode == "RGB"


def test_an_image_that_cannot_be_decoded_is_in_no_folder(evaluate, photos, tmp_path):
    (photos / "b.webp").write_bytes(b"no picture")
    result = evaluate("--num-tokens", "12,4")
    assert result.code == 1
    names = ["000000.png", "000001.png", "000003.png", "000004.png"]
    assert saved(tmp_path / "saved") == dict.fromkeys(["originals", "tokens-4", "tokens-12"], names)


class FewFeatures(nn.Module):
    """Stands in for torch-fidelity's network: random, small, and fed with pixels of 8 bits as that is."""

    def __init__(self, name: str, features_list: list[str]):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", [str(NUM_FEATURES)])
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(NUM_FEATURES, 3, 5, 5, generator=generator))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        assert pixels.dtype == torch.uint8
        features = nn.functional.conv2d((pixels.float() - 128) / 128, self.weight, stride=3)
        return (features.relu().mean(dim=(2, 3)),)


@pytest.fixture
def small_inception(monkeypatch):
    package = ModuleType("torch_fidelity")
    package.feature_extractor_inceptionv3 = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.feature_extractor_inceptionv3.FeatureExtractorInceptionV3 = FewFeatures
    for module in (package, package.feature_extractor_inceptionv3):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(frechet.InceptionV3, "num_features", NUM_FEATURES)
    monkeypatch.setattr(frechet, "MIN_IMAGES", 20)


def distance(folder: Path, other: Path) -> float:
    """The Fréchet distance between two folders of pictures, as torch-fidelity computes it from them."""
    network, statistics = FewFeatures("inception-v3-compat", [str(NUM_FEATURES)]), []
    for files in (sorted(folder.glob("*.png")), sorted(other.glob("*.png"))):
        stacked = torch.stack([torch.from_numpy(pixels(file).copy()).permute(2, 0, 1) for file in files])
        features = network(stacked)[0].double().numpy()
        statistics.append((features.mean(axis=0), np.cov(features, rowvar=False)))
    (mean, covariance), (other_mean, other_covariance) = statistics
    root = np.sqrt(np.linalg.eigvals(covariance.dot(other_covariance)).astype("complex128")).real.sum()
    return np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * root


def test_their_frechet_distance_is_that_of_the_results(evaluate, tmp_path, small_inception):
    (tmp_path / "many").mkdir()
    for number in range(24):
        (tmp_path / "many" / f"{number}.png").write_bytes(png(number))
    result = evaluate("--fid", "--num-tokens", "4,12", data=tmp_path / "many")
    assert result.code == 0, result.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["frechet"]["network"] == "inception"
    values = []
    for length in ("4", "12"):
        found = distance(tmp_path / "saved" / "originals", tmp_path / "saved" / f"tokens-{length}")
        values.append(results["lengths"][length]["rfid"])
        assert found == pytest.approx(values[-1], rel=1e-5)
    assert min(values) > 0.01
    assert abs(values[0] - values[1]) > 1e-3 * min(values)


def refused(evaluate, tmp_path, message: str, *arguments, **keywords) -> None:
    """The command says so before any work, and leaves the folder as it is."""
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = evaluate(*arguments, **keywords)
    assert (result.code, result.out, len(result.errors)) == (2, "", 1), result.err
    assert message in result.errors[0]
    assert "evaluating" not in result.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("file", ["notes.txt", "originals/000000.png", ".hidden"])
def test_a_folder_with_other_files_is_left_alone(evaluate, tmp_path, file):
    (tmp_path / "saved" / file).parent.mkdir(parents=True)
    (tmp_path / "saved" / file).write_text("mine")
    refused(evaluate, tmp_path, f"{tmp_path / 'saved'}, is not empty, it holds {file.split('/')[0]}: choose another")


def test_the_data_are_no_folder_for_them(evaluate, tmp_path, photos):
    refused(evaluate, tmp_path, "lies in the data", folder=photos / "saved")


def test_a_file_is_no_folder_for_them(evaluate, tmp_path):
    (tmp_path / "file").touch()
    refused(evaluate, tmp_path, "file is not a folder", folder=tmp_path / "file")


def test_lengths_that_the_model_does_not_have(evaluate, tmp_path):
    message = "there are no reconstructions of 6 tokens, the model has 4, 8, 12"
    refused(evaluate, tmp_path, message, "--num-tokens", "4,6")
    refused(evaluate, tmp_path, "--num-tokens: it is 'four', it must be a whole number", "--num-tokens", "four")
    assert not (tmp_path / "saved").exists()


def test_lengths_without_a_folder(alit, photos, model, tmp_path):
    arguments = ["--data", photos, "--model", model, "--output", tmp_path / "r.json", "--num-tokens", "4"]
    result = alit("evaluate", *arguments)
    assert result.code == 2
    assert "--save-reconstructions" in result.errors[0]


def test_a_disk_that_is_too_small(evaluate, tmp_path, monkeypatch):
    # Five images of 32 x 32 pixels in four folders, and what a file needs besides.
    for free, code in ((20 * 3 * 32 * 32, 2), (20 * (3 * 32 * 32 + 10_000), 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        result = evaluate()
        assert result.code == code, result.err
        if code:
            assert "saved has 6.14e-05 GB left: save fewer lengths or images" in result.errors[0]
            assert not (tmp_path / "saved").exists()


def test_a_disk_that_fills_up_leaves_no_half_of_them(evaluate, tmp_path, monkeypatch):
    count, save = 0, Image.Image.save

    def fail(picture, path, *arguments, **keywords):
        nonlocal count
        count += "saved" in str(path)
        if count > 6:
            raise OSError(28, "No space left on device")
        save(picture, path, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", fail)
        result = evaluate()
    assert result.code == 1
    assert result.errors == ["alit: error: the evaluation failed: No space left on device"]
    assert count == 7
    assert not (tmp_path / "saved").exists()
    assert not (tmp_path / "results.json").exists()
    assert evaluate().code == 0


def test_after_a_kill_the_same_command_starts_anew(evaluate, tmp_path, monkeypatch):
    class Killed(BaseException):
        """As by SIGKILL: nothing is tidied up."""

    def kill(**_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("alit_hf.evaluation.run.build_results", kill)
        patched.setattr(shutil, "rmtree", lambda *arguments, **keywords: None)
        with pytest.raises(Killed):
            evaluate()
    # Nothing that looks like a whole set of pictures.
    left = sorted(os.listdir(tmp_path / "saved"))
    assert left == [".alit-unfinished"]
    (tmp_path / "saved" / ".alit-unfinished" / "originals" / "000099.png").touch()
    (tmp_path / "saved" / ".alit.lock").touch()
    assert evaluate("--num-tokens", "8").code == 0
    names = [f"{number:06d}.png" for number in range(5)]
    assert saved(tmp_path / "saved") == {"originals": names, "tokens-8": names}
