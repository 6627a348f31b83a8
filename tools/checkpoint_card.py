"""
Writes the card of the default model, and the numbers in the repository's README.md, from results files alone:

    python tools/checkpoint_card.py [--results RESULTS.json --card README.md]

It fills `model_cards/alit-mini.template.md` with the numbers of `docs/results/alit-mini.json` and of a file for each
baseline in the folder `baselines` beside it, all from `alit evaluate`, with those of `alit analyze lengths` in the
folder `predicted-lengths` beside it, and with the findings of `check_separation.py` in `docs/results/separation.json`.
`make model` uses it to write a card beside the results of its own run, and then README.md stays as it is.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData


# When run as a file, Python puts this folder on the path, not the one that contains the package `training`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alit_hf.evaluation.yardsticks import CODECS
from training.configuration import require
from training.hub.model_card import markdown_table


ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "model_cards" / "alit-mini.template.md"
CARD = ROOT / "model_cards" / "alit-mini.md"
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"

_SCORES = {
    "l1": ("L1", "{:.4f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips_alex": ("LPIPS alex", "{:.3f}"),
    "lpips_vgg": ("LPIPS vgg", "{:.3f}"),
    "frechet_efficientnet_lite0": ("Fréchet", "{:.1f}"),
    "codebook_usage": ("codes in use", "{:.1%}"),
    "codebook_perplexity": ("perplexity", "{:.0f}"),
}
_README_LENGTHS = ("32", "64", "128", "192", "256")
_BASELINES = {
    "fixed-32": "fixed, 32 tokens",
    "fixed-128": "fixed, 128 tokens",
    "fixed-256": "fixed, 256 tokens",
    "alit": "ALIT, trained as short",
    "halting-on": "ALIT, trained as short, halting on",
    "continuous": "ALIT, trained as short, continuous latents",
}


def checkpoint_card(
    results: dict,
    baselines: dict[str, dict],
    separation: dict,
    predicted: dict | None = None,
    figures: str = "../docs/results/alit-mini",
) -> ModelCard:
    """
    Builds the card.

    Args:
        results: what `alit evaluate` wrote for the checkpoint.
        baselines: the same for each trained baseline, by its name in `_BASELINES`.
        separation: what `check_separation.py` wrote.
        predicted: what `alit analyze lengths` wrote; None for a model without a length predictor.
        figures: path of the figures without their endings, relative to the card.
    """
    lengths = list(results["lengths"])
    model, data = results["model"], results["data"]
    ratios = [results["lengths"][one]["lpips_alex"] / results["thumbnail"][one]["lpips_alex"] for one in lengths]
    is_worse = [results["thumbnail"][one]["l1"] <= results["lengths"][one]["l1"] for one in lengths]
    packaged = figures.startswith("..")
    others = [name for name, one in baselines.items() if one["data"]["pixels_sha256"] != data["pixels_sha256"]]
    require(not others, "baselines", others, "measured on the images of `results`")
    frechet = results["settings"]["frechet"]
    command = f"alit evaluate --data {_data_name(results)}"
    if frechet:
        command += " --frechet efficientnet-lite0"
    lpips = [name for name in ("alex", "vgg") if f"lpips_{name}" in results["base"]]
    if len(lpips) == 1:
        command += f" --lpips {lpips[0]}"
    stem = figures.removeprefix("../")
    return ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="transformers",
            pipeline_tag="image-feature-extraction",
            tags=["alit", "image-tokenization", "adaptive-length"],
            metrics=["l1", "psnr", "ssim", "lpips"],
            model_name="alit-mini",
            eval_results=list(_eval_results(results)),
        ),
        template_path=str(TEMPLATE),
        image_size=model["image_size"][0],
        lengths=lengths,
        bits=math.ceil(math.log2(model["codebook_size"])),
        parameters=f"{model['parameters'] / 1e6:.1f}",
        num_images=data["num_images"],
        data=_data_name(results),
        crop=data["crop"],
        pixels_sha256=data["pixels_sha256"],
        fingerprint=model["fingerprint"],
        device=results["settings"]["device"],
        dtype=results["settings"]["dtype"],
        frechet_features=frechet["num_features"] if frechet else None,
        packaged=packaged,
        command=f"{command} --output {stem}.json \\\n  --figure {stem}.png",
        figures=figures,
        results_table=_results_table(results),
        thumbnail_wins=sum(is_worse),
        lpips_ratio_shortest=f"{ratios[0]:.0%}",
        lpips_ratio_longest=f"{ratios[-1]:.0%}",
        adaptive_table=_adaptive_table(results),
        baselines_table=_baselines_table(results, baselines) if baselines else None,
        untrained=[label for name, label in _BASELINES.items() if name not in baselines],
        worst_table=_worst_table(results),
        predicted_table=None if predicted is None else _predicted_table(predicted["results"]["sets"]),
        separation=f"the nearest differs in {separation['least_bits']} of 64 bits of a perceptual hash",
    )


def _data_name(results: dict) -> str:
    """The files' names without their folders, which differ between machines."""
    return ", ".join(Path(source).name for source in results["data"]["sources"])


