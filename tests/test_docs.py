"""
Every block of Python and bash on every page runs, in the order of the page, in a folder that has what pages speak of,
and so do the examples in docstrings, which the reference shows.

A block that cannot is under a line `*Not run by the tests: REASON.*`, which readers see, too.
"""

import re
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hub_server import logged_in_hub
from lively_model import lively_model
from page_shell import Program, run_bash
from page_training import launch
from PIL import Image
from published_reference import LlamaGenVQ, TamingVQGAN
from random_lpips import random_lpips
from safetensors.torch import load_file
from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from tiny_config import BASE_TOKENIZERS
from token_data import write_parquet

from alit_hf import ALITImageProcessor
from alit_hf.cli import main as alit


ROOT = Path(__file__).parents[1]
PAGES = sorted(["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))])
PUBLISHED = ROOT / "tests" / "fixtures" / "alit_vqgan_quantized" / "original_state_dict.safetensors"
HUB_ORGANIZATION = "ME"

# What else may follow the backticks: another name for Python or bash would not be run.
NOT_CODE = {"", "yaml", "bibtex", "text"}
NOT_RUN = re.compile(r"\*Not run by the tests: [^*]+\.\*\s*\Z")
FENCE = re.compile(r"^ *```(?P<language>[^\n`]*)\n.*?^ *```$", re.MULTILINE | re.DOTALL)


def convert(arguments: list[str]) -> int:
    """`alit convert`, which cannot know the heads of the small stand-in for a published file."""
    return alit([*arguments, *(["--num-attention-heads", "4"] if "published.pth" in arguments else [])])


def dry_make(arguments: list[str]) -> int:
    """`make` without doing it: its targets install packages and run the tests."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return 0 if all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments) else 2


PROGRAMS: dict[str, Program] = {
    "alit": lambda arguments: convert(arguments) if arguments[0] == "convert" else alit(arguments),
    "accelerate": launch,
    "make": dry_make,
}


def run_unless_marked(evaluate: Callable[[Example], None]) -> Callable[[Example], None]:
    def run(example: Example) -> None:
        if NOT_RUN.search(example.document.text[: example.start]) is None:
            evaluate(example)

    return run


PARSER = Sybil(
    [
        CodeBlockParser("python", run_unless_marked(PythonEvaluator())),
        CodeBlockParser(
            "bash", run_unless_marked(lambda example: run_bash(str(example.parsed), Path.cwd(), PROGRAMS))
        ),
    ]
)

DOCSTRING_PARSER = Sybil([PythonCodeBlockParser()])


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """The default checkpoint's lengths and codebook, at sizes that run in a blink."""
    folder = str(tmp_path_factory.mktemp("models") / "tiny")
    model = lively_model(image_size=64, tokens_per_rollout=32, max_rollouts=8, codebook_size=4096, codebook_dim=12)
    model.set_length_criterion("l1")
    model.config.length_shortfalls = [0.0] * 99
    model.save_pretrained(folder)
    ALITImageProcessor.for_config(model.config).save_pretrained(folder)
    return folder


@pytest.fixture
def page_folder(tmp_path, monkeypatch, model_folder) -> Path:
    """The working directory: photos, a published checkpoint, a Hub, and what a clone of the repository has."""
    (tmp_path / "photos" / "holiday").mkdir(parents=True)
    for number, name in enumerate(["photo.jpg", "another.jpg", "photos/photo.jpg", "photos/holiday/beach.png"]):
        noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC).save(tmp_path / name)
    write_parquet(tmp_path / "train-0.parquet", range(2))
    AutoencoderKL.from_config(BASE_TOKENIZERS["kl"]).save_pretrained(tmp_path / "path" / "to" / "autoencoder")
    torch.save({"model": load_file(PUBLISHED)}, tmp_path / "published.pth")
    torch.save(
        {"state_dict": TamingVQGAN([32] * 3, 1, 8, 8, 32).state_dict()}, tmp_path / "vqgan_imagenet_f16_16384.ckpt"
    )
    torch.save({"model": LlamaGenVQ([32] * 3, 1, 8, 8, 32).state_dict()}, tmp_path / "vq_ds16_c2i.pt")
    for name in ("training", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("alit_hf.pretrained_path", lambda: model_folder)
    monkeypatch.setattr("alit_hf.cli.loading.pretrained_path", lambda: model_folder)
    monkeypatch.setattr("training.stages.pixel_loss.LPIPS", random_lpips)
    monkeypatch.setattr("alit_hf.networks.lpips.LPIPS", random_lpips)
    return tmp_path


@pytest.fixture
def hub(monkeypatch, page_folder):
    monkeypatch.setenv("ALIT_HF_CACHE", str(page_folder / "cache"))
    monkeypatch.setattr("hub_server.ORGANIZATION", HUB_ORGANIZATION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(page_folder / "hub-cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", page_folder / "datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with logged_in_hub(monkeypatch) as server:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, page_folder, hub):
    for example in PARSER.parse(ROOT / page):
        example.evaluate()


def test_the_sample_of_a_budget_may_hold_broken_files_and_subfolders(page_folder, capsys):
    (page_folder / "photos" / "broken.jpg").write_bytes(b"no picture")
    document = PARSER.parse(ROOT / "docs" / "thresholds.md")
    next(example for example in document if "scores.append" in str(example.parsed)).evaluate()
    assert document.namespace["scores"].shape == (2, 8)
    assert "left out: photos/broken.jpg is not a picture" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_no_code_goes_by_another_name(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    languages = {match["language"] for match in FENCE.finditer(text)}
    assert languages - {"python", "bash"} <= NOT_CODE


def test_examples_in_docstrings_run(page_folder, hub):
    assert alit(["tokenize", "photos/", "--output", "codes/"]) == 0
    files = (ROOT / "src").rglob("*.py")
    modules = [file for file in files if "```python\n    >>>" in file.read_text(encoding="utf-8")]
    assert len(modules) > 3
    for path in modules:
        for example in DOCSTRING_PARSER.parse(path):
            example.evaluate()


class TestHarness:
    """A harness that runs nothing would find nothing."""

    def parse(self, folder: Path, text: str) -> Document:
        (folder / "page.md").write_text(text)
        return PARSER.parse(folder / "page.md")

    @pytest.mark.parametrize("block", ["python\nraise OSError", "bash\nfalse", "bash\nalit info nothing.alit"])
    def test_failing_block_fails(self, page_folder, block):
        (example,) = self.parse(page_folder, f"Text\n\n```{block}\n```\n")
        with pytest.raises((OSError, AssertionError)):
            example.evaluate()

    def test_marked_block_does_not_run(self, page_folder):
        marked = "*Not run by the tests: it fails.*\n\n```bash\nfalse\n```\n"
        skipped, run = self.parse(page_folder, f"{marked}\n```bash\nfalse\n```\n")
        skipped.evaluate()
        with pytest.raises(AssertionError):
            run.evaluate()

    def test_blocks_of_a_page_follow_each_other(self, page_folder):
        for example in self.parse(
            page_folder,
            "```python\nthreshold = 9\n```\n"
            "```bash\nalit encode photo.jpg -o 'a code.alit' --threshold 9 # or less\n"
            'for file in *.alit; do\n    alit info "$file"\ndone\n```\n'
            "```python\nassert threshold == 9\nopen('a code.alit').close()\n```\n",
        ):
            example.evaluate()

    def test_make_knows_its_targets(self):
        assert dry_make(["demo", "test"]) == 0
        assert dry_make(["nothing"]) == 2
