"""Weak and strong classifiers on reconstructions of every length."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from labelled_images import shaded_images
from lively_model import lively_model

from alit_hf import ALITImageProcessor
from alit_hf.analysis.analysis import Context, ImageBatch, RunSettings
from alit_hf.analysis.experiments import strength
from alit_hf.analysis.experiments.strength import Strength
from alit_hf.analysis.run import run_analysis
from alit_hf.evaluation.settings import SettingsError


class Shades:
    """Classifies by brightness, the more finely the stronger it is."""

    def __init__(self, name: str, device: torch.device):
        self.name = name
        self.count = int(name)
        self.fingerprint = "0"
        self.class_names = [f"shade {number}" for number in range(self.count)]

    def logits(self, pixel_values):
        shade = (pixel_values.clamp(0, 0.999).mean(dim=(1, 2, 3)) * self.count).long()
        return torch.nn.functional.one_hot(shade, self.count).float()


@pytest.fixture(autouse=True)
def shades(monkeypatch):
    monkeypatch.setattr(strength, "load_classifier", Shades)


@pytest.fixture
def context(tmp_path):
    labels = ["shade 0", "shade 1", "unknown", None] * 6
    images = shaded_images(
        tmp_path / "images.parquet", labels, {"shade 0": 0.2, "shade 1": 0.8, "unknown": 0.5, None: 0.6}
    )
    processor = ALITImageProcessor(size=32, crop_size=32)
    return Context(lively_model(), processor, {"data": images}, RunSettings(limit=24))


def test_classes_of_another_classifier_of_the_same_name_are_refused(context, tmp_path, monkeypatch):
    run_analysis(Strength(models=("2", "50")), context, tmp_path / "out")

    class Other(Shades):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.fingerprint = "1"

    monkeypatch.setattr(strength, "load_classifier", Other)
    with pytest.raises(SettingsError, match=r"'2': '0'.* instead of .*'2': '1'"):
        run_analysis(Strength(models=("2", "50")), context, tmp_path / "out")


def test_classes_are_those_of_the_original_and_of_every_reconstruction(context):
    analysis = Strength(models=("2", "50"))
    analysis.check(context)
    pixel_values = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        measured = analysis.measure(context, ImageBatch("data", [0, 1, 2], pixel_values, {}))
        pictures = [pixel_values, *(step.reconstruction for step in context.model.rollouts(pixel_values))]
        for name in ("2", "50"):
            expected = torch.stack([Shades(name, None).logits(picture).argmax(dim=1) for picture in pictures], dim=1)
            assert [row[f"classes by {name}"] for row in measured] == expected.tolist()


def test_agreement_accuracy_and_drop(context):
    # Of 24 images a third has a class that "2" knows by its label.
    labels = ["shade 0"] * 12 + ["elsewhere"] * 12
    weak = np.array([[0, 1, 0, 0], [1, 1, 1, 0]] * 12)
    strong = np.array([[4, 4, 4, 4], [0, 3, 0, 0]] * 12)
    table = pd.DataFrame({"label": labels, "classes by 2": weak.tolist(), "classes by 5": strong.tolist()})
    analysis = Strength(models=("2", "5"), label_column="label")
    analysis.check(context)
    results = analysis.summarize(context, table)
    values = {
        model: {length: numbers["value"] for length, numbers in results["models"][model]["agreement"].items()}
        for model in ("2", "5")
    }
    assert values == {"2": {"4": 0.5, "8": 1, "12": 0.5}, "5": {"4": 0.5, "8": 1, "12": 1}}
    # All alike do not make it certain.
    assert results["models"]["2"]["agreement"]["8"]["low"] < 0.9
    difference = {length: numbers["value"] for length, numbers in results["strong_minus_weak"].items()}
    assert difference == {"4": 0, "8": 0, "12": 0.5}
    no_difference = results["strong_minus_weak"]["8"]
    assert no_difference["low"] < -0.05 < 0.05 < no_difference["high"]

    accuracy = results["models"]["2"]["accuracy"]
    assert accuracy["original"]["num_images"] == 12
    assert [accuracy[key]["value"] for key in ("original", "4", "8", "12")] == [0.5, 0, 0.5, 1]
    drop = results["models"]["2"]["drop"]
    assert [drop[key]["value"] for key in ("4", "8", "12")] == [0.5, 0, -0.5]
    assert drop["8"]["low"] < 0 < drop["8"]["high"]


def test_run(context, tmp_path):
    analysis = Strength(models=("2", "50"), label_column="label")
    results, figure = run_analysis(analysis, context, tmp_path / "out")
    numbers = results["results"]["models"]
    assert numbers["2"]["accuracy"]["original"]["value"] == 1
    # Nothing of the two labels is known to it but its darkest shades.
    assert numbers["50"]["accuracy"]["original"]["value"] == 0
    assert [axes.get_ylabel() for axes in figure.axes] == ["share that keeps the original's class", "top-1 accuracy"]
    assert "keep the original's class for 2 in" in results["finding"]
    assert "accuracy drops with 12 tokens by: 2" in results["finding"]


@pytest.mark.parametrize("label", [3, None, math.nan, "elsewhere"])
def test_labels_that_no_model_knows_are_said(context, label):
    table = pd.DataFrame({f"classes by {name}": [[0, 1, 0, 0]] * 12 for name in ("2", "5")} | {"label": [label] * 12})
    analysis = Strength(models=("2", "5"), label_column="label")
    analysis.check(context)
    results = analysis.summarize(context, table)
    problem = "not enough data: 0 images, at least 10 are needed"
    assert results["models"]["2"]["accuracy"]["original"]["not_enough_data"] == problem
    assert results["models"]["5"]["drop"]["12"]["not_enough_data"] == problem
    assert f"accuracy drops with 12 tokens by: 2 ({problem}), 5 ({problem})" in analysis.finding(results)
    analysis.draw(context, table, results).canvas.draw()


def test_models_may_have_any_name(context, monkeypatch):
    monkeypatch.setattr(strength, "load_classifier", lambda name, device: Shades("2", device))
    analysis = Strength(models=("$a_{$", "b"))
    table = pd.DataFrame({f"classes by {name}": [[0, 1, 0, 0]] * 12 for name in analysis.models})
    analysis.draw(context, table, analysis.summarize(context, table)).savefig(io.BytesIO())


def test_folders_of_this_machine_are_not_in_the_results(context, tmp_path, monkeypatch):
    monkeypatch.setattr(strength, "load_classifier", lambda name, device: Shades(Path(name).name, device))
    folders = [str(tmp_path / name) for name in ("2", "50")]
    results, _ = run_analysis(Strength(models=tuple(folders)), context, tmp_path / "out")
    assert list(results["results"]["models"]) == results["settings"]["models"] == ["2", "50"]
    assert str(tmp_path) not in json.dumps(results)
    assert str(tmp_path).encode() not in (tmp_path / "out" / "images.parquet").read_bytes()


def test_few_images_and_one_model_are_said(context, tmp_path):
    context = Context(context.model, context.processor, context.data, RunSettings(limit=2))
    results, _ = run_analysis(Strength(models=("2",)), context, tmp_path / "out")
    assert "(not enough data: 2 images, at least 10 are needed)" in results["finding"]
    assert results["finding"].endswith("one model alone says nothing of strength")
    assert results["results"]["strong_minus_weak"] is None


def test_wrong_use(context):
    for models in (("2", "2"), ("/one/2", "/two/2")):
        with pytest.raises(SettingsError, match=f"the models are {', '.join(models)}, no name may occur twice"):
            Strength(models=models).check(context)


def test_nan_is_an_error(context, monkeypatch):
    monkeypatch.setattr(Shades, "logits", lambda self, pixels: torch.full((len(pixels), 2), math.nan))
    analysis = Strength(models=("2",))
    analysis.check(context)
    with pytest.raises(ValueError, match="the logits of 2 have NaN"):
        analysis.measure(context, ImageBatch("data", [0], torch.rand(1, 3, 32, 32), {}))
