"""
Measures the packaged checkpoint for the pages, after `tools/package_checkpoint.py`:

    python tools/measure_checkpoint.py [NAME …] [--data ../shared/data]

Without names, everything that `docs/results/` holds of it, `docs/images/demo.webp` and `browser.webp`, for which
Chromium must be installed; then run `tools/checkpoint_card.py`. Runs go to `runs/results/FINGERPRINT/NAME`, where an
interrupted one continues, and only their results and figures are copied. Figures show pictures that come with
scikit-image, as others may not be shown freely. Several names at a time can run in several processes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import skimage
from PIL import Image
from playwright.sync_api import sync_playwright

from alit_hf import ALITModel, pretrained_path
from alit_hf.cli import main as alit
from alit_hf.cli.loading import load_model
from alit_hf.codes.token_file import model_fingerprint
from alit_hf.demo.serving import served_demo
from alit_hf.demo.tokenizer import DemoTokenizer


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"

# Chosen for what they are of, not for how they come out: photos, textures, scans, a drawing and a page of text.
UNFAMILIAR = ("astronaut", "brick", "chelsea", "coffee", "horse", "hubble_deep_field", "retina", "text")
ATTENTION = (*UNFAMILIAR, "clock_motion", "grass", "gravel", "rocket")
WORST = (*ATTENTION, "cell", "logo", "microaneurysms")


class Runs:
    """
    The runs, by name.

    Args:
        data (`Path`): the folder of the evaluation and training photos.
        folder (`Path`): where they write.
        results (`Path`): where results and figures are copied to.
    """

    def __init__(self, data: Path, folder: Path, results: Path):
        self.data, self.folder, self.results = data, folder, results
        photos, paintings = ["--data", data / "eval-photos.parquet"], data / "eval-peopleart.parquet"
        savoias = ["--data", data / "eval-savoias.parquet"]
        self.all: dict[str, Callable[[], None]] = {
            "evaluate": lambda: self.evaluate(photos),
            "worst": self.worst,
            "demo": self.demo,
            "browser": self.browser,
            "thresholds": lambda: self.analyze("thresholds", *photos),
            "complexity": lambda: self.analyze("complexity", *savoias, "--threshold", self.threshold()),
            "familiarity": lambda: self.analyze(
                "familiarity", *photos, "--unfamiliar-data", paintings, "--threshold", self.threshold()
            ),
            "tasks": lambda: self.analyze("tasks", *photos),
            "strength": lambda: self.analyze("strength", *photos, "--label-column", "label"),
            "probe": lambda: self.analyze("probe", *savoias, "--label-column", "category", "--limit", 1416),
            "segmentation": lambda: self.analyze("segmentation", "--data", data / "eval-bsds-segments.parquet"),
            "attention": lambda: self.attention(photos),
            "unfamiliar": lambda: self.analyze("unfamiliar", "--data", *self.pictures(UNFAMILIAR), figure="webp"),
            "predicted-lengths": lambda: self.analyze(
                "lengths", *photos, "--shifted-data", paintings, "--limit", 400, target="predicted-lengths"
            ),
        }

    def run(self, *arguments: object) -> None:
        code = alit([str(argument) for argument in arguments])
        if code != 0:
            raise SystemExit(code)

    def analyze(self, name: str, *arguments: object, target: str | None = None, figure: str = "png") -> None:
        run = self.folder / (target or name)
        self.run("analyze", name, *arguments, "--output", run)
        to = self.results / run.name
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "results.json", to)
        copy_picture(run / "figure.png", to / f"figure.{figure}")

    def threshold(self) -> float:
        """
        The one whose mean length is nearest to the middle of all lengths, for 150 of the last 509 training photos: no
        evaluation image has a say in it.
        """
        run = self.folder / "threshold"
        sweep = ",".join(f"{number / 200:g}" for number in range(10, 41))
        training = ["--data", self.data / "train-00005-of-00006.parquet", "--limit", 150]
        self.run("analyze", "thresholds", *training, "--thresholds", sweep, "--output", run)
        steps = json.loads((run / "results.json").read_text())["results"]["sweep"]
        shortest, *_, longest = map(int, steps[0]["images_by_length"])
        middle = (shortest + longest) / 2
        return min(steps, key=lambda step: abs(step["mean_tokens"] - middle))["threshold"]

    def pictures(self, names: tuple[str, ...]) -> list[Path]:
        """Copies, so that results do not name where a library is installed."""
        copies = Path("runs/results/pictures")
        copies.mkdir(parents=True, exist_ok=True)
        found = [next((Path(skimage.__file__).parent / "data").glob(f"{name}.*")) for name in names]
        return [Path(shutil.copy(path, copies)) for path in sorted(found)]

    def attention(self, photos: list[object]) -> None:
        """Numbers from photos, and the figure from pictures that may be shown."""
        self.analyze("attention", *photos)
        (self.results / "attention" / "figure.png").unlink()
        shown = self.folder / "attention-shown"
        self.run("analyze", "attention", "--data", *self.pictures(ATTENTION), "--output", shown)
        copy_picture(shown / "figure.png", self.results / "attention" / "figure.webp")

    def evaluate(self, photos: list[object]) -> None:
        files = ["--output", self.results / "alit-mini.json", "--figure", self.results / "alit-mini.png"]
        self.run("evaluate", *photos, "--lpips", "alex", "--frechet", "efficientnet-lite0", *files)

    def worst(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files = ["--output", self.folder / "worst.json", "--worst-figure", self.results / "alit-mini-worst.jpg"]
        self.run("evaluate", "--data", *self.pictures(WORST), "--lpips", "alex", *files)

    def demo(self) -> None:
        outputs = self.folder / "demo"
        subprocess.run([sys.executable, ROOT / "examples" / "demo.py", "--output", outputs], check=True)
        copy_picture(outputs / "demo.png", IMAGES / "demo.webp")

    def browser(self) -> None:
        """The demo with two pictures side by side, and the attention of a token of the first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        picture = self.folder / "browser.png"
        with served_demo(DemoTokenizer(*load_model(device="cpu"))) as url, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 1156})
            page.set_default_timeout(120_000)
            page.goto(url)
            page.check("#compare input")
            page.click("#second-examples button[data-example=cat]")
            page.wait_for_selector("#second-tokens button")
            page.click("#first-tokens button[data-token='5']")
            page.wait_for_selector("#first-chosen b:text('Token 6')")
            page.screenshot(path=picture)
            browser.close()
        copy_picture(picture, IMAGES / "browser.webp")


def copy_picture(source: Path, target: Path) -> None:
    if target.suffix == source.suffix:
        shutil.copy(source, target)
    else:
        picture = Image.open(source).convert("RGB")
        # Twice the width of a page, as every version of a file stays in the history.
        picture.thumbnail((1800, picture.height))
        picture.save(target, quality=85, method=6)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    fingerprint = model_fingerprint(ALITModel.from_pretrained(pretrained_path())).hex()
    runs = Runs(options.data, Path("runs/results") / fingerprint, options.results)
    unknown = [name for name in options.names if name not in runs.all]
    if unknown:
        parser.error(f"NAME is {unknown[0]}, it must be one of {', '.join(runs.all)}")
    for name in options.names or runs.all:
        runs.all[name]()


if __name__ == "__main__":
    main()
