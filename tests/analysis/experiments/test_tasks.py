"""Criteria against tasks of interest."""

import numpy as np
import pandas as pd
import pytest
import torch
from depth_model import save_tiny_depth_model
from labelled_images import save_images, shaded_pictures
from lively_model import lively_model

from alit_hf import ALITImageProcessor
from alit_hf.analysis.analysis import Context, ImageBatch, RunSettings
from alit_hf.analysis.experiments import tasks
from alit_hf.analysis.experiments.tasks import Tasks
from alit_hf.analysis.image_models import load_depth_model, relative_depth_error
from alit_hf.analysis.run import run_analysis
from alit_hf.data.images import open_images
from alit_hf.evaluation.tally import FrechetDistances


class Colours(torch.nn.Module):
    """Stands for the network of the features: the mean colour of each quarter, and four classes by weights."""

    name = "efficientnet-lite0"
    num_features = 12

    def forward(self, pixel_values):
        return torch.nn.functional.adaptive_avg_pool2d(pixel_values, 2).flatten(1)

    def classify(self, features):
        weights = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        return features @ weights


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.setattr(tasks, "EfficientNetLite", Colours)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    pictures = shaded_pictures(np.linspace(0.1, 0.9, 14), seed=3)
    images = open_images([str(save_images(tmp_path_factory.mktemp("data") / "images.parquet", pictures))])
    return Context(lively_model(), ALITImageProcessor(size=32, crop_size=32), {"data": images}, RunSettings(limit=14))


def planted_table(l1, rank, **columns) -> pd.DataFrame:
    num_images, num_lengths = len(l1), len(l1[0])
    random = np.random.default_rng(0)
    features = [random.normal(size=(1 + num_lengths, 12)).astype(np.float32).tobytes() for _ in range(num_images)]
    return pd.DataFrame({"l1": l1, "rank": rank, "features": features, **columns})


def summarize(context, table, **fields) -> dict:
    analysis = Tasks(**fields)
    analysis._networks["features"] = Colours()
    return analysis.summarize(context, table)


def test_measured_are_error_rank_depth_and_features(context, tmp_path):
    depth_folder = save_tiny_depth_model(tmp_path)
    analysis = Tasks(depth=depth_folder)
    analysis.check(context)
    pixel_values = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        measured = analysis.measure(context, ImageBatch("data", [0, 1], pixel_values, {}))
        network, depth = Colours(), load_depth_model(depth_folder, torch.device("cpu"))
        classes = network.classify(network(pixel_values)).argmax(dim=1).tolist()
        for place, step in enumerate(context.model.rollouts(pixel_values)):
            picture = step.reconstruction
            features = network(picture.clamp(0, 1))
            order = network.classify(features).argsort(dim=1, descending=True).tolist()
            errors = relative_depth_error(depth.depth(picture), depth.depth(pixel_values)).tolist()
            for row in range(2):
                assert measured[row]["l1"][place] == pytest.approx(
                    (picture[row] - pixel_values[row]).abs().mean().item(), rel=1e-5
                )
                assert measured[row]["rank"][place] == 1 + order[row].index(classes[row])
                assert measured[row]["depth_error"][place] == pytest.approx(errors[row], rel=1e-4)
                stored = np.frombuffer(measured[row]["features"], dtype=np.float32).reshape(4, 12)
                np.testing.assert_allclose(stored[1 + place], features[row], rtol=1e-5)
                np.testing.assert_allclose(stored[0], network(pixel_values)[row], rtol=1e-5)


def test_points_are_of_the_smallest_length_that_satisfies(context):
    l1 = [[0.4, 0.3, 0.2]] * 6 + [[0.8, 0.7, 0.1]] * 6
    rank = [[3, 1, 1]] * 6 + [[60, 12, 2]] * 6
    results = summarize(context, planted_table(l1, rank))
    by_x = {point["threshold"]: point for point in results["criteria"]["classification"]}
    # Among the ten likeliest: half with 4 of 12 tokens, half with 12; of the latter none keeps its class.
    assert by_x[10]["tokens_share"] == pytest.approx((4 + 12) / 24, abs=1e-6)
    assert by_x[10]["classification"] == 0
    assert by_x[10]["reconstruction"] == pytest.approx(0.25)
    assert by_x[1]["tokens_share"] == pytest.approx((8 + 12) / 24, abs=1e-6)
    assert by_x[1]["classification"] == 0.5
    assert by_x[20]["tokens_share"] == pytest.approx((4 + 8) / 24, abs=1e-6)
    assert by_x[100]["tokens_share"] == pytest.approx(1 / 3, abs=1e-6)
    fixed = results["criteria"]["fixed"]
    assert [point["tokens_share"] for point in fixed] == pytest.approx([1 / 3, 2 / 3, 1], abs=1e-6)
    assert [point["reconstruction"] for point in fixed] == pytest.approx([0.6, 0.5, 0.15])
    assert results["pareto"]["reconstruction"][0]["tokens_share"] == pytest.approx(1 / 3, abs=1e-6)
    assert results["left_out"] == {
        "depth": "no depth model was given",
        "frechet": "12 images, at least 256 are needed",
    }


