"""`attention` measures the sparsity of the right maps, says what it is, and draws the maps over their pictures."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from small_run import context_of, run, tiny_photos

from alit_hf.analysis.attention_maps import AttentionSource, rollout_maps
from alit_hf.analysis.experiments.attention import Attention
from alit_hf.cli.analyze import options_parser
from alit_hf.evaluation.settings import SettingsError


LENGTHS = ("3", "6", "9", "12")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return context_of(tiny_photos(tmp_path_factory.mktemp("photos"), 12), num_decoder_layers=2)


@pytest.fixture(scope="module")
def outcome(context, tmp_path_factory):
    return run(Attention(), context, tmp_path_factory.mktemp("attention"))


def by_length(results: dict, side: str, layer: int, tokens: str, measure: str) -> list[float]:
    (found,) = (numbers for numbers in results["layers"] if (numbers["side"], numbers["layer"]) == (side, layer))
    estimates = found[tokens][measure]["by_length"]
    assert tuple(estimates) == LENGTHS
    return [estimate["value"] for estimate in estimates.values()]


def pixels(context, count: int) -> torch.Tensor:
    images = context.data["data"]
    return context.processor([images.read(index) for index in range(count)], return_tensors="pt").pixel_values


@pytest.mark.parametrize(("side", "layer"), [("decoder", 0), ("decoder", 1), ("encoder", 0), ("encoder", 1)])
def test_sparsity_is_that_of_every_layers_maps(outcome, context, side, layer):
    results = outcome[0]["results"]
    source = AttentionSource(side, layer)
    maps = rollout_maps(context.model, pixels(context, 12), [source])[source]
    for tokens, counted in (("all", 12), ("first", 3)):
        for rollout, after_rollout in enumerate(maps):
            ordered = after_rollout[:, :counted].flatten(2).double().sort(dim=-1, descending=True).values
            entropy = -(ordered * ordered.log()).sum(dim=-1).mean().item() / np.log(64)
            top = (ordered[..., :6].sum(dim=-1) + 0.4 * ordered[..., 6]).mean().item()
            assert by_length(results, side, layer, tokens, "entropy")[rollout] == pytest.approx(entropy, abs=1e-5)
            assert by_length(results, side, layer, tokens, "top_decile_share")[rollout] == pytest.approx(top, abs=1e-5)


def test_the_last_layer_of_the_decoder_is_the_default(outcome, context):
    assert (outcome[0]["results"]["side"], outcome[0]["results"]["layer"]) == ("decoder", 1)
    assert "(decoder, layer 1)" in outcome[0]["finding"]
    assert Attention(side="encoder", layer=0).source(context.model.config) == AttentionSource("encoder", 0)


def table(entropies: list[float]) -> pd.DataFrame:
    """Twelve images whose entropy over rollouts is `entropies` in both layers of both sides, and a little noise."""
    noise = np.random.default_rng(0).normal(0, 0.001, (12, 8))
    rows = np.tile(entropies, 2) + noise - noise.mean(axis=0)
    names = [
        f"{side}_{measure}_{tokens}"
        for side in ("decoder", "encoder")
        for measure in ("entropy", "top_decile_share")
        for tokens in ("all", "first")
    ]
    return pd.DataFrame({name: list(rows) for name in names})


@pytest.mark.parametrize(
    ("entropies", "verdict", "count"),
    [
        ([0.9, 0.8, 0.7, 0.6], "sharpens", 4),
        ([0.6, 0.7, 0.8, 0.9], "spreads", 0),
        ([0.9, 0.5, 0.5, 0.9], "hardly changes", 0),
        # Certain, and yet nothing to see.
        ([0.9, 0.9, 0.9, 0.895], "hardly changes", 0),
    ],
)
def test_the_finding_compares_the_last_rollout_with_the_first(context, entropies, verdict, count):
    analysis = Attention()
    results = analysis.summarize(context, table(entropies))
    change = results["layers"][0]["all"]["entropy"]["change"]
    assert change["value"] == pytest.approx(entropies[-1] - entropies[0], abs=1e-6)
    finding = analysis.finding(results)
    assert f"(decoder, layer 1) {verdict}: entropy (1 is uniform) {entropies[0]:.3f} [" in finding
    assert f"it sharpens in {count} of 4 layers" in finding


def test_equal_images_do_not_make_a_change_certain(context):
    analysis = Attention()
    rows = table([0.9, 0.8, 0.7, 0.6])
    rows["decoder_entropy_all"] = [rows["decoder_entropy_all"][0]] * 12
    results = analysis.summarize(context, rows)
    finding = analysis.finding(results)
    assert "(decoder, layer 1) cannot be told to sharpen or spread: entropy (1 is uniform) (not enough data" in finding
    assert (
        "change (not enough data: the values of 12 images hardly differ), of the first 3 tokens alone -0." in finding
    )
    assert finding.endswith(
        "it sharpens in 2 of 4 layers of decoder and encoder, in 2 it cannot be told to sharpen or spread"
    )


def test_few_images_are_not_enough(context):
    analysis = Attention()
    results = analysis.summarize(context, table([0.9, 0.8, 0.7, 0.6]).head(2))
    assert analysis.finding(results) == "not enough data: 2 images, at least 10 are needed"
    assert results["layers"][0]["all"]["entropy"]["change"]["value"] is None


def test_the_figure_shows_each_tokens_map_after_every_rollout(outcome, context):
    axes = [axes for axes in outcome[1].axes if axes.images]
    assert len(axes) == 2 * 3 * 5
    source = AttentionSource("decoder", 1)
    pixel_values = pixels(context, 2)
    maps = rollout_maps(context.model, pixel_values, [source])[source]
    grid = np.array(axes).reshape(2, 3, 5)
    for (picture, token, column), panel in np.ndenumerate(grid):
        if column == 0:
            shown = torch.from_numpy(np.asarray(panel.images[0].get_array()))
            torch.testing.assert_close(shown, pixel_values[picture].permute(1, 2, 0))
        else:
            shown = np.asarray(panel.images[1].get_array())
            np.testing.assert_allclose(shown, maps[column - 1][picture, token], rtol=1e-4)


def test_options_name_the_layer():
    default = ["--data", "photos", "--output", "results"]
    named = [*default, "--side", "encoder", "--layer", "0"]
    for options, expected in ((default, Attention()), (named, Attention(side="encoder", layer=0))):
        assert Attention.from_arguments(options_parser(Attention).parse_args(options)) == expected


def test_one_rollout_is_refused(context, tmp_path):
    one = context_of(context.data["data"].sources, max_rollouts=1)
    with pytest.raises(SettingsError, match="one rollout"):
        run(Attention(), one, tmp_path)


def test_a_layer_that_does_not_exist_is_refused_before_any_work(context, tmp_path):
    with pytest.raises(SettingsError, match="`layer` is 2, the layers of the encoder are 0 to 1"):
        run(Attention(side="encoder", layer=2), context, tmp_path)
    assert not list(tmp_path.iterdir())


def test_stored_results_serve_every_layer(context, outcome, tmp_path):
    run(Attention(), context, tmp_path)
    stored = (tmp_path / "images.parquet").stat().st_mtime_ns
    results = run(Attention(side="encoder", layer=0), context, tmp_path)[0]
    assert (tmp_path / "images.parquet").stat().st_mtime_ns == stored
    assert results["results"]["layers"] == outcome[0]["results"]["layers"]
    assert dataclasses.asdict(Attention(side="encoder", layer=0)).items() <= results["settings"].items()
