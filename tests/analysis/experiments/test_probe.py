"""What linear probes of frozen features are given, and what is said of them."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from labelled_images import save_images, shaded_images, shaded_pictures
from lively_model import lively_model
from PIL import Image

from alit_hf import ALITImageProcessor
from alit_hf.analysis import linear_probe
from alit_hf.analysis.analysis import Context, RunSettings
from alit_hf.analysis.experiments.probe import Probe, mean_features
from alit_hf.analysis.run import run_analysis
from alit_hf.cli import main
from alit_hf.data.images import open_images
from alit_hf.evaluation.settings import SettingsError


@pytest.fixture(scope="module")
def model():
    return lively_model()


@pytest.fixture(scope="module")
def processor():
    return ALITImageProcessor(size=32, crop_size=32)


@pytest.fixture(autouse=True)
def few_weight_decays(monkeypatch):
    monkeypatch.setattr(linear_probe, "WEIGHT_DECAYS", (1e-3, 1e-1))


def break_images(path, rows):
    """Cuts the pictures of some rows short."""
    table = pq.read_table(path)
    cells = table["image"].to_pylist()
    for row in rows:
        cells[row]["bytes"] = cells[row]["bytes"][:40]
    pq.write_table(table.set_column(table.column_names.index("image"), "image", [cells]), path)


def test_features_are_means_without_the_class_token(model):
    pixel_values = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        features = mean_features(model, pixel_values)
        for place, length in enumerate((4, 8, 12)):
            tokens = model(pixel_values, num_tokens=length).last_hidden_state
            means = tokens[:, 1:].sum(dim=1) / (64 + length)
            torch.testing.assert_close(features["tokens_and_latents"][:, place], means)
            # Of the last rollout, whose tokens the loop ends with.
            latents = model(pixel_values).last_hidden_state[:, 65 : 65 + length].mean(dim=1)
            torch.testing.assert_close(features["latents"][:, place], latents)
        base = model.base_tokenizer.encode(pixel_values).flatten(2).mean(dim=2)
        torch.testing.assert_close(features["base_latents"], base)


def test_no_decoder_runs(model, monkeypatch):
    monkeypatch.setattr(model.decoder, "forward", lambda *args, **kwargs: pytest.fail("the decoder ran"))
    with torch.inference_mode():
        mean_features(model, torch.rand(1, 3, 32, 32))


def test_run(model, processor, tmp_path):
    brightness = {"dark": 0.2, "bright": 0.8, "rare": 0.5, None: 0.5}
    labels = ["dark"] * 24 + ["bright"] * 16 + ["rare"] * 3 + [None] * 5
    images = shaded_images(tmp_path / "images.parquet", labels, brightness)
    context = Context(model, processor, {"data": images}, RunSettings(limit=100))
    results, figure = run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    assert results["data"]["data"]["num_images"] == 43
    numbers = results["results"]
    assert numbers["classes"] == {"bright": {"train": 12, "test": 4}, "dark": {"train": 18, "test": 6}}
    assert (numbers["left_out"], numbers["repeated"]) == ({"rare": 3}, 0)
    assert (numbers["chance"], numbers["majority"]) == (0.5, 0.6)
    for kind in ("tokens_and_latents", "latents"):
        assert list(numbers[kind]) == ["4", "8", "12"]
    for probe in numbers["tokens_and_latents"].values():
        assert probe["accuracy"]["num_images"] == 10
        assert probe["accuracy"]["value"] == probe["balanced_accuracy"] == 1
        assert probe["weight_decay"] in (1e-3, 1e-1)
    # 3 of 4 and 5 of 6 right: the base tokenizer is random and tells brightness less well.
    base = numbers["base_latents"]
    assert (base["accuracy"]["value"], base["balanced_accuracy"]) == (0.8, 0.791667)
    assert numbers["differences"]["last_minus_first_rollout"]["value"] == 0
    for kind, difference in (("tokens_and_latents", "last_rollout"), ("latents", "all_latents")):
        trained, untrained = numbers[kind]["12"]["accuracy"], numbers["untrained"][kind]["accuracy"]
        expected = pytest.approx(trained["value"] - untrained["value"], abs=1e-6)
        assert numbers["differences"][f"{difference}_minus_untrained"]["value"] == expected
        assert untrained["num_images"] == 10
    assert "of 2 classes is right for 1.000" in results["finding"]
    assert "chance 0.500, the most frequent class 0.600" in results["finding"]
    assert "repeat" not in results["finding"]
    lines = {line.get_label() for line in figure.axes[0].lines}
    assert {"chance", "most frequent class", "base tokenizer's latents"} <= lines


def test_labels_that_pictures_do_not_tell_are_not_found(model, processor, tmp_path):
    labels = ["a", "b"] * 20
    images = shaded_images(tmp_path / "images.parquet", labels, {"a": 0.5, "b": 0.5})
    context = Context(model, processor, {"data": images}, RunSettings(limit=40))
    results, _ = run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    accuracies = [probe["accuracy"]["value"] for probe in results["results"]["tokens_and_latents"].values()]
    assert max(accuracies) < 0.85


def test_test_data_are_tested_on_and_nothing_else(model, processor, tmp_path):
    brightness = {0: 0.2, 1: 0.8, 2: 0.5}
    images = shaded_images(tmp_path / "train.parquet", [0, 1] * 10, brightness)
    # Upside down, so that a probe that saw them would be right; and a class that training lacks.
    pictures = shaded_pictures([0.8, 0.2] * 6 + [0.5])
    test_images = open_images([str(save_images(tmp_path / "test.parquet", pictures, {"label": [0, 1] * 6 + [2]}))])
    context = Context(model, processor, {"data": images, "test_data": test_images}, RunSettings(limit=20))
    results, _ = run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    numbers = results["results"]
    assert numbers["classes"] == {"0": {"train": 10, "test": 6}, "1": {"train": 10, "test": 6}}
    assert numbers["left_out"] == {"2": 1}
    assert numbers["tokens_and_latents"]["12"]["accuracy"]["value"] == 0


def test_a_picture_that_occurs_twice_is_not_tested_on_after_training(model, processor, tmp_path):
    # Nothing but having seen the same picture tells its class.
    labels = np.random.default_rng(0).permutation(["a", "b"] * 20).tolist()
    pictures = shaded_pictures([0.5] * 40)
    # Equal for the model though not as files, and in other batches; one with another class each time.
    larger = [picture.resize((64, 64), Image.Resampling.NEAREST) for picture in pictures]
    smaller = processor(larger, return_tensors="pt").pixel_values
    once = [Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).numpy()) for pixels in smaller]
    columns = {"label": [*labels, *labels[:-1], "a" if labels[-1] == "b" else "b"]}
    twice = open_images([str(save_images(tmp_path / "twice.parquet", once + larger, columns))])
    alone = open_images([str(save_images(tmp_path / "alone.parquet", once, {"label": labels}))])
    results = {}
    for name, images in {"twice": twice, "alone": alone}.items():
        context = Context(model, processor, {"data": images}, RunSettings(limit=100, batch_size=7))
        results[name], _ = run_analysis(Probe(label_column="label"), context, tmp_path / name)
    assert results["twice"]["results"].pop("repeated") == 40
    assert results["alone"]["results"].pop("repeated") == 0
    assert results["twice"]["results"]["classes"]["a"] == {"train": 15, "test": 5}
    assert results["twice"]["results"] == results["alone"]["results"]
    assert results["twice"]["finding"].endswith("; 40 images equal to others left out")


def test_images_of_training_are_not_tested_on(model, processor, tmp_path):
    pictures = shaded_pictures([0.5] * 20)
    images = open_images([str(save_images(tmp_path / "train.parquet", pictures, {"label": ["a", "b"] * 10}))])
    others = shaded_pictures([0.5] * 12, seed=1)
    # Of another class, too: a probe that has seen them would be wrong.
    path = save_images(tmp_path / "test.parquet", pictures + others, {"label": ["b", "a"] * 16})
    context = Context(model, processor, {"data": images, "test_data": open_images([str(path)])}, RunSettings(limit=40))
    results, _ = run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    numbers = results["results"]
    assert numbers["classes"] == {"a": {"train": 10, "test": 6}, "b": {"train": 10, "test": 6}}
    assert numbers["repeated"] == 20


def test_the_same_data_to_train_and_to_test_on_give_no_number(model, processor, tmp_path):
    images = shaded_images(tmp_path / "images.parquet", ["a", "b"] * 20, {"a": 0.5, "b": 0.5})
    context = Context(model, processor, {"data": images, "test_data": images}, RunSettings(limit=40))
    with pytest.raises(
        ValueError, match="of 0 images of `test_data` with a `label` that can be decoded and repeat no other, none"
    ):
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")


def test_results_of_before_pictures_were_told_apart_are_not_taken_up(model, processor, tmp_path, monkeypatch):
    images = shaded_images(tmp_path / "images.parquet", ["a", "b"] * 10, {"a": 0.2, "b": 0.8})
    context = Context(model, processor, {"data": images}, RunSettings(limit=20))
    with monkeypatch.context() as before:
        before.setattr(Probe, "measure_settings", lambda self, context: {})
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    with pytest.raises(SettingsError, match="holds results of another run"):
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            range(60, 62),
            "of 67 images with a `label` that can be decoded and repeat no other, 1 classes have 8 or more",
        ),
        (range(68), "of 1 images with a `label` that can be decoded and repeat no other, 0 classes have 8 or more"),
    ],
)
def test_classes_are_counted_again_without_images_that_are_broken(model, processor, tmp_path, broken, message):
    path = save_images(tmp_path / "images.parquet", shaded_pictures([0.5] * 69), {"label": ["a"] * 60 + ["b"] * 9})
    break_images(path, broken)
    context = Context(model, processor, {"data": open_images([str(path)])}, RunSettings(limit=100))
    with pytest.raises(ValueError, match=message):
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")


def test_test_images_are_counted_again_without_those_that_are_broken(model, processor, tmp_path):
    images = shaded_images(tmp_path / "train.parquet", ["a", "b"] * 10, {"a": 0.2, "b": 0.8})
    labels = ["a"] * 12 + ["c"]
    path = save_images(tmp_path / "test.parquet", shaded_pictures([0.2] * 13, seed=1), {"label": labels})
    break_images(path, range(12))
    context = Context(model, processor, {"data": images, "test_data": open_images([str(path)])}, RunSettings(limit=20))
    with pytest.raises(ValueError, match="of 1 images of `test_data` with a `label` that can be decoded"):
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")


def test_few_test_images_give_no_number(model, processor, tmp_path):
    images = shaded_images(tmp_path / "train.parquet", ["a", "b"] * 10, {"a": 0.2, "b": 0.8})
    pictures = save_images(tmp_path / "test.parquet", shaded_pictures([0.2] * 9, seed=1), {"label": ["a"] * 9})
    context = Context(
        model, processor, {"data": images, "test_data": open_images([str(pictures)])}, RunSettings(limit=20)
    )
    results, figure = run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    numbers = results["results"]
    probes = [numbers["base_latents"], *numbers["tokens_and_latents"].values(), *numbers["latents"].values()]
    assert [(probe["accuracy"]["value"], probe["balanced_accuracy"]) for probe in probes] == [(None, None)] * 7
    assert (numbers["majority"], numbers["chance"]) == (None, 0.5)
    reason = r"\(not enough data: 9 images, at least 10 are needed\)"
    assert re.search(f"chance 0.500, the most frequent class {reason}$", results["finding"])
    labels = {line.get_label() for line in figure.axes[0].lines}
    assert "chance" in labels
    assert not labels & {"most frequent class", "base tokenizer's latents"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 12, "of 12 images with a `label`, 1 classes have 8 or more"),
        (["a"] * 7 + ["b"] * 7, "0 classes have 8 or more"),
        ([None] * 12, "of 0 images with a `label`"),
        ([0.5, 1.5] * 10, "the column `label` of `data` has 0.5, it must have names or integers"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_wrong_use(model, processor, tmp_path, labels, message):
    path = save_images(tmp_path / "images.parquet", shaded_pictures([0.5] * len(labels)), {"label": labels})
    context = Context(model, processor, {"data": open_images([str(path)])}, RunSettings(limit=100))
    with pytest.raises(SettingsError, match=message):
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "test_labels", "message"),
    [
        (
            ["a", "b"],
            ["c", "d"],
            "of 8 images of `test_data` with a `label`, none is of a class that `data` has 8 or more of: a, b",
        ),
        (["a", "b"], [None, None], "of 0 images of `test_data` with a `label`, none is of a class"),
        ([0, 1], ["a", "b"], "the column `label` of `test_data` has 'a', but 0 comes before it: all labels must be"),
        (["a", "b"], [[0], [1]], r"the column `label` of `test_data` has \[0\], it must have names or integers"),
    ],
)
def test_test_data_that_do_not_fit_are_wrong_use(model, processor, tmp_path, labels, test_labels, message):
    pictures = shaded_pictures([0.2, 0.8] * 10)
    images = open_images([str(save_images(tmp_path / "train.parquet", pictures, {"label": labels * 10}))])
    path = save_images(tmp_path / "test.parquet", shaded_pictures([0.5] * 8, seed=1), {"label": test_labels * 4})
    context = Context(model, processor, {"data": images, "test_data": open_images([str(path)])}, RunSettings(limit=20))
    with pytest.raises(SettingsError, match=message):
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_one_rollout_is_wrong_use(processor, tmp_path):
    images = shaded_images(tmp_path / "images.parquet", ["a", "b"] * 10, {"a": 0.2, "b": 0.8})
    context = Context(lively_model(max_rollouts=1), processor, {"data": images}, RunSettings(limit=20))
    with pytest.raises(SettingsError, match="the model has one rollout"):
        run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_label_column_named_like_a_stored_one_is_wrong_use(model, processor, tmp_path):
    images = shaded_images(tmp_path / "images.parquet", ["a", "b"] * 10, {"a": 0.2, "b": 0.8})
    context = Context(model, processor, {"data": images}, RunSettings(limit=20))
    run_analysis(Probe(label_column="label"), context, tmp_path / "out")
    # All that the table has: what was stored, and the image's name.
    stored = {*pq.read_schema(tmp_path / "out" / "images.parquet").names, "image"}
    assert stored > {"data", "index", "digest", "latents"}
    for name in stored:
        with pytest.raises(SettingsError, match=f"the label column is `{name}`, it must not be one of data, index"):
            Probe(label_column=name).check(context)


@pytest.mark.parametrize("name", ["data", "index", "digest", "base_latents"])
def test_such_a_label_column_is_refused_before_any_work(model, processor, tmp_path, name):
    path = save_images(tmp_path / "images.parquet", shaded_pictures([0.2, 0.8] * 10), {name: ["a", "b"] * 10})
    context = Context(model, processor, {"data": open_images([str(path)])}, RunSettings(limit=20))
    with pytest.raises(SettingsError, match=f"the label column is `{name}`"):
        run_analysis(Probe(label_column=name), context, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_smaller_limit_has_images_of_a_larger_one_with_a_label(tmp_path):
    images = shaded_images(tmp_path / "images.parquet", ["a", None, "b", "a"] * 5, {"a": 0.2, "b": 0.8, None: 0.5})
    probe = Probe(label_column="label")
    few, many = (probe.choose(images, RunSettings(limit=limit)) for limit in (6, 12))
    assert len(few) == 6
    assert set(few) < set(many)
    assert not any(index % 4 == 1 for index in many)


def test_command_line(model, processor, tmp_path, capfd):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    pictures = shaded_pictures([0.2, 0.8] * 20)
    data, test_data = (
        save_images(tmp_path / f"{name}.parquet", of_name, {"kind": ["dark", "bright"] * 10})
        for name, of_name in {"train": pictures[:20], "test": pictures[20:]}.items()
    )
    arguments = ["analyze", "probe", "--data", data, "--model", tmp_path / "model", "--output", tmp_path / "out"]
    assert main([*map(str, arguments), "--label-column", "kind", "--test-data", str(test_data)]) == 0
    assert "probe: a linear probe of 2 classes is right for 1.000" in capfd.readouterr().out
    assert (tmp_path / "out" / "figure.png").exists()
    same = [*map(str, arguments), "--label-column", "kind", "--test-data", str(data)]
    same[same.index("--output") + 1] = str(tmp_path / "same")
    assert main(same) == 1
    assert "the analysis failed: not enough data: of 0 images of `test_data`" in capfd.readouterr().err
    assert not (tmp_path / "same" / "results.json").exists()
    assert main([*map(str, arguments)]) == 2
    assert "lacks the columns `label`; it has kind" in capfd.readouterr().err
