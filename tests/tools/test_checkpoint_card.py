"""The card of the packaged checkpoint says what the results files say, and they are of this checkpoint."""

import copy
import itertools
import json

import pytest

from alit_hf import ALITModel, pretrained_path
from alit_hf.codes.token_file import model_fingerprint
from alit_hf.evaluation.description import describe_model
from alit_hf.evaluation.yardsticks import CODECS
from tools.checkpoint_card import CARD, README, RESULTS, card_from_files, checkpoint_card, readme_with_results


@pytest.fixture(scope="module")
def files():
    baselines = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "baselines").glob("*.json")}
    results, separation = (json.loads((RESULTS / name).read_text()) for name in ("alit-mini.json", "separation.json"))
    return results, baselines, separation


def test_the_card_in_the_repository_is_the_generated_one():
    assert card_from_files().content == CARD.read_text(encoding="utf-8")


def test_the_numbers_in_the_readme_are_the_generated_ones(files):
    readme = README.read_text(encoding="utf-8")
    assert readme_with_results(readme, files[0]) == readme


def test_the_results_are_of_the_packaged_weights(files):
    results, _, separation = files
    model = ALITModel.from_pretrained(pretrained_path())
    assert results["model"]["fingerprint"] == model_fingerprint(model).hex()
    assert results["model"]["parameters"] == describe_model(model)["parameters"]
    assert results["settings"]["limit"] is None
    assert separation["evaluation"]["num_images"] == results["data"]["num_images"]
    assert separation["same_pixels"] == []


@pytest.mark.parametrize("score", ["l1", "lpips_alex"])
def test_each_rollout_lowers_the_mean_error(files, score):
    lengths = files[0]["lengths"]
    errors = [lengths[length][score] for length in sorted(lengths, key=int)]
    assert len(errors) == 8
    assert all(longer < shorter for shorter, longer in itertools.pairwise(errors)), errors


