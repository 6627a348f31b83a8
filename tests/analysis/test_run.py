"""What is measured is stored, taken up again and never mixed with what belongs to something else."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_images import save_images
from matplotlib.figure import Figure
from small_run import context_of, tiny_photo, tiny_photos
from thread_processes import in_processes

from alit_hf.analysis.analysis import Analysis
from alit_hf.analysis.run import run_analysis
from alit_hf.data.images import open_images
from alit_hf.evaluation.run import Processes
from alit_hf.evaluation.settings import SettingsError


@dataclass(kw_only=True)
class Brightness(Analysis):
    """Measures without the model, and remembers what."""

    name = "brightness"
    default_limit = 20

    scale: float = 1.0
    fails_after: int | None = None

    def __post_init__(self):
        self.batches = []

    @property
    def measured(self):
        return [index for batch in self.batches for index in batch]

    def measure_settings(self, context):
        return {"scale": self.scale}

    def measure(self, context, batch):
        if len(self.batches) == self.fails_after:
            raise KeyboardInterrupt
        self.batches.append(list(batch.indices))
        return [{"mean": self.scale * pixels.mean().item()} for pixels in batch.pixel_values]

    def summarize(self, context, table):
        return {"names": table["image"].tolist(), "means": table["mean"].tolist()}

    def finding(self, results):
        return f"{len(results['means'])} means"

    def draw(self, context, table, results):
        return Figure()


class Labelled(Brightness):
    columns = ("label",)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return tiny_photos(tmp_path / "photos", 12)


def limited(context, limit):
    return dataclasses.replace(context, settings=dataclasses.replace(context.settings, limit=limit))


def summary(outcome):
    return outcome[0]["results"]


def test_one_run(photos, tmp_path):
    context, analysis = context_of(photos), Brightness()
    results, _ = run_analysis(analysis, context, tmp_path / "out")
    assert [len(batch) for batch in analysis.batches] == [5, 5, 2]
    images = context.data["data"]
    expected = [context.processor(images.read(i), return_tensors="pt").pixel_values.mean().item() for i in range(12)]
    assert results["results"]["means"] == pytest.approx(expected, abs=1e-6)
    assert results["results"]["names"] == [images.name(index) for index in range(12)]
    assert (results["analysis"], results["finding"]) == ("brightness", "12 means")
    data = results["data"]["data"]
    assert (data["sources"], data["available"], data["num_images"]) == ([Path(photos[0]).name], 12, 12)
    assert {"seed": 0, "limit": 100, "scale": 1.0}.items() <= results["settings"].items()
    assert results["settings"]["versions"]["alit_hf"]
    assert len(results["model"]["fingerprint"]) == 16
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["images.parquet"]
    json.dumps(results, allow_nan=False)


def test_an_interrupted_run_goes_on(photos, tmp_path):
    context = context_of(photos)
    with pytest.raises(KeyboardInterrupt):
        run_analysis(Brightness(fails_after=2), context, tmp_path / "out")
    rest = Brightness()
    resumed = run_analysis(rest, context, tmp_path / "out")
    assert rest.measured == [10, 11]
    assert summary(resumed) == summary(run_analysis(Brightness(), context, tmp_path / "other"))
    again = Brightness()
    assert summary(run_analysis(again, context, tmp_path / "out")) == summary(resumed)
    assert again.measured == []


def test_a_run_that_ended_while_it_merged_counts_nothing_twice(photos, tmp_path):
    context, folder = context_of(photos), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_analysis(Brightness(fails_after=1), context, folder)
    (batch,) = folder.iterdir()
    content = batch.read_bytes()
    expected = summary(run_analysis(Brightness(), context, folder))
    batch.write_bytes(content)
    assert summary(run_analysis(Brightness(), context, folder)) == expected
    assert pq.read_table(folder / "images.parquet").num_rows == 12


def test_samples_are_nested_and_follow_the_seed(photos, tmp_path):
    context = context_of(photos)
    few, more = Brightness(), Brightness()
    run_analysis(few, limited(context, 4), tmp_path / "out")
    results, _ = run_analysis(more, limited(context, 7), tmp_path / "out")
    assert (len(few.measured), len(more.measured)) == (4, 3)
    assert not set(few.measured) & set(more.measured)
    assert results["data"]["data"]["num_images"] == 7
    assert few.measured != list(range(4))
    # What a larger run left is not in a smaller one.
    assert run_analysis(Brightness(), limited(context, 4), tmp_path / "out")[0]["data"]["data"]["num_images"] == 4
    other = Brightness()
    run_analysis(other, limited(context_of(photos, seed=1), 4), tmp_path / "other")
    assert other.measured != few.measured


def test_processes_share_the_images(photos, tmp_path):
    context = context_of(photos)
    second, first = Brightness(), Brightness()
    assert run_analysis(second, context, tmp_path / "two", Processes(1, 2)) is None
    outcome = run_analysis(first, context, tmp_path / "two", Processes(0, 2))
    assert (len(first.measured), len(second.measured)) == (6, 6)
    assert summary(outcome) == summary(run_analysis(Brightness(), context, tmp_path / "one"))


def test_processes_that_do_not_share_the_folder_are_found_out(photos, tmp_path):
    context = context_of(photos)
    run_analysis(Brightness(), context, tmp_path / "theirs", Processes(1, 2))
    with pytest.raises(ValueError, match=r"12 images were measured, but .*ours has 6 of them"):
        run_analysis(Brightness(), context, tmp_path / "ours", Processes(0, 2))


def test_batches_of_another_run_are_not_replaced(photos, tmp_path, monkeypatch):
    context = context_of(photos)
    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        with pytest.raises(KeyboardInterrupt):
            run_analysis(Brightness(fails_after=1), context, tmp_path / f"{process}")
    files = [{file.name for file in (tmp_path / name).iterdir()} for name in ("1", "2")]
    assert not files[0] & files[1]


def test_a_second_run_in_the_same_folder_is_refused(photos, tmp_path):
    context = context_of(photos)
    refused = []

    class Twice(Brightness):
        def measure(self, context, batch):
            with pytest.raises(SettingsError, match=f"another run is writing to {tmp_path / 'out'}"):
                run_analysis(Brightness(), context, tmp_path / "out")
            refused.append(batch)
            return super().measure(context, batch)

    outcome = run_analysis(Twice(), context, tmp_path / "out")
    assert refused
    assert outcome[0]["results"] == run_analysis(Brightness(), context, tmp_path / "one")[0]["results"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_on_any_process_is_told_by_the_first(photos, tmp_path, rank):
    context = context_of(photos)
    run_analysis(Brightness(), context, tmp_path / "out")
    tiny_photo(99).save(f"{photos[0]}/0{rank}.png")
    with pytest.raises(SettingsError, match=rf"0{rank}\.png has changed"):
        in_processes(2, lambda processes: run_analysis(Brightness(), context, tmp_path / "out", processes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"halting_threshold": 0.5}}, "halting_threshold None instead of 0.5"),
        ({"analysis": Brightness(scale=2.0)}, r"settings \{'scale': 1.0\} instead of \{'scale': 2.0\}"),
        ({"model": {"codebook_size": 32}}, "another run.* model '[0-9a-f]{16}' instead of"),
        ({"count": 1}, "data .* instead of"),
    ],
)
def test_results_of_others_are_refused(photos, tmp_path, change, message):
    run_analysis(Brightness(), context_of(photos), tmp_path / "out")
    sources = [f"{photos[0]}/00.png"] if "count" in change else photos
    analysis = change.get("analysis", Brightness())
    with pytest.raises(SettingsError, match=message):
        run_analysis(analysis, context_of(sources, **change.get("model", {})), tmp_path / "out")
    assert analysis.measured == []


def test_an_image_that_changed_is_refused(photos, tmp_path):
    run_analysis(Brightness(), context_of(photos), tmp_path / "out")
    tiny_photo(99).save(f"{photos[0]}/03.png")
    with pytest.raises(SettingsError, match=r"03\.png has changed since it was measured"):
        run_analysis(Brightness(), context_of(photos), tmp_path / "out")


def test_a_label_that_changed_is_refused(tmp_path):
    pictures = [tiny_photo(seed) for seed in range(3)]
    context = context_of([str(save_images(tmp_path / "a.parquet", pictures, {"label": ["x", "y", "z"]}))])
    run_analysis(Labelled(), context, tmp_path / "out")
    context = context_of([str(save_images(tmp_path / "a.parquet", pictures, {"label": ["x", "q", "z"]}))])
    with pytest.raises(SettingsError, match="row 1 has changed"):
        run_analysis(Labelled(), context, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no parquet", "foreign"])
def test_a_file_that_is_no_result_is_named(photos, tmp_path, content):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "images.parquet"
    if content == "foreign":
        save_images(path, [tiny_photo(0)])
    else:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"images\.parquet holds no results that can be taken up"):
        run_analysis(Brightness(), context_of(photos), tmp_path / "out")


def test_undecodable_images_are_told(photos, tmp_path):
    for number in (2, 7):
        with open(f"{photos[0]}/{number:02d}.png", "wb") as file:
            file.write(b"no picture")
    results, _ = run_analysis(Brightness(), context_of(photos), tmp_path / "out")
    undecodable = results["data"]["data"]["undecodable"]
    assert [image["index"] for image in undecodable] == [2, 7]
    assert undecodable[0]["reason"] == "02.png is not a picture in a format that can be read"
    assert str(tmp_path) not in json.dumps(results)
    assert str(tmp_path).encode() not in (tmp_path / "out" / "images.parquet").read_bytes()
    assert results["data"]["data"]["num_images"] == len(results["results"]["means"]) == 10


def test_no_decodable_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of 1 images can be decoded"):
        run_analysis(Brightness(), context_of([str(tmp_path / "a.png")]), tmp_path / "out")


def test_missing_columns_are_named_before_any_work(photos, tmp_path):
    analysis = Labelled()
    with pytest.raises(SettingsError, match="lacks the columns `label`; it has none, as picture files"):
        run_analysis(analysis, context_of(photos), tmp_path / "out")
    assert analysis.measured == []
    assert not (tmp_path / "out").exists()


def test_two_data_sets_stay_apart(photos, tmp_path):
    context = context_of(photos)
    data = {"data": context.data["data"], "other_data": open_images([f"{photos[0]}/0{n}.png" for n in (4, 5, 6)])}
    results, _ = run_analysis(Brightness(), dataclasses.replace(context, data=data), tmp_path / "out")
    assert [results["data"][name]["num_images"] for name in data] == [12, 3]
    means = results["results"]["means"]
    assert np.allclose(means[12:], means[4:7], atol=1e-6)
