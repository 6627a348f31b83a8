"""The sheet shows each picture as the model makes it at every length, also when it is drawn from what was stored."""

import numpy as np
import pytest
import torch
from small_run import context_of, run, tiny_photos

from alit_hf.analysis.experiments.unfamiliar import Unfamiliar


@pytest.fixture
def context(tmp_path):
    (tmp_path / "photos").mkdir()
    return context_of(tiny_photos(tmp_path / "photos", 3))


@pytest.fixture
def pixel_values(context):
    images = context.data["data"]
    return context.processor([images.read(index) for index in range(3)], return_tensors="pt").pixel_values


def test_every_row_is_a_picture_at_every_length(context, pixel_values, tmp_path):
    for _ in ("measured", "stored"):
        results, figure = run(Unfamiliar(), context, tmp_path / "out")
        shown = [axes.images[0].get_array() for axes in figure.axes]
        assert len(shown) == 3 * 5
        for row in range(3):
            expected = [pixel_values[row : row + 1]]
            with torch.no_grad():
                expected += [rollout.reconstruction for rollout in context.model.rollouts(expected[0])]
            for made, panel in zip(expected, shown[5 * row : 5 * row + 5], strict=True):
                assert np.array_equal(np.asarray(context.processor.postprocess(made)[0]), panel)
    titles = [text.get_text() for text in figure.texts]
    assert {"00.png", "01.png", "02.png", "3 tokens", "12 tokens"} <= set(titles)
    assert len(results["results"]["pictures"]) == 3


def test_lengths_are_those_of_encode_and_framed(context, pixel_values, tmp_path):
    with torch.no_grad():
        scores = context.model.encode(pixel_values, threshold=0.0).score
    threshold = scores.median().item() + 1e-6
    with torch.no_grad():
        code = context.model.encode(pixel_values, threshold=threshold)
    results, figure = run(Unfamiliar(threshold=threshold), context, tmp_path / "out")
    pictures = results["results"]["pictures"]
    assert [picture["num_tokens"] for picture in pictures] == code.num_tokens.tolist()
    assert [picture["satisfied"] for picture in pictures] == code.satisfied.tolist()
    for picture, score in zip(pictures, code.score.tolist(), strict=True):
        assert picture["l1"][str(picture["num_tokens"])] == pytest.approx(score, abs=2e-6)
    assert len(figure.artists + figure.patches) == 3
    satisfied = int(code.satisfied.sum())
    assert results["finding"].startswith(f"{satisfied} of 3 pictures reach an L1 below {threshold:g}; on average")
    assert f"{results['results']['l1']['3']:.3f} at 3 tokens" in results["finding"]


def test_continuous_latents_have_no_bytes(tmp_path):
    (tmp_path / "photos").mkdir()
    context = context_of(tiny_photos(tmp_path / "photos", 1), quantize=False)
    _, figure = run(Unfamiliar(), context, tmp_path / "out")
    assert not any("bytes" in text.get_text() for text in figure.texts)


def test_nan_pictures_are_an_error(context, tmp_path):
    context.model.decoder.head.fc2.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        run(Unfamiliar(), context, tmp_path / "out")