def _eval_results(results: dict) -> Iterable[EvalResult]:
    for length, numbers in results["lengths"].items():
        for name in [name for name in ("l1", "psnr", "ssim", "lpips_alex", "lpips_vgg") if name in numbers]:
            yield EvalResult(
                task_type="image-feature-extraction",
                task_name="Image reconstruction",
                dataset_type="imagefolder",
                dataset_name=_data_name(results),
                metric_type=name.partition("_")[0],
                metric_name=f"{_SCORES[name][0]} at {length} tokens",
                metric_value=float(f"{numbers[name]:.4g}"),
            )


def _results_table(results: dict) -> str:
    columns = [name for name in _SCORES if name in results["base"]]
    rows = [(f"{length} tokens", numbers) for length, numbers in results["lengths"].items()]
    rows += [
        (f"L1 < {numbers['threshold']:g}: {numbers['mean_tokens']:.0f} tokens", numbers)
        for numbers in results["adaptive"]
    ]
    rows.append(("base tokenizer", results["base"]))
    rows += [(f"thumbnail {n['width']} × {n['height']}", n) for n in results["thumbnail"].values()]
    for name, codec in CODECS.items():
        if results[name] is not None:
            fitting = results["fitting"][name].items()
            rows += [(f"{codec.label} as small as {length} tokens", numbers) for length, numbers in fitting]
            rows.append((f"{codec.label} at its smallest", results[name]))
    return markdown_table(
        ["", "bytes", *(_SCORES[name][0] for name in columns)],
        [[label, f"{numbers['bytes']:.0f}", *(_cell(numbers, name) for name in columns)] for label, numbers in rows],
    )


def _adaptive_table(results: dict) -> str:
    rows = []
    for numbers in results["adaptive"]:
        by_length = {int(length): share for length, share in numbers["satisfied_by_length"].items()}
        longer = min(length for length in by_length if length >= numbers["mean_tokens"])
        longest = max(by_length)
        rows.append(
            [
                f"{numbers['threshold']:g}",
                f"{numbers['mean_tokens']:.1f}",
                f"{1 - numbers['satisfied']:.1%}",
                f"{1 - by_length[longer]:.1%} ({longer} tokens)",
                f"{1 - by_length[longest]:.1%} ({longest} tokens)",
            ]
        )
    return markdown_table(["threshold", "mean tokens", "adaptive", "next fixed length", "longest"], rows)


def _baselines_table(results: dict, baselines: dict[str, dict]) -> str:
    models = {"this checkpoint": results, **{_BASELINES[name]: baseline for name, baseline in baselines.items()}}
    rows = [
        [label, length, *(_cell(model["lengths"][length], score) for score in ("l1", "lpips_alex", "codebook_usage"))]
        for label, model in models.items()
        for length in ("32", "128", "256")
        if length in model["lengths"]
    ]
    return markdown_table(["", "tokens", "L1", "LPIPS alex", "codes in use"], rows)


def _predicted_table(sets: dict) -> str:
    """A row for each confidence and set of images."""
    names = {"data": "like the calibration", "shifted_data": "of another kind"}
    rows = [
        [
            confidence,
            f"{of_set['num_images']} {names[name]}",
            f"{numbers['kept']:.1%}",
            f"{numbers['worst_threshold']:.1%}",
            f"{numbers['tokens']:.0f}",
            f"{numbers['ratio']:.2f}",
        ]
        for name, of_set in sets.items()
        for confidence, numbers in of_set["confidences"].items()
    ]
    header = ["confidence", "images", "promise kept", "at the worst threshold", "mean tokens", "× exact search"]
    return markdown_table(header, rows)


