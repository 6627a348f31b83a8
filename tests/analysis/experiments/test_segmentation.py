"""`segmentation` compares a model's maps with human segments, and with maps that know nothing of the image."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_run import context_of, run, tiny_photo

from alit_hf.analysis.analysis import ImageBatch
from alit_hf.analysis.attention_maps import AttentionSource, rollout_maps
from alit_hf.analysis.experiments.segmentation import Segmentation
from alit_hf.analysis.label_maps import crop_label_map, read_label_map
from alit_hf.analysis.segment_overlap import SHARES, overlaps, segments_of_label_maps
from alit_hf.evaluation.settings import SettingsError


BASELINES = ("untrained", "discs", "scattered", "center")


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def segments_png(seed: int) -> bytes:
    """Four bands or four columns of different widths on 48 x 40 pixels, in 16 bits."""
    borders = np.sort(np.random.default_rng(seed).choice(np.arange(6, 34), 3, replace=False))
    labels = 1 + np.searchsorted(borders, np.arange(48), side="right")
    labels = np.tile(labels, (40, 1)) if seed % 2 else np.tile(labels[:40, None], (1, 48))
    return png(Image.fromarray(labels.astype(np.uint16)))


def write_rows(path, segments: list) -> list[str]:
    photos = [{"bytes": png(tiny_photo(seed)), "path": None} for seed in range(len(segments))]
    pd.DataFrame({"image": photos, "segments": segments}).to_parquet(path)
    return [str(path)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    segments = [[segments_png(seed), segments_png(seed + 1)] for seed in range(12)]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.parquet", segments)


@pytest.fixture(scope="module")
def context(sources):
    return context_of(sources, num_decoder_layers=2)


@pytest.fixture(scope="module")
def outcome(context, tmp_path_factory):
    return run(Segmentation(), context, tmp_path_factory.mktemp("segmentation"))


def value(results: dict, name: str, length: str, threshold: str) -> float:
    return results["overlap"][name][length][threshold]["value"]


def test_the_models_overlap_is_that_of_its_maps_with_the_cropped_segments(outcome, context):
    images, source = context.data["data"], AttentionSource("decoder", 1)
    expected = []
    for index, pngs in enumerate(images.column("segments")):
        pixel_values = context.processor([images.read(index)], return_tensors="pt").pixel_values
        label_maps = [crop_label_map(read_label_map(file, (48, 40)), context.processor) for file in pngs]
        segments = segments_of_label_maps(label_maps, (8, 8))
        maps = rollout_maps(context.model, pixel_values, [source])[source]
        expected.append([overlaps(after_rollout[0], segments).tolist() for after_rollout in maps])
    expected = np.array(expected)
    for rollout, length in enumerate(("3", "6", "9", "12")):
        for threshold, share in (("top_40", 0.4), ("top_60", 0.6), ("top_80", 0.8)):
            at_share = expected[:, rollout, SHARES.index(share)].mean()
            assert value(outcome[0]["results"], "model", length, threshold) == pytest.approx(at_share, abs=1e-5)
        best = expected[:, rollout].max(axis=1).mean()
        assert value(outcome[0]["results"], "model", length, "best") == pytest.approx(best, abs=1e-5)


def test_baselines_have_as_many_maps_as_the_model(outcome):
    """One disc in the centre at every length; of the others there are more with every rollout, and the best counts."""
    results = outcome[0]["results"]
    for name in ("discs", "scattered", "untrained"):
        assert value(results, name, "12", "best") > value(results, name, "3", "best") + 0.01
    assert value(results, "center", "12", "best") == value(results, "center", "3", "best")
    assert len({value(results, name, "3", "top_40") for name in ("model", *BASELINES)}) == 5


def test_advantages_are_differences_of_the_same_images(outcome):
    results = outcome[0]["results"]
    for name in BASELINES:
        advantage = results["advantage"][name]["6"]["best"]
        difference = value(results, "model", "6", "best") - value(results, name, "6", "best")
        assert advantage["value"] == pytest.approx(difference, abs=2e-6)
        assert advantage["low"] < advantage["value"] < advantage["high"]


def test_another_seed_draws_other_baselines_for_the_same_model(outcome, sources, tmp_path):
    again, other = (
        run(Segmentation(), context_of(sources, seed=seed, num_decoder_layers=2), tmp_path / str(seed))[0]["results"]
        for seed in (0, 1)
    )
    assert again == outcome[0]["results"]
    for name in ("untrained", "discs", "scattered"):
        assert value(other, name, "6", "best") != value(again, name, "6", "best")
    for name in ("model", "center"):
        assert value(other, name, "6", "best") == value(again, name, "6", "best")


def test_draws_do_not_depend_on_batch_mates(context):
    """As resuming, a limit and several processes need it."""
    images, analysis = context.data["data"], Segmentation()
    analysis.check(context)
    pixel_values = context.processor([images.read(index) for index in range(3)], return_tensors="pt").pixel_values
    columns = images.column("segments")[:3]

    def measure(rows: list[int]) -> list[dict]:
        batch = ImageBatch("data", rows, pixel_values[rows], {"segments": [columns[row] for row in rows]})
        return analysis.measure(context, batch)

    together, alone = measure([0, 1, 2]), measure([2])
    for name in BASELINES:
        assert together[2][f"overlap_{name}"] == pytest.approx(alone[0][f"overlap_{name}"], abs=1e-5)


def test_draws_of_another_image_and_seed_are_others(context):
    """Also where both add up to the same, and for seeds of any size."""
    images = context.data["data"]
    pixel_values = context.processor([images.read(0)], return_tensors="pt").pixel_values

    def measure(seed: int, index: int) -> dict:
        seeded = dataclasses.replace(context, settings=dataclasses.replace(context.settings, seed=seed))
        analysis = Segmentation()
        analysis.check(seeded)
        (measured,) = analysis.measure(
            seeded, ImageBatch("data", [index], pixel_values, {"segments": images.column("segments")[:1]})
        )
        return measured

    draws = [measure(*of_image) for of_image in ((0, 5), (5, 0), (2**70, 5))]
    for name in ("discs", "scattered"):
        assert len({tuple(of_image[f"overlap_{name}"]) for of_image in draws}) == 3
    assert measure(0, 5) == draws[0]


def table(**means: float) -> pd.DataFrame:
    """Twelve images whose overlap is about the same at all lengths and thresholds."""
    noise = np.random.default_rng(0).normal(0, 0.005, (len(means), 12, 4 * len(SHARES)))
    return pd.DataFrame(
        {f"overlap_{name}": list(mean + of_map) for (name, mean), of_map in zip(means.items(), noise, strict=True)}
    )


def test_the_finding_says_which_baselines_are_beaten(context):
    analysis = Segmentation()
    rows = table(model=0.4, untrained=0.3, discs=0.5, scattered=0.2, center=0.4)
    finding = analysis.finding(analysis.summarize(context, rows))
    beaten, unbeaten = finding.split("; not better than ")
    assert "a mIoU of 0.4" in beaten
    assert "better than a model with random weights (by 0." in beaten
    assert "), random positions (by 0." in beaten
    assert unbeaten.startswith("discs at random places (by -0.")
    assert "), a disc in the centre (by " in unbeaten


def test_baselines_that_differ_from_the_model_by_the_same_everywhere_are_not_compared(context):
    analysis = Segmentation()
    rows = table(model=0.4, untrained=0.3, discs=0.5, scattered=0.2, center=0.4)
    rows["overlap_center"] = [values + 0.1 for values in rows["overlap_model"]]
    finding = analysis.finding(analysis.summarize(context, rows))
    assert finding.endswith(
        "; not to be compared with a disc in the centre (not enough data: the values of 12 images hardly differ)"
    )
    assert "; not better than discs at random places (by -0." in finding


def test_few_images_are_not_enough(context):
    analysis = Segmentation()
    results = analysis.summarize(context, table(model=0.4, **dict.fromkeys(BASELINES, 0.1)).head(2))
    assert analysis.finding(results) == "not enough data: 2 images, at least 10 are needed"
    assert results["advantage"]["discs"]["12"]["best"]["value"] is None


def test_the_figure_has_a_line_for_the_model_and_each_baseline(outcome):
    by_length, by_share = outcome[1].axes
    assert [len(axes.lines) for axes in (by_length, by_share)] == [5, 5]
    shown = by_length.lines[0].get_ydata().tolist()
    lengths = ("3", "6", "9", "12")
    assert shown == [value(outcome[0]["results"], "model", length, "best") for length in lengths]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "row 1: `segments` is NoneType, it must be a list of PNG files' bytes"),
        ([b"no picture"], "row 1: a label map cannot be decoded"),
        ([png(Image.new("I;16", (48, 41), 1))], "row 1: a label map has 48 x 41 pixels, its image 48 x 40"),
        ([], "row 1: the label maps have no segment as large as a grid position"),
        ([png(Image.new("I;16", (48, 40), 0))], "row 1: the label maps have no segment"),
    ],
    ids=["missing", "undecodable", "size", "none", "unlabelled"],
)
def test_segments_that_are_none_are_told(tmp_path, segments, message):
    sources = write_rows(tmp_path / "rows.parquet", [[segments_png(0)], segments])
    with pytest.raises(ValueError, match=message):
        run(Segmentation(), context_of(sources), tmp_path / "results")


def test_data_without_segments_are_refused_before_any_work(tmp_path):
    tiny_photo(0).save(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="segments"):
        run(Segmentation(), context_of([str(tmp_path / "a.png")]), tmp_path / "results")
    assert not (tmp_path / "results").exists()
