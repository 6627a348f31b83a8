"""Promised and kept: against predictions whose errors are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_run import context_of, run, tiny_photos

from alit_hf.analysis.experiments.lengths import Lengths
from alit_hf.evaluation.settings import SettingsError


@pytest.fixture
def context(tmp_path):
    (tmp_path / "photos").mkdir()
    context = context_of(tiny_photos(tmp_path / "photos", 24))
    context.model.set_length_criterion("l1")
    return context


def table_of(count: int, noise: float, shift: float = 0.0, data: str = "data", seed: int = 0) -> pd.DataFrame:
    """Scores that fall with the length; predictions with an error for each image and one for each length."""
    random = np.random.default_rng(seed)
    true = random.normal(-2, 0.4, (count, 1)) - np.array([0, 0.2, 0.35, 0.45])
    predicted = true - shift + noise * (random.normal(size=(count, 1)) + 0.3 * random.normal(size=(count, 4)))
    rows = {"data": data, "index": range(count), "true": list(true), "predicted": list(predicted)}
    return pd.DataFrame(rows)


def test_the_promise_is_kept_and_costs_tokens(context):
    results = Lengths().summarize(context, table_of(400, noise=0.1))
    assert results["criterion"] == "l1"
    assert results["thresholds"] == sorted(results["thresholds"])
    numbers = results["sets"]["data"]
    for confidence, outcome in numbers["confidences"].items():
        assert float(confidence) - 0.02 <= outcome["worst_threshold"] <= outcome["kept"] <= 1
        assert outcome["tokens"] == pytest.approx(outcome["ratio"] * numbers["exact"], rel=1e-4)
    ratios = [outcome["ratio"] for outcome in numbers["confidences"].values()]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 1.05


def test_a_perfect_prediction_is_the_exact_search(context):
    results = Lengths(splits=3).summarize(context, table_of(100, noise=0.0))
    for outcome in results["sets"]["data"]["confidences"].values():
        assert outcome["ratio"] == 1
        assert outcome["kept"] == 1


def test_a_shift_that_breaks_the_promise_shows(context):
    analysis = Lengths(splits=3)
    table = pd.concat([table_of(300, 0.1), table_of(200, 0.1, shift=0.3, data="shifted_data", seed=1)])
    results = analysis.summarize(context, table)
    familiar, shifted = (results["sets"][name]["confidences"]["0.9"]["kept"] for name in ("data", "shifted_data"))
    assert familiar > 0.88
    assert shifted < 0.8
    finding = analysis.finding(results)
    assert f"{shifted:.3f} at 0.9" in finding
    assert "200 images of another kind" in finding
    lines = analysis.draw(context, table, results).axes[0].get_lines()
    assert any(np.isclose(line.get_ydata(), shifted).any() for line in lines[1:])


def test_a_whole_run(context, tmp_path):
    """Stored predictions and scores are the model's."""
    context.model.set_length_criterion("l1")
    results, _ = run(Lengths(splits=2), context, tmp_path / "out")
    assert results["results"]["sets"]["data"]["num_images"] == 24
    images = context.data["data"]
    pixels = context.processor([images.read(index) for index in range(24)], return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = [(one.reconstruction - pixels).abs().mean(dim=(1, 2, 3)) for one in context.model.rollouts(pixels)]
    exact = results["results"]["thresholds"]
    expected = np.quantile(torch.stack(scores).log().numpy(), np.linspace(0.05, 0.95, 10))
    assert np.allclose(np.log(exact), expected, atol=1e-4)


def test_few_images_give_no_numbers(context):
    analysis = Lengths()
    results = analysis.summarize(context, table_of(17, 0.1))
    assert analysis.finding(results) == "not enough data: 17 images, at least 18 are needed"
    analysis.draw(context, table_of(17, 0.1), results)


def test_a_model_without_predictor_is_refused(context, tmp_path):
    context.model.set_length_criterion(None)
    with pytest.raises(SettingsError, match="has no length predictor: train one"):
        run(Lengths(), context, tmp_path / "out")
