"""`alit analyze`: results and figure are written and the finding is said, or a line says why not."""

import json
from pathlib import Path

import pytest
from labelled_images import save_images
from PIL import Image
from small_run import tiny_photo, tiny_photos
from tar_data import cut, member_ends, samples, write_tar
from tiny_model import save_tiny_model

from alit_hf.analysis.registry import ANALYSES


@pytest.fixture
def many(tmp_path):
    (tmp_path / "many").mkdir()
    return tiny_photos(tmp_path / "many", 11)[0]


@pytest.fixture
def analyze(alit, photos, tmp_path, tiny_model):
    def run(name, *arguments, data=(photos,), model=tiny_model, output=tmp_path / "out" / "deeper"):
        return alit("analyze", name, "--data", *data, "--model", model, "--output", output, *arguments)

    return run


def test_results_figure_and_finding(analyze, many, tmp_path, tiny_model):
    result = analyze("thresholds", "--thresholds", "0.1,0.3", "--seed", 3, data=(many,))
    assert (result.code, result.errors) == (0, [])
    folder = tmp_path / "out" / "deeper"
    assert sorted(path.name for path in folder.iterdir()) == ["figure.png", "images.parquet", "results.json"]
    results = json.loads((folder / "results.json").read_text())
    assert result.out.splitlines() == [
        f"thresholds: {results['finding']}",
        f"{folder / 'results.json'}; {folder / 'figure.png'}",
    ]
    assert results["model"]["name"] == Path(tiny_model).name
    assert (results["settings"]["seed"], results["settings"]["thresholds"]) == (3, [0.1, 0.3])
    assert Image.open(folder / "figure.png").info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_the_same_numbers_again_and_from_what_is_stored(analyze, many, tmp_path):
    outputs = [tmp_path / "a", tmp_path / "b", tmp_path / "a"]
    texts = []
    for output in outputs:
        assert analyze("thresholds", "--limit", 10, data=(many,), output=output).code == 0
        texts.append((output / "results.json").read_text())
    assert texts[0] == texts[1] == texts[2]


def test_two_data_sets(analyze, many, tmp_path):
    result = analyze("familiarity", "--unfamiliar-data", many)
    assert result.code == 0, result.err
    results = json.loads((tmp_path / "out" / "deeper" / "results.json").read_text())
    assert [results["data"][name]["num_images"] for name in ("data", "unfamiliar_data")] == [5, 11]
    assert "(not enough data: 5 images" in result.out


def test_columns_of_parquet_files(analyze, tmp_path):
    columns = {"complexity": [float(n) for n in range(12)], "category": ["Scenes"] * 12}
    path = save_images(tmp_path / "s.parquet", [tiny_photo(n) for n in range(12)], columns)
    result = analyze("complexity", data=(path,))
    assert result.code == 0, result.err
    assert "over all 12 images" in result.out.splitlines()[0]
    assert "Scenes" in result.out.splitlines()[0]


def test_an_undecodable_picture_is_told(analyze, photos, tmp_path):
    (photos / "b.webp").write_bytes(b"no picture")
    result = analyze("unfamiliar")
    assert result.code == 1
    assert result.errors == ["alit: error: b.webp is not a picture in a format that can be read"]
    assert result.out.startswith("unfamiliar: ")
    assert json.loads((tmp_path / "out" / "deeper" / "results.json").read_text())["results"]["num_images"] == 4


def test_a_damaged_file_is_named_whichever_images_are_drawn(analyze, tmp_path):
    (tmp_path / "tars").mkdir()
    for number in range(2):
        write_tar(tmp_path / "tars" / f"{number}.tar", samples(range(10 * number, 10 * number + 3)))
    cut(tmp_path / "tars" / "0.tar", member_ends(tmp_path / "tars" / "0.tar")[4] + 600)
    result = analyze("unfamiliar", "--limit", 2, data=(tmp_path / "tars",))
    assert result.code == 1
    (error,) = result.errors
    assert error.startswith("alit: error: 0.tar is damaged, what is behind its first 2 rows cannot be read")
    described = json.loads((tmp_path / "out" / "deeper" / "results.json").read_text())["data"]["data"]
    assert (described["available"], described["num_images"], len(described["damage"])) == (5, 2, 1)


