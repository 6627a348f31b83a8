"""Which of two sets is the unfamiliar one shows in every sign."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from small_run import context_of, run, tiny_photos

from alit_hf.analysis.experiments.familiarity import Familiarity
from alit_hf.evaluation.settings import SettingsError


@pytest.fixture
def context(tmp_path):
    (tmp_path / "photos").mkdir()
    return context_of(tiny_photos(tmp_path / "photos", 12))


def table_of(familiar, unfamiliar) -> pd.DataFrame:
    rows = [("data", list(errors)) for errors in familiar] + [("unfamiliar_data", list(e)) for e in unfamiliar]
    return pd.DataFrame(rows, columns=["data", "l1"])


def errors_around(first: float, last: float, count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(-0.01, 0.01, (count, 4))
    return np.linspace(first, last, 4) + noise


def test_unfamiliar_images_with_larger_errors_and_gaps(context):
    table = table_of(errors_around(0.2, 0.08, 20, 0), errors_around(0.4, 0.12, 15, 1))
    analysis = Familiarity(threshold=0.16)
    results = analysis.summarize(context, table)
    familiar, unfamiliar = results["sets"]["data"], results["sets"]["unfamiliar_data"]
    assert (familiar["num_images"], unfamiliar["num_images"]) == (20, 15)
    assert familiar["gap"]["value"] == pytest.approx(0.12, abs=5e-3)
    assert unfamiliar["gap"]["value"] == pytest.approx(0.28, abs=5e-3)
    assert results["gap_difference"]["value"] == pytest.approx(0.16, abs=5e-3)
    assert familiar["mean_tokens"] < unfamiliar["mean_tokens"] == 12
    tokens = results["token_difference"]
    assert tokens["value"] == pytest.approx(12 - familiar["mean_tokens"])
    assert tokens["low"] < tokens["value"] < tokens["high"]
    aurocs = results["auroc"]
    assert [aurocs[name]["value"] for name in ("chosen_length", "gap")] == [1, 1]
    assert [estimated["value"] for estimated in aurocs["l1"].values()] == [1] * 4
    finding = analysis.finding(results)
    assert "15 unfamiliar images need 12.0 tokens in the mean and 20 others" in finding
    assert "between 3 and 12 tokens is 0.280 [0.277, 0.283] for unfamiliar images and 0.121" in finding
    swapped = analysis.summarize(context, table_of(errors_around(0.4, 0.12, 15, 1), errors_around(0.2, 0.08, 20, 0)))
    assert swapped["auroc"]["l1"]["3"]["value"] == 0
    assert swapped["gap_difference"]["value"] == pytest.approx(-0.16, abs=5e-3)
    panels = analysis.draw(context, table, results).axes
    assert panels[0].lines[1].get_ydata() == pytest.approx(np.linspace(0.4, 0.12, 4), abs=0.01)
    assert sum(bar.get_height() for bar in panels[2].containers[0]) == pytest.approx(1)


def test_lengths_that_are_all_the_same_tell_nothing(context):
    table = table_of(errors_around(0.2, 0.1, 20, 0), errors_around(0.4, 0.1, 20, 1))
    results = Familiarity(threshold=0.01).summarize(context, table)
    assert "hardly differ" in results["auroc"]["chosen_length"]["not_enough_data"]
    assert results["auroc"]["l1"]["3"]["value"] == 1


def test_two_images_are_not_enough(context):
    table = table_of(errors_around(0.2, 0.1, 20, 0), errors_around(0.4, 0.1, 2, 1))
    analysis = Familiarity()
    results = analysis.summarize(context, table)
    assert results["auroc"]["gap"]["value"] is None
    assert "2 unfamiliar images need" in analysis.finding(results)
    assert "(not enough data: 2 images, at least 10 are needed)" in analysis.finding(results)
    analysis.draw(context, table, results).canvas.draw()


def test_the_same_images_cannot_be_told_apart(context, tmp_path):
    images = context.data["data"]
    both = dataclasses.replace(context, data={"data": images, "unfamiliar_data": images})
    results, _ = run(Familiarity(), both, tmp_path / "out")
    assert results["results"]["auroc"]["l1"]["3"]["value"] == 0.5
    assert results["results"]["gap_difference"]["value"] == 0
    assert results["data"]["unfamiliar_data"]["num_images"] == 12


def test_a_model_of_one_length_has_no_gap(tmp_path):
    (tmp_path / "photos").mkdir()
    context = context_of(tiny_photos(tmp_path / "photos", 2), max_rollouts=1)
    with pytest.raises(SettingsError, match="the model has one rollout"):
        run(Familiarity(), context, tmp_path / "out")
