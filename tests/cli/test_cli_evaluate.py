"""`alit evaluate`: results, table and figure are written together, or a line says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_lpips import random_lpips
from tar_data import cut, member_ends, samples, write_tar
from tiny_model import save_tiny_model

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.cli.explore import FIGURE_SUFFIXES
from alit_hf.evaluation import worst_pictures
from alit_hf.evaluation.rate_distortion import draw_rate_distortion
from alit_hf.evaluation.settings import DEFAULT_THRESHOLDS
from alit_hf.evaluation.yardsticks import CODECS


@pytest.fixture
def evaluate(alit, photos, tmp_path, tiny_model):
    """Runs the command on the photos with the tiny model and without LPIPS, where nothing else is given."""

    def run(*arguments, data=(photos,), model=tiny_model, output=tmp_path / "out" / "results.json"):
        defaults = ["--lpips", "none"] if "--lpips" not in arguments else []
        return alit("evaluate", "--data", *data, "--model", model, "--output", output, *defaults, *arguments)

    return run


def test_results_table_and_figure(evaluate, photos, tmp_path, tiny_model):
    result = evaluate("--figure", tmp_path / "figures" / "f.png", "--thresholds", "0.2,0.5")
    assert (result.code, result.errors) == (0, [])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["model"]["name"] == Path(tiny_model).name
    assert results["data"]["sources"] == ["photos"]
    assert results["data"]["num_images"] == 5
    assert list(results["lengths"]) == list(results["thumbnail"]) == ["4", "8", "12"]
    assert [numbers["threshold"] for numbers in results["adaptive"]] == [0.2, 0.5]
    assert {"l1", "psnr", "ssim"} < set(results["base"]) & set(results["jpeg"]) & set(results["webp"])
    assert Image.open(tmp_path / "figures" / "f.png").width > 1000

    table = result.out.splitlines()
    assert table[0].split() == ["tokens", "bytes", "L1", "PSNR", "SSIM", "usage", "perplexity", "encode/s", "decode/s"]
    assert table[1].split()[:4] == ["fixed", "length", "4", "3"]
    assert table[1].split()[4] == f"{results['lengths']['4']['l1']:.4f}"
    assert [line.split("  ")[0] for line in table[6:-1]] == [
        "base tokenizer",
        "thumbnail 1x1",
        "thumbnail 2x1",
        "thumbnail 2x1",
        "JPEG at its smallest",
        "WebP at its smallest",
        "AVIF at its smallest" if CODECS["avif"].is_available else "AVIF: not in this Pillow",
    ]
    assert table[-1] == f"{tmp_path / 'out' / 'results.json'}: 5 images; {tmp_path / 'figures' / 'f.png'}"


def test_json_is_what_is_written(evaluate, tmp_path):
    result = evaluate("--limit", 2, "--json")
    assert (result.code, result.errors) == (0, [])
    assert result.json == json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.mark.parametrize("size", [(48,), (24, 40)])
def test_another_size_is_that_of_a_model_brought_to_it(evaluate, tmp_path, tiny_model, size):
    result = evaluate("--image-size", *size, output=tmp_path / "asked.json")
    assert (result.code, result.errors) == (0, [])
    model = ALITModel.from_pretrained(tiny_model)
    model.set_image_size(size[0] if len(size) == 1 else size)
    model.save_pretrained(tmp_path / "model")
    ALITImageProcessor.for_config(model.config).save_pretrained(tmp_path / "model")
    evaluate(model=tmp_path / "model", output=tmp_path / "saved.json")
    asked, saved = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("asked", "saved"))
    assert asked["model"]["image_size"] == [size[0], size[-1]]
    assert asked["data"] == saved["data"]
    for length, numbers in saved["lengths"].items():
        assert asked["lengths"][length]["l1"] == numbers["l1"]


def test_a_page_of_the_worst_pictures(evaluate, tmp_path, monkeypatch):
    drawn = []
    original = worst_pictures.draw_panels
    monkeypatch.setattr(
        worst_pictures, "draw_panels", lambda rows, caption: drawn.append((rows, caption)) or original(rows, caption)
    )
    result = evaluate("--worst-figure", tmp_path / "figures" / "worst.jpg")
    assert (result.code, result.errors) == (0, [])
    assert result.out.splitlines()[-1].endswith(f"5 images; {tmp_path / 'figures' / 'worst.jpg'}")
    assert Image.open(tmp_path / "figures" / "worst.jpg").width > 1000
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    ((rows, caption),) = drawn
    assert caption == "The 5 worst of 5 pictures by L1 at the longest length."
    panels = [panel for row in rows for panel in row]
    for worst, strip in zip(results["worst"], zip(*[iter(panels)] * 4, strict=True), strict=True):
        assert strip[0].title == Path(worst["image"]).name
        assert [panel.title for panel in strip[1:]] == ["4 tokens", "8 tokens", "12 tokens"]
        assert not any(panel.is_picked for panel in strip)
        # The numbers of `worst` are of clamped pictures, so is what is drawn.
        error = np.abs(np.asarray(strip[3].picture, float) - np.asarray(strip[0].picture, float)).mean() / 255
        assert error == pytest.approx(worst["l1"], abs=2 / 255)


@pytest.fixture
def lpips_without_weights(monkeypatch):
    """The pretrained weights have to be downloaded; for what is tested here, random ones do."""
    monkeypatch.setattr("alit_hf.networks.lpips.load_lpips_weights", lambda network: {})
    monkeypatch.setattr("alit_hf.evaluation.scores.LPIPS", random_lpips)


def test_defaults_and_limit(evaluate, lpips_without_weights, tmp_path):
    assert evaluate("--limit", 2, "--lpips", "alex").code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["num_images"] == results["settings"]["limit"] == 2
    assert tuple(numbers["threshold"] for numbers in results["adaptive"]) == DEFAULT_THRESHOLDS
    assert "lpips_alex" in results["base"]
    assert "lpips_vgg" not in results["base"]


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("photos/a.png", "the input {folder}/photos/a.png would be overwritten by an output"),
        ("hard.png", "the input {folder}/photos/a.png would be overwritten by an output"),
        ("soft.png", "the input {folder}/photos/a.png would be overwritten by an output"),
        ("worst.png", "--figure and --worst-figure are both {folder}/worst.png, they must differ"),
    ],
)
def test_no_output_is_an_input_or_another_output(evaluate, photos, tmp_path, figure, message):
    (tmp_path / "hard.png").hardlink_to(photos / "a.png")
    (tmp_path / "soft.png").symlink_to(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    result = evaluate("--figure", tmp_path / figure, "--worst-figure", tmp_path / "worst.png")
    assert (result.code, result.errors) == (2, [f"alit: error: {message.format(folder=tmp_path)}"])
    assert (photos / "a.png").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_an_undecodable_picture_is_counted_and_told(evaluate, photos, tmp_path):
    (photos / "b.webp").write_bytes(b"no picture")
    result = evaluate()
    assert result.code == 1
    assert result.errors == ["alit: error: b.webp is not a picture in a format that can be read"]
    assert "4 images, 1 undecodable" in result.out.splitlines()[-1]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"]["num_images"] == 4


def test_a_damaged_file_is_named(evaluate, tmp_path):
    (tmp_path / "tars").mkdir()
    for number in range(2):
        write_tar(tmp_path / "tars" / f"{number}.tar", samples(range(10 * number, 10 * number + 3)))
    cut(tmp_path / "tars" / "0.tar", member_ends(tmp_path / "tars" / "0.tar")[4] + 600)
    result = evaluate(data=[tmp_path / "tars"])
    assert result.code == 1
    (error,) = result.errors
    damage = json.loads((tmp_path / "out" / "results.json").read_text())["data"]["damage"]
    assert [error] == [f"alit: error: {file}" for file in damage]
    assert error.startswith("alit: error: 0.tar is damaged, what is behind its first 2 rows cannot be read")
    assert result.out.endswith("results.json: 5 images\n")


def test_only_undecodable_pictures_fail(evaluate, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    result = evaluate(data=[tmp_path / "a.png"])
    assert result.code == 1
    assert "none of 1 images can be decoded" in result.errors[0]
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(evaluate, tmp_path, dtype):
    assert evaluate("--dtype", dtype, "--limit", 2).code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["dtype"] == dtype


def test_continuous_latents_are_drawn_over_tokens(evaluate, tmp_path):
    model = save_tiny_model(tmp_path / "model", quantize=False)
    result = evaluate("--figure", tmp_path / "f.svg", model=model)
    assert result.code == 0, result.err
    assert result.out.splitlines()[1].split()[:4] == ["fixed", "length", "4", "-"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    panel = draw_rate_distortion(results).axes[0]
    assert panel.get_xlabel() == "latent tokens per image"
    assert panel.lines[0].get_xdata().tolist() == [4, 8, 12]


def test_figure_shows_the_numbers(evaluate, tmp_path):
    assert evaluate("--thresholds", "0.2,0.5").code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    results["fitting"]["webp"] = {"8": {**results["webp"], "bytes": 60.0}}
    results["avif"] = None  # of a Pillow without it
    panels = {axes.get_ylabel(): axes for axes in draw_rate_distortion(results).axes}
    assert list(panels) == ["L1 (pixels in [0, 1])", "PSNR (dB)", "SSIM"]
    lines = {line.get_label(): line for line in panels["PSNR (dB)"].lines}
    assert lines["fixed length"].get_xdata().tolist() == [3, 6, 9]
    assert lines["fixed length"].get_ydata().tolist() == [n["psnr"] for n in results["lengths"].values()]
    assert lines["thumbnail"].get_ydata().tolist() == [n["psnr"] for n in results["thumbnail"].values()]
    assert lines["JPEG"].get_xdata().tolist() == [results["jpeg"]["bytes"]]
    assert lines["WebP"].get_xdata().tolist() == [60.0, results["webp"]["bytes"]]
    assert "AVIF" not in lines
    assert set(lines["base tokenizer"].get_ydata()) == {results["base"]["psnr"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--thresholds", "0.1,low"], "--thresholds: it is 'low', it must be a finite number"),
        (["--thresholds", "0.1,0.10"], "--thresholds: it is '0.1,0.10', nothing may occur twice"),
        (["--lpips", "squeeze"], "--lpips: it is 'squeeze', it must be alex or vgg, both, or none"),
        (["--lpips", "alex,alex"], "it must be alex or vgg, both, or none"),
        (["--limit", "0"], "--limit: it is '0', it must be a whole number from 1"),
        (["--frechet", "resnet"], "--frechet: invalid choice: 'resnet'"),
        (["--frechet", "efficientnet-lite0"], "--frechet: a Fréchet distance of 5 images would be noise"),
        (["--split", "test"], "--data: the split 'test' does not exist, the data set"),
        (["--figure", "f.txt"], f"f.txt must end in {', '.join(FIGURE_SUFFIXES)}"),
        (["--output", "results.txt"], "results.txt must end in .json"),
        (["--data", "missing"], "--data: missing does not exist"),
        (["--data", "nobody/nothing"], "--data: nobody/nothing is no file or folder, and from the Hub"),
        (["--image-size", "0"], "--image-size: it is '0', it must be a whole number from 1"),
        (["--image-size", "30"], "--image-size: `image_size` is 30, each side must be a positive multiple of"),
        (["--image-size", "8", "8", "8"], "--image-size: `image_size` is [8, 8, 8], it must be one number or (height"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--model", "."], "the model . holds no ALIT model"),
    ],
)
def test_wrong_use_does_nothing(evaluate, tmp_path, monkeypatch, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    result = evaluate(*arguments, output=empty / "results.json")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(empty.iterdir()) == []


def test_missing_lpips_weights_say_how_to_get_them(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIT_HF_CACHE", str(tmp_path / "cache"))
    result = evaluate("--lpips", "alex")
    assert result.code == 2
    assert "--lpips alex cannot be used" in result.err
    assert "-m alit_hf.networks.lpips" in result.err


def test_a_model_too_small_for_lpips_is_wrong_use(evaluate, lpips_without_weights, tmp_path):
    model = save_tiny_model(tmp_path / "model", image_size=24)
    result = evaluate("--lpips", "alex", model=model)
    assert (result.code, result.out) == (2, "")
    assert "pictures of 24 x 24 pixels are too small to be scored, 31 are needed" in result.err


def test_out_of_memory_is_reported(evaluate, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ALITModel, "rollouts", fail)
    result = evaluate()
    assert result.code == 1
    assert result.errors == ["alit: error: the evaluation failed: CUDA out of memory"]
