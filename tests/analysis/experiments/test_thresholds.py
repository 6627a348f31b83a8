"""Every image is counted once at each threshold, at the length that `encode` chooses."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_run import context_of, run, tiny_photos

from alit_hf.analysis.experiments.thresholds import Thresholds


@pytest.fixture
def context(tmp_path):
    (tmp_path / "photos").mkdir()
    return context_of(tiny_photos(tmp_path / "photos", 12))


def table_of(errors) -> pd.DataFrame:
    return pd.DataFrame({"data": "data", "index": range(len(errors)), "l1": [list(row) for row in errors]})


def test_counts_are_those_of_encode(context, tmp_path):
    images = context.data["data"]
    pixels = context.processor([images.read(index) for index in range(12)], return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = context.model.encode(pixels, threshold=0.0).score
    thresholds = (*scores.quantile(torch.tensor([0.3, 0.7])).tolist(), 0.0, 10.0)
    results, _ = run(Thresholds(thresholds=thresholds), context, tmp_path / "out")
    sweep = results["results"]["sweep"]
    assert [numbers["threshold"] for numbers in sweep] == sorted(thresholds)
    lengths = [3, 6, 9, 12]
    for numbers in sweep:
        with torch.no_grad():
            code = context.model.encode(pixels, threshold=numbers["threshold"])
        chosen = code.num_tokens[code.satisfied].tolist()
        assert numbers["images_by_length"] == {str(length): chosen.count(length) for length in lengths}
        assert numbers["unsatisfied"] == (~code.satisfied).sum().item()
        assert numbers["mean_tokens"] == pytest.approx(code.num_tokens.float().mean().item(), abs=1e-6)
    assert sweep[0]["unsatisfied"] == 12
    assert sweep[-1]["images_by_length"]["3"] == 12


def test_bars_and_finding_tell_the_counts(context):
    errors = np.array([[0.3, 0.1, 0.1, 0.1]] * 6 + [[0.1, 0.1, 0.1, 0.1]] * 5 + [[0.4, 0.3, 0.3, 0.3]] * 4)
    analysis = Thresholds(thresholds=(0.5, 0.2, 0.05))
    results = analysis.summarize(context, table_of(errors))
    assert results["sweep"][1]["images_by_length"] == {"3": 5, "6": 6, "9": 0, "12": 0}
    finding = analysis.finding(results)
    assert "below 0.2, where lengths differ most, is reached with 3 tokens by 0.333 [0.152, 0.583] of 15" in finding
    assert "with 12 or fewer by 0.733 [" in finding
    assert "12.0 tokens at 0.05 and 3.0 at 0.5" in finding
    bars = analysis.draw(context, table_of(errors), results).axes[0].containers
    assert [bar.get_height() for bar in [group[1] for group in bars]] == [5, 6, 0, 0, 4]


def test_two_images_are_not_enough(context):
    analysis = Thresholds()
    results = analysis.summarize(context, table_of([[0.1] * 4] * 2))
    assert analysis.finding(results) == "not enough data: 2 images, at least 10 are needed"
    assert results["not_enough_data"] == analysis.finding(results)


def test_a_model_of_one_length(tmp_path):
    (tmp_path / "photos").mkdir()
    context = context_of(tiny_photos(tmp_path / "photos", 10), max_rollouts=1)
    results, _ = run(Thresholds(thresholds=(10.0,)), context, tmp_path / "out")
    assert results["results"]["sweep"][0]["images_by_length"] == {"3": 10}
    assert "reached with 3 tokens by 1.000 [0.722, 1.000] of 10 images" in results["finding"]


def test_nan_pictures_are_an_error(context, tmp_path):
    context.model.decoder.head.fc2.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model's pictures have NaN"):
        run(Thresholds(), context, tmp_path / "out")