@pytest.mark.parametrize("output", [".", "sub", "new/results"])
def test_results_are_not_written_into_the_data(alit, photos, tiny_model, output):
    before = sorted(photos.rglob("*"))
    result = alit("analyze", "thresholds", "--data", photos, "--output", photos / output, "--model", tiny_model)
    assert (result.code, len(result.errors)) == (2, 1)
    assert "lies in the data" in result.errors[0]
    assert sorted(photos.rglob("*")) == before


def test_no_output_is_an_input(alit, photos, tmp_path, tiny_model):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figure.png").hardlink_to(photos / "a.png")
    result = alit("analyze", "thresholds", "--data", photos, "--output", tmp_path / "out", "--model", tiny_model)
    assert result.errors == [f"alit: error: the input {photos / 'a.png'} would be overwritten by an output"]
    assert result.code == 2


def test_only_undecodable_pictures_fail(analyze, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    result = analyze("thresholds", data=(tmp_path / "a.png",))
    assert (result.code, result.out) == (1, "")
    assert "none of 1 images can be decoded" in result.err


def test_results_of_another_model_are_refused(analyze, other_model):
    assert analyze("thresholds").code == 0
    result = analyze("thresholds", model=other_model)
    assert (result.code, result.out) == (2, "")
    assert "holds results of another run" in result.errors[0]
    assert "instead of" in result.errors[0]


@pytest.mark.parametrize("name", ANALYSES)
def test_help_of_each(alit, name):
    result = alit("analyze", name, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: alit analyze {name}")
    assert "--limit N" in result.out


def test_help_names_all(alit):
    out = alit("analyze", "--help").out
    assert all(name in out for name in ANALYSES)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("entropy", [], "argument NAME: invalid choice: 'entropy'"),
        ("thresholds", ["--thresholds", "0.1,low"], "--thresholds: it is 'low', it must be a finite number"),
        ("thresholds", ["--limit", "0"], "--limit: it is '0', it must be a whole number from 1"),
        ("thresholds", ["--seed", "-1"], "--seed: it is '-1', it must be a whole number from 0"),
        ("thresholds", ["--data", "missing"], "--data: missing does not exist"),
        ("thresholds", ["--split", "test"], "--data: the split 'test' does not exist, the data set"),
        ("thresholds", ["--batch", "5", "--colour"], "unrecognized arguments: --colour"),
        ("thresholds", ["--model", "."], "the model . holds no ALIT model"),
        ("thresholds", ["--output", "a.txt"], "a.txt is not a folder"),
        ("familiarity", [], "the following arguments are required: --unfamiliar-data"),
        ("familiarity", ["--unfamiliar-data", "missing"], "--unfamiliar-data: missing does not exist"),
        ("complexity", [], "lacks the columns `complexity`, `category`; it has none, as picture files"),
    ],
)
def test_wrong_use_does_nothing(analyze, tmp_path, monkeypatch, name, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").touch()
    monkeypatch.chdir(empty)
    result = analyze(name, *arguments, output=empty / "out")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert [path.name for path in empty.iterdir()] == ["a.txt"]


def test_a_missing_package_is_named(analyze, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr("alit_hf.cli.analyze.load_analysis", missing)
    result = analyze("thresholds")
    assert result.code == 2
    assert "needs scipy: `pip install 'alit-hf[eval]'`" in result.err


def test_a_model_without_quantisation(analyze, tmp_path):
    model = save_tiny_model(tmp_path / "model", quantize=False)
    assert analyze("unfamiliar", model=model).code == 0
