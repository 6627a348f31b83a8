"""Complexity is joined to the right image, and what has no score has no say."""

import dataclasses
import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from labelled_images import save_images
from small_run import context_of, run, tiny_photo

from alit_hf.analysis.analysis import ImageBatch, RunSettings
from alit_hf.analysis.experiments.complexity import Complexity
from alit_hf.evaluation.settings import SettingsError


CATEGORIES = ["art"] * 20 + ["scenes"] * 4 + ["posters"] * 12


def context_for(tmp_path, scores, categories, seed=0):
    pictures = [tiny_photo(number) for number in range(len(scores))]
    columns = {"complexity": scores, "category": categories}
    return context_of([str(save_images(tmp_path / "images.parquet", pictures, columns))], seed=seed)


@pytest.fixture
def context(tmp_path):
    return context_for(tmp_path, [float(number) for number in range(36)], CATEGORIES)


def table_of(scores, first_errors, categories) -> pd.DataFrame:
    errors = [[error, error / 2, 0.01 * (number % 7), 0.01] for number, error in enumerate(first_errors)]
    return pd.DataFrame({"complexity": scores, "category": categories, "l1": errors})


def settings(context, limit):
    return dataclasses.replace(context.settings, limit=limit)


def batch_of(context) -> ImageBatch:
    images = context.data["data"]
    pixels = context.processor([images.read(i) for i in range(len(images))], return_tensors="pt").pixel_values
    return ImageBatch("data", range(len(images)), pixels, {})


def test_scores_that_follow_the_errors_correlate_with_them(tmp_path):
    unscored = context_for(tmp_path, [0.0] * 12, ["a"] * 12)
    with torch.no_grad():
        scores = [100 * row["l1"][0] for row in Complexity().measure(unscored, batch_of(unscored))]
    results, _ = run(Complexity(), context_for(tmp_path, scores, ["a"] * 12), tmp_path / "out")
    assert results["results"]["all"]["spearman_l1"]["3"]["value"] == 1
    assert results["results"]["categories"]["a"]["spearman_l1"] == results["results"]["all"]["spearman_l1"]
    assert "at 3 tokens in the mean over categories 1.000 [1.000, 1.000], over all images 1.000" in results["finding"]
    assert "; a (12) 1.000" in results["finding"]


def test_each_category_and_length_has_its_own_correlation(context):
    first = [float(number) for number in range(20)] + [5.0, 1, 7, 2] + [float(-number) for number in range(12)]
    results = Complexity(threshold=6).summarize(context, table_of(range(36), first, CATEGORIES))
    categories = results["categories"]
    assert list(categories) == ["art", "posters", "scenes"]
    assert categories["art"]["spearman_l1"]["3"]["value"] == 1
    assert categories["posters"]["spearman_l1"]["3"]["value"] == -1
    assert abs(categories["art"]["spearman_l1"]["9"]["value"]) < 0.5
    assert categories["scenes"]["spearman_l1"]["3"]["not_enough_data"] == (
        "not enough data: 4 images, at least 10 are needed"
    )
    # The longest code's error is the same for all.
    assert "hardly differ" in categories["art"]["spearman_l1"]["12"]["not_enough_data"]
    # 3 tokens up to an error of 5; 6 tokens where half of it is below 6; 9 from there on.
    assert categories["art"]["spearman_length"]["value"] > 0.8
    assert categories["art"]["num_images"] == 20
    # Of posters all lengths are the same, and scenes are too few.
    of_lengths = results["mean_over_categories"]["spearman_length"]
    assert of_lengths["value"] == categories["art"]["spearman_length"]["value"]
    assert (of_lengths["num_groups"], of_lengths["num_images"]) == (1, 20)
    finding = Complexity(threshold=6).finding(results)
    assert "scenes (4) (not enough data: 4 images, at least 10 are needed)" in finding
    assert "posters (12) -1.000 [-1.000, -1.000]" in finding


def test_missing_scores_and_categories_are_left_out_and_told(context):
    scores = [None if number == 3 else math.nan if number == 5 else float(number) for number in range(36)]
    categories = [None if number in (7, 8) else name for number, name in enumerate(CATEGORIES)]
    first = [1000.0 if number in (3, 5) else float(number) for number in range(36)]
    analysis = Complexity()
    table = table_of(scores, first, categories)
    results = analysis.summarize(context, table)
    assert (results["without_score"], results["without_category"]) == (2, 2)
    assert results["all"]["spearman_l1"]["3"]["value"] == 1
    assert (results["all"]["num_images"], results["categories"]["art"]["num_images"]) == (34, 16)
    assert "2 images without a score left out" in analysis.finding(results)
    analysis.draw(context, table, results).canvas.draw()