def _worst_table(results: dict) -> str:
    rows = [[worst["image"], *(_cell(worst, name) for name in ("l1", "lpips_alex"))] for worst in results["worst"]]
    return markdown_table(["image", "L1", "LPIPS alex"], rows)


def _cell(numbers: dict, name: str) -> str:
    value = numbers.get(name)
    return "–" if value is None else _SCORES[name][1].format(value)


def readme_with_results(readme: str, results: dict) -> str:
    """README.md with what a picture costs, from `alit evaluate`'s results, between its two marks."""
    begin, end = "<!-- results: tools/checkpoint_card.py writes them -->", "<!-- end of results -->"
    require(readme.count(begin) == readme.count(end) == 1, "README.md", len(readme), f"text with {begin} and {end}")
    marked = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return marked.sub(lambda _: f"{begin}\n{_readme_results(results)}\n{end}", readme)


def _readme_results(results: dict) -> str:
    lengths, thumbnails, data = results["lengths"], results["thumbnail"], results["data"]
    height, width = results["model"]["image_size"]
    codecs = {name: codec for name, codec in CODECS.items() if name != "jpeg" and results[name] is not None}
    yardsticks = {"thumbnails": thumbnails}
    yardsticks |= {codec.label: results["fitting"][name] for name, codec in codecs.items()}
    rows = [
        [length, f"{lengths[length]['bytes']:.0f}", _pair(lengths[length])]
        + [_pair(of_one[length]) if length in of_one else "–" for of_one in yardsticks.values()]
        for length in _README_LENGTHS
        if length in lengths
    ]
    smallest = [
        f"{results[name]['bytes']:.0f} bytes in {codec.label} ({_pair(results[name])})"
        for name, codec in codecs.items()
    ]
    wins = {
        score: ", ".join(
            f"{label} at {_wins(lengths, of_one, score)} of {len(of_one)} lengths"
            for label, of_one in yardsticks.items()
            if of_one
        )
        for score in ("l1", "lpips_alex")
    }
    return "\n".join(
        [
            markdown_table(["tokens", "bytes", "ALIT", *yardsticks], rows),
            "",
            f"Mean L1 / LPIPS (AlexNet) of {data['num_images']} held-out photos of {width}×{height} pixels, lower is",
            "better. A dash: for some photos no file is so small.",
            "",
            "- For WebP and AVIF, as for thumbnails, a photo is reduced until it fits into the bytes.",
            f"- The smallest file of a photo that is not reduced takes {' and '.join(smallest)}.",
            "- Bytes are those of ALIT's ids, and of whole files of WebP and AVIF. An `.alit` file has 33 bytes more.",
            f"- L1 is lower than that of {wins['l1']}.",
            f"- LPIPS, which agrees better with eyes, is lower than that of {wins['lpips_alex']}.",
        ]
    )


def _pair(numbers: dict) -> str:
    return f"{numbers['l1']:.3f} / {numbers['lpips_alex']:.2f}"


def _wins(lengths: dict, yardstick: dict, score: str) -> int:
    return sum(lengths[length][score] < numbers[score] for length, numbers in yardstick.items())


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def card_from_files(results: Path = RESULTS / "alit-mini.json", card: Path = CARD) -> ModelCard:
    """The card of a results file, with those of the baselines beside it."""
    files = {name: results.parent / "baselines" / f"{name}.json" for name in _BASELINES}
    baselines = {name: _read(path) for name, path in files.items() if path.exists()}
    lengths = results.parent / "predicted-lengths" / "results.json"
    predicted = _read(lengths) if lengths.exists() else None
    figures = Path(os.path.relpath(results.with_suffix(""), card.parent)).as_posix()
    return checkpoint_card(_read(results), baselines, _read(RESULTS / "separation.json"), predicted, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "alit-mini.json", help="results of the model")
    parser.add_argument("--card", type=Path, default=CARD, help="the file to write")
    arguments = parser.parse_args()
    card_from_files(arguments.results, arguments.card).save(arguments.card)
    print(arguments.card)
    if arguments.card == CARD:
        readme = README.read_text(encoding="utf-8")
        README.write_text(readme_with_results(readme, _read(arguments.results)), encoding="utf-8")
        print(README)