def opposed_images(num_images: int) -> tuple[list, list]:
    """Half of the images need tokens for a small L1 only, half for their class only."""
    l1 = [[0.5, 0.3, 0.1], [0.05, 0.04, 0.03]] * (num_images // 2)
    rank = [[1, 1, 1], [30, 8, 1]] * (num_images // 2)
    return l1, rank


def test_each_criterion_is_best_at_its_own_task(context):
    results = summarize(context, planted_table(*opposed_images(20)))
    for task, other in (("reconstruction", "classification"), ("classification", "reconstruction")):
        compared = results["comparison"][task]
        assert compared["best"] == task
        assert list(compared["advantage"]) == [other]
        assert compared["advantage"][other]["low"] > 0
        assert 1 / 3 <= compared["budgets"][0] < compared["budgets"][-1] <= 1
    values = results["comparison"]["classification"]["by_criterion"]
    assert values["classification"] > values["reconstruction"]
    finding = Tasks().finding(results)
    assert "performance peaks where criterion and task agree" in finding
    assert "at reconstruction L1 gains 0." in finding
    assert "at classification top-X gains 0." in finding
    assert "depth left out: no depth model was given" in finding


def test_a_criterion_that_serves_another_task_is_told(context):
    # L1 spends on the images that tokens help to keep their class, top-X on those that never do.
    l1, _ = opposed_images(20)
    rank = [[2, 2, 1], [30, 8, 5]] * 10
    results = summarize(context, planted_table(l1, rank, depth_error=l1))
    assert "depth" in results["criteria"]
    assert results["comparison"]["depth"]["by_criterion"]["depth"] == pytest.approx(
        results["comparison"]["depth"]["by_criterion"]["reconstruction"]
    )
    assert results["comparison"]["depth"]["advantage"]["reconstruction"]["value"] is None
    assert results["comparison"]["depth"]["best"] is None
    assert results["comparison"]["classification"]["advantage"]["reconstruction"]["high"] < 0
    finding = Tasks(depth="some").finding(results)
    assert "does not always peak" in finding
    assert "depth left out" not in finding


def test_a_tie_is_no_loss(context):
    l1, rank = opposed_images(20)
    results = summarize(context, planted_table(l1, (np.array(rank) + 1).tolist()))
    assert results["comparison"]["reconstruction"]["best"] == "reconstruction"
    # No picture keeps its class at any length.
    compared = results["comparison"]["classification"]
    assert set(compared["by_criterion"].values()) == {0}
    assert compared["best"] is None
    assert compared["advantage"]["reconstruction"]["value"] is None
    finding = Tasks().finding(results)
    assert (
        "tokens performance peaks where criterion and task agree (for classification it cannot be told): at" in finding
    )
    assert "at classification top-X gains (not enough data: the values of 20 images hardly differ) over L1" in finding


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (((0.2, 0.1), (0.3, 0.1)), "tokens performance peaks where criterion and task agree: at"),
        (
            ((0.2, 0.1), (0.3, -0.1)),
            "tokens performance seems to peak, but not surely, where criterion and task agree: at",
        ),
        (
            ((0, -0.1), (0.3, 0.1)),
            "performance peaks where criterion and task agree (for reconstruction it cannot be told)",
        ),
        (
            ((0, -0.1), (0.3, -0.1)),
            "performance seems to peak, but not surely, where criterion and task agree (for recon",
        ),
        (
            ((0, -0.1), (-0.3, -0.4)),
            "does not always peak where criterion and task agree (for reconstruction it cannot",
        ),
        (((0.2, 0.1), (-0.3, -0.4)), "tokens performance does not always peak where criterion and task agree: at"),
        (
            ((0, -0.1), (None, None)),
            "tokens it cannot be told whether performance peaks where criterion and task agree: ",
        ),
    ],
)
def test_the_finding_says_for_which_tasks_it_cannot_be_told(advantages, expected):
    tasks_of_interest = ("reconstruction", "classification")
    comparison = {}
    for task, other, (value, low) in zip(tasks_of_interest, tasks_of_interest[::-1], advantages, strict=True):
        why = "not enough data" if value is None else None
        advantage = {"value": value, "low": low, "high": 0.5, "num_images": 20, "not_enough_data": why}
        comparison[task] = {"advantage": {other: advantage}}
    results = {"not_enough_data": None, "left_out": {}, "comparison": comparison}
    assert expected in Tasks().finding(results)


def test_frechet_distance_is_of_the_chosen_pictures(context, monkeypatch):
    monkeypatch.setattr(tasks, "MIN_FRECHET_IMAGES", 20)
    table = planted_table(*opposed_images(20))
    results = summarize(context, table)
    assert results["frechet_network"] == "frechet_efficientnet_lite0"
    features = torch.tensor(np.stack([np.frombuffer(row, dtype=np.float32) for row in table["features"]]))
    features = features.reshape(20, 4, 12)
    # With X of 10 every other image stops after one rollout, the rest after two.
    (point,) = (point for point in results["criteria"]["classification"] if point["threshold"] == 10)
    chosen = torch.where(torch.arange(20).view(-1, 1) % 2 == 0, features[:, 1], features[:, 2])
    distances = FrechetDistances(12, ["chosen"], torch.device("cpu"))
    distances.add("chosen", features[:, 0], chosen)
    assert point["frechet"] == pytest.approx(distances.compute()["chosen"], abs=1e-4)
    assert "frechet" in results["pareto"]


def test_too_few_images_and_criteria_without_a_common_share_are_said(context):
    results = summarize(context, planted_table(*opposed_images(4)))
    assert results["comparison"] == {}
    assert Tasks().finding(results) == "not enough data: 4 images, at least 10 are needed"
    results = summarize(context, planted_table([[0.1, 0.1, 0.1]] * 12, [[2, 1, 1]] * 12))
    assert Tasks().finding(results) == "not enough data: the criteria have no share of tokens in common"


def test_run(context, tmp_path):
    results, figure = run_analysis(Tasks(), context, tmp_path / "out")
    assert results["analysis"] == "tasks"
    assert results["results"]["num_images"] == 14
    assert results["settings"]["classifier"] == "efficientnet-lite0"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["reconstruction", "classification"]
    again, _ = run_analysis(Tasks(), context, tmp_path / "out")
    assert again == results