@pytest.mark.parametrize("scores", [[math.nan] * 36, [None] * 36, [50.0] * 36])
def test_no_usable_score_gives_no_number(context, scores):
    analysis, table = Complexity(), table_of(scores, np.arange(36.0), CATEGORIES)
    results = analysis.summarize(context, table)
    assert results["all"]["spearman_l1"]["3"]["value"] is None
    assert "not enough data" in analysis.finding(results)
    analysis.draw(context, table, results).canvas.draw()


def test_a_sample_is_even_over_categories_and_nested(context):
    images = context.data["data"]

    def names(limit):
        return [CATEGORIES[index] for index in Complexity().choose(images, settings(context, limit))]

    assert [names(12).count(name) for name in ("art", "scenes", "posters")] == [4, 4, 4]
    assert [names(20).count(name) for name in ("art", "scenes", "posters")] == [8, 4, 8]
    few, many = (Complexity().choose(images, settings(context, limit)) for limit in (10, 20))
    assert set(few) < set(many)
    assert few == sorted(few)
    assert few[:3] != [0, 1, 2]
    assert Complexity().choose(images, settings(context, 100)) == list(range(36))


def test_images_without_a_category_are_one_group_of_a_sample():
    class Images:
        def column(self, name):
            return [float("nan") for _ in range(40)] + ["a"] * 40 + ["b"] * 40

        def __len__(self):
            return 120

    chosen = Complexity().choose(Images(), RunSettings(limit=40))
    counts = np.bincount(np.array(chosen) // 40)
    assert sorted(counts.tolist()) == [13, 13, 14]


def test_the_figure_shows_every_image_of_every_category(context):
    names = [None] * 6 + [3] * 15 + [20] * 15
    # As pandas has it that way: 3.0 and 20.0, and NaN.
    for categories in (pd.Series(names), pd.Series(names, dtype=object), pd.Series(names, dtype="Int64")):
        analysis, table = Complexity(), table_of(np.arange(36.0), np.arange(36.0), categories)
        results = analysis.summarize(context, table)
        assert results["without_category"] == 6
        panel = analysis.draw(context, table, results).axes[0]
        assert [len(points.get_offsets()) for points in panel.collections] == [6, 15, 15]
        (grey,) = {tuple(color[:3]) for color in panel.collections[0].get_facecolors()}
        assert grey == (0.6, 0.6, 0.6)


def test_a_category_may_have_any_name(context):
    categories = ["all"] * 12 + ["$a_{$"] * 12 + ["other"] * 12
    analysis, table = Complexity(), table_of(np.arange(36.0), np.sin(np.arange(36.0)), categories)
    results = analysis.summarize(context, table)
    figure = analysis.draw(context, table, results)
    figure.savefig(io.BytesIO())
    lines = [line for line in figure.axes[2].lines if line.get_marker() == "o"]
    assert [line.get_label() for line in lines] == ["$a_{$", "all", "other", "all"]
    for line, group in zip(lines, [*results["categories"].values(), results["all"]], strict=True):
        assert line.get_ydata()[0] == group["spearman_l1"]["3"]["value"]
    assert [isinstance(line.get_color(), str) for line in lines] == [False, False, False, True]


def test_lists_for_categories_are_refused(tmp_path):
    context = context_for(tmp_path, [1.0, 2.0], [["a"], ["b", "c"]])
    with pytest.raises(
        SettingsError, match=r"the column `category` has \['a'\] in row 0, it must have names or numbers"
    ):
        run(Complexity(), context, tmp_path / "out")


def test_words_for_scores_are_refused(tmp_path):
    context = context_for(tmp_path, ["1", "many", "3"], ["a"] * 3)
    with pytest.raises(SettingsError, match="the column `complexity` has '1' in row 0, it must have numbers"):
        run(Complexity(), context, tmp_path / "out")


def test_constant_images_give_no_number(tmp_path):
    columns = {"complexity": [float(number) for number in range(12)], "category": ["a"] * 12}
    pictures = [tiny_photo(0)] * 12
    context = context_of([str(save_images(tmp_path / "same.parquet", pictures, columns))])
    results, _ = run(Complexity(), context, tmp_path / "out")
    assert "not enough data: the values of 12 images hardly differ" in results["finding"]
