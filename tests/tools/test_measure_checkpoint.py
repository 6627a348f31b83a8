"""The tool that measures the packaged checkpoint knows every result of the pages, and copies what a run gave."""

import json

import pytest
from PIL import Image

from tools import measure_checkpoint
from tools.measure_checkpoint import RESULTS, Runs


class Recorded(Runs):
    """Writes what `alit analyze` would, in place of running it."""

    def run(self, *arguments):
        self.commands = [*getattr(self, "commands", []), [str(argument) for argument in arguments]]
        folder = arguments[arguments.index("--output") + 1]
        folder.mkdir(parents=True, exist_ok=True)
        lengths = {"32": 1, "64": 1, "96": 1}
        sweep = [{"threshold": t, "mean_tokens": m, "images_by_length": lengths} for t, m in ((0.1, 90), (0.2, 60))]
        (folder / "results.json").write_text(json.dumps({"results": {"sweep": sweep}, "of": self.commands[-1]}))
        Image.new("RGB", (4000, 8), "red").save(folder / "figure.png")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Recorded(tmp_path / "data", tmp_path / "runs", tmp_path / "results")


def test_every_result_of_the_pages_has_a_run(runs):
    baselines = {"baselines"}
    assert {folder.name for folder in RESULTS.iterdir() if folder.is_dir()} - baselines < set(runs.all)


def test_results_and_figures_are_copied(runs):
    runs.all["attention"]()
    runs.all["unfamiliar"]()
    copied = {
        name: sorted(path.name for path in (runs.results / name).iterdir()) for name in ("attention", "unfamiliar")
    }
    assert copied == {name: ["figure.webp", "results.json"] for name in copied}
    with Image.open(runs.results / "unfamiliar" / "figure.webp") as figure:
        assert figure.width == 1800
    # The numbers are of the photos, the figure is not.
    assert "eval-photos" in str(json.loads((runs.results / "attention" / "results.json").read_text())["of"])
    of_figure = runs.commands[1]
    assert not any("eval-photos" in argument for argument in of_figure)
    assert sum("skimage" in argument or "pictures" in argument for argument in of_figure) == 12


def test_the_threshold_is_of_training_photos(runs):
    runs.all["complexity"]()
    chosen, complexity = runs.commands
    assert "train-00005" in str(chosen)
    assert "eval" not in str(chosen)
    # 64 tokens are in the middle of 32 and 96.
    assert complexity[complexity.index("--threshold") + 1] == "0.2"


def test_a_wrong_name_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure_checkpoint.main(["probes"])
    assert "NAME is probes, it must be one of evaluate, worst, demo, browser, thresholds" in capsys.readouterr().err