def rows(card) -> dict[str, list[str]]:
    """Cells of the tables' lines by the first one."""
    lines = [line.strip("| ").split(" | ") for line in card.content.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_numbers_come_from_the_files(files):
    results, baselines, separation = copy.deepcopy(files)
    results["lengths"]["64"] |= {"l1": 0.98765, "lpips_alex": 0.4321}
    results["worst"][0] |= {"image": "row 777", "lpips_alex": 0.999}
    results["adaptive"][0] |= {"threshold": 0.011, "mean_tokens": 70.0, "satisfied": 0.75}
    results["adaptive"][0]["satisfied_by_length"] |= {"96": 0.25, "256": 0.5}
    baselines["fixed-32"]["lengths"]["32"] |= {"l1": 0.8765, "codebook_usage": 0.5}
    separation["least_bits"] = 63
    card = checkpoint_card(results, baselines, separation)
    found = rows(card)
    assert found["64 tokens"][:2] == ["96", "0.9877"]
    assert "0.432" in found["64 tokens"]
    assert found["row 777"][1] == "0.999"
    # The shares that are not satisfied; 96 is the next length to a mean of 70.
    assert found["0.011"] == ["70.0", "25.0%", "75.0% (96 tokens)", "50.0% (256 tokens)"]
    assert found["fixed, 32 tokens"][:2] == ["32", "0.8765"]
    assert "50.0%" in found["fixed, 32 tokens"]
    assert "63 of 64 bits" in card.content


def test_the_readme_says_what_the_same_bytes_give_elsewhere(files):
    results = copy.deepcopy(files[0])
    readme = "Before\n<!-- results: tools/checkpoint_card.py writes them -->\nold\n<!-- end of results -->\nAfter"
    for length, numbers in results["lengths"].items():
        numbers |= {"l1": 0.1, "lpips_alex": 0.4, "bytes": 1.5 * int(length)}
        results["thumbnail"][length] |= {"l1": 0.2 if int(length) > 64 else 0.05, "lpips_alex": 0.5}
    results["webp"] |= {"bytes": 432.1, "l1": 0.0123, "lpips_alex": 0.321}
    results["fitting"]["webp"] = {"192": {"l1": 0.09, "lpips_alex": 0.7}, "256": {"l1": 0.11, "lpips_alex": 0.3}}
    results["avif"] = None
    text = readme_with_results(readme, results)
    assert (text.startswith("Before\n<!--"), text.endswith("-->\nAfter"), "old" in text) == (True, True, False)
    assert "| tokens | bytes | ALIT | thumbnails | WebP |" in text
    assert "| 32 | 48 | 0.100 / 0.40 | 0.050 / 0.50 | – |" in text
    assert "| 192 | 288 | 0.100 / 0.40 | 0.200 / 0.50 | 0.090 / 0.70 |" in text
    assert "432 bytes in WebP (0.012 / 0.32)." in text
    assert "L1 is lower than that of thumbnails at 6 of 8 lengths, WebP at 1 of 2 lengths." in text
    assert "is lower than that of thumbnails at 8 of 8 lengths, WebP at 1 of 2 lengths." in text
    assert "AVIF" not in text.replace("WebP and AVIF", "")
    with pytest.raises(ValueError, match=r"README\.md"):
        readme_with_results("Before", results)


def test_it_says_where_a_thumbnail_is_better(files):
    results, baselines, separation = copy.deepcopy(files)
    for length, numbers in results["lengths"].items():
        numbers["l1"] = results["thumbnail"][length]["l1"] + (0.01 if length in ("32", "64", "96") else -0.01)
    content = checkpoint_card(results, baselines, separation).content
    assert "is better in L1 at 3 of 8 lengths" in content


def test_baselines_that_were_not_trained_are_named(files):
    results, baselines, separation = copy.deepcopy(files)
    del baselines["fixed-32"]
    content = checkpoint_card(results, baselines, separation).content
    assert "| fixed, 32 tokens" not in content
    (line,) = [line for line in content.splitlines() if line.startswith("Configured but not trained")]
    assert "fixed, 32 tokens" in line
    assert "fixed, 128 tokens" not in line


def test_baselines_of_different_images_are_refused(files):
    results, baselines, separation = copy.deepcopy(files)
    baselines["fixed-128"]["data"]["pixels_sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"`baselines` is \['fixed-128'\], .*measured on the images of `results`"):
        checkpoint_card(results, baselines, separation)


def test_predicted_lengths_are_shown_where_they_were_measured(files, tmp_path):
    numbers = {"kept": 0.934, "worst_threshold": 0.912, "tokens": 143.2, "ratio": 1.193}
    sets = {
        "data": {"num_images": 500, "confidences": {"0.9": numbers}},
        "shifted_data": {"num_images": 77, "confidences": {"0.9": {**numbers, "kept": 0.5}}},
    }
    (tmp_path / "results.json").write_text(json.dumps(files[0]))
    card = lambda: card_from_files(tmp_path / "results.json", tmp_path / "README.md").content  # noqa: E731
    assert "Predicted lengths" not in card()
    (tmp_path / "predicted-lengths").mkdir()
    (tmp_path / "predicted-lengths" / "results.json").write_text(json.dumps({"results": {"sets": sets}}))
    assert "| 0.9 | 500 like the calibration | 93.4% | 91.2% | 143 | 1.19 |" in card()
    assert "| 0.9 | 77 of another kind | 50.0% | 91.2% | 143 | 1.19 |" in card()


def test_a_run_of_make_model_gets_a_card_of_its_own(files, tmp_path):
    """From what its `alit evaluate` writes: one LPIPS network, no Fréchet distance, no baselines, figures there."""
    results = copy.deepcopy(files[0])
    results["settings"]["frechet"] = None
    measured = [*results["lengths"].values(), *results["thumbnail"].values(), *results["adaptive"]]
    files_of_codecs = [numbers for of_codec in results["fitting"].values() for numbers in of_codec.values()]
    codecs = [results[name] for name in CODECS if results[name] is not None]
    for numbers in (*measured, results["base"], *codecs, *files_of_codecs):
        numbers.pop("lpips_vgg", None)
        numbers.pop("frechet_efficientnet_lite0", None)
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = card_from_files(tmp_path / "results.json", tmp_path / "README.md").content
    assert "](results.png)" in text
    assert "alit evaluate --data eval-photos.parquet --lpips alex --output results.json" in text
    assert not [word for word in ("pretrained_path", "Fréchet", "Baselines", "vgg", "../docs/results") if word in text]
    assert '"path/to/this/folder"' in text
