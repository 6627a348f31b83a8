"""`tokenize`, `evaluate` and `analyze` take the same sources, and get the same of the same pictures."""

import json
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
from huggingface_hub import HfApi
from lively_model import lively_model
from tar_data import write_tar
from token_data import png

from alit_hf import ALITImageProcessor


NUMBERS = range(12)
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "small": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "caption": datasets.Value("string"),
        "score": datasets.Value("float32"),
    }
)
CARD = """---
configs:
- config_name: pictures
  data_files:
  - {split: train, path: pictures/train-*.parquet}
  - {split: test, path: pictures/test-*.parquet}
- config_name: others
  data_files: others.parquet
---
"""


def columns(numbers) -> dict[str, list]:
    cells = [{"bytes": png(number), "path": f"{number:02d}.png"} for number in numbers]
    return {
        "image": cells,
        "small": [{"bytes": png(number + 50), "path": None} for number in numbers],
        "label": [number % 2 for number in numbers],
        "caption": [f"caption {number}" for number in numbers],
        "score": [0.5 for number in numbers],
    }


def write_parquet(path: Path, numbers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns(numbers), features=FEATURES).to_parquet(path)


class Source(NamedTuple):
    """The names of data, the options that say what of it is meant, and which columns have label and caption."""

    data: list[str]
    options: list[str]
    label: str = "label"
    caption: str = "caption"


@pytest.fixture
def sources(tmp_path, hub) -> dict[str, Source]:
    """The same pictures, with a label and a caption each, in every kind of source."""
    for number in NUMBERS:
        path = tmp_path / "folder" / "sub" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    lines = [
        json.dumps({"file_name": f"sub/{number:02d}.png", "label": number % 2, "caption": f"caption {number}"})
        for number in NUMBERS
    ]
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "tars").mkdir()
    for tar, numbers in enumerate((NUMBERS[:5], NUMBERS[5:])):
        members = {}
        for number in numbers:
            members |= {f"{number:02d}.cls": b"%d" % (number % 2), f"{number:02d}.png": png(number)}
            members |= {f"{number:02d}.txt": f"caption {number}".encode()}
        write_tar(tmp_path / "tars" / f"{tar}.tar", members)
    for folder in (tmp_path / "parquet", tmp_path / "hub" / "pictures"):
        write_parquet(folder / "test-00000-of-00002.parquet", NUMBERS[:7])
        write_parquet(folder / "test-00001-of-00002.parquet", NUMBERS[7:])
    write_parquet(tmp_path / "hub" / "pictures" / "train-00000-of-00001.parquet", [20, 21])
    write_parquet(tmp_path / "hub" / "others.parquet", [22])
    (tmp_path / "hub" / "README.md").write_text(CARD)
    HfApi().create_repo("tester/photos", repo_type="dataset")
    HfApi().upload_folder(repo_id="tester/photos", folder_path=tmp_path / "hub", repo_type="dataset")
    which = ["--config-name", "pictures", "--split", "test"]
    return {
        "folder": Source([str(tmp_path / "folder")], []),
        "pattern": Source([str(tmp_path / "fold*")], []),
        "tars": Source([str(tmp_path / "tars")], [], "cls", "txt"),
        "parquet": Source([str(tmp_path / "parquet")], ["--image-column", "image"]),
        "data set in a folder": Source([str(tmp_path / "hub")], [*which, "--image-column", "image"]),
        "hub": Source(["tester/photos"], [*which, "--image-column", "image"]),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "lively"
    model = lively_model()
    model.save_pretrained(folder)
    ALITImageProcessor.for_config(model.config).save_pretrained(folder)
    return str(folder)


def load(folder: Path, split: str) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split=split, cache_dir=str(folder.parent / "datasets"))


def test_tokens_are_the_same_up_to_order_and_names(alit, sources, model, tmp_path):
    found = {}
    for kind, (data, options, label, caption) in sources.items():
        out = tmp_path / "out" / kind
        keep = ["--keep", f"{label},{caption}"]
        result = alit("tokenize", *data, *options, *keep, "-o", out, "--model", model, "--threshold", 0.34)
        assert result.code == 0, (kind, result.err)
        codes = load(out, "test" if "--split" in options else "train")
        assert codes.column_names[1:3] == [name for name in codes.column_names if name in (label, caption)], kind
        assert codes.column_names[3:] == ["token_ids", "num_tokens", "score", "original_size"], kind
        tokens = ("token_ids", "num_tokens", "score", "original_size")
        found[kind] = sorted([row[caption], row[label], *(row[name] for name in tokens)] for row in codes)
        if "--image-column" in options:
            assert codes.features["label"] == FEATURES["label"]
    first = found.pop("folder")
    assert [row[0] for row in first] == sorted(f"caption {number}" for number in NUMBERS)
    assert len({row[3] for row in first}) > 1
    assert {kind for kind, rows in found.items() if rows != first} == set()


def test_evaluations_are_the_same(alit, sources, model, tmp_path):
    found = {}
    for kind in ("folder", "tars", "hub"):
        data, options = sources[kind][:2]
        arguments = ["--data", *data, *options, "--model", model, "--lpips", "none", "--thresholds", "0.34"]
        result = alit("evaluate", *arguments, "--output", tmp_path / "r.json")
        assert result.code == 0, (kind, result.err)
        results = json.loads((tmp_path / "r.json").read_text())
        found[kind] = [results["data"]["pixels_sha256"], results["lengths"]["8"]["l1"]]
        expected = {"folder": (None, "train"), "tars": (None, None), "hub": ("pictures", "test")}[kind]
        assert (results["data"]["config_name"], results["data"]["split"]) == expected
    assert found["folder"] == found["tars"] == found["hub"]


def test_only_what_is_used_is_fetched(alit, sources, hub, model, tmp_path):
    data, options = sources["hub"][:2]
    common = ["--data", *data, *options, "--model", model, "--limit", 3]

    def second_file_was_read(*arguments) -> bool:
        # Opening reads the end of each file once; reading its rows asks for it again.
        hub.requests.clear()
        result = alit(*arguments)
        assert result.code == 0, result.err
        return len([request for request in hub.requests if "GET" in request and "test-00001" in request]) > 1

    assert not second_file_was_read("evaluate", *common, "--lpips", "none", "--output", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["data"]["num_images"] == 3
    streamed = tmp_path / "streamed"
    assert not second_file_was_read("analyze", "thresholds", *common, "--streaming", "--output", streamed)
    described = json.loads((streamed / "results.json").read_text())["data"]["data"]
    assert (described["available"], described["num_images"], described["config_name"]) == (3, 3, "pictures")
    assert second_file_was_read("analyze", "thresholds", *common, "--output", tmp_path / "drawn")
    described = json.loads((tmp_path / "drawn" / "results.json").read_text())["data"]["data"]
    assert (described["available"], described["num_images"]) == (12, 3)


def test_each_data_set_of_an_analysis_has_its_own_options(alit, sources, model, tmp_path):
    which = [f"--unfamiliar-{option[2:]}" if option[:2] == "--" else option for option in sources["hub"].options]
    arguments = ["--data", *sources["tars"].data, "--unfamiliar-data", "tester/photos", *which]
    result = alit("analyze", "familiarity", *arguments, "--model", model, "--limit", 4, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    described = json.loads((tmp_path / "out" / "results.json").read_text())["data"]["unfamiliar_data"]
    assert (described["config_name"], described["split"], described["num_images"]) == ("pictures", "test", 4)


HUB = ["tester/photos", "--config-name", "pictures", "--split", "test", "--image-column", "image"]


REFUSED = [
    (["tester/photos"], "Please pick one among the available configs: ['pictures', 'others']"),
    (["tester/photos", "--config-name", "none"], "'none' not found"),
    (HUB[:3], "no split is given, the data set tester/photos has train, test"),
    (
        [*HUB[:-1], "mask"],
        "no column `mask`, and 2 columns of pictures among `image` (pictures), `small` (pictures)",
    ),
    ([*HUB, "--keep", "labels"], "no column `labels` beside its pictures, it has `file_name`, `small`, `label`, "),
    ([*HUB, "--keep", "label,image"], "has no column `image` beside its pictures"),
    ([*HUB, "--keep", "label,score"], "the data have the columns score, which the tokens need"),
    (HUB, "the data have the columns score, which the tokens need: rename them, or keep only others"),
    ([*HUB, "--keep", "label,label"], "--keep: it is 'label,label', nothing may occur twice"),
    ([*HUB, "--keep", "label,"], "--keep: it is '', it must be a name"),
    (["FOLDER/folder/sub", "--keep", "label"], "no column `label` beside its pictures, it has `file_name`"),
    (["FOLDER/folder/sub", "--image-column", "image"], "the image column 'image' is given, but"),
    (["FOLDER/tars", "--config-name", "a"], "BuilderConfig 'a' not found"),
    (["FOLDER/tars/0.tar", "--config-name", "a"], "0.tar has no configurations, data sets have them"),
    (["FOLDER/tars", "--keep", "label"], "no column `label` beside its pictures, it has `file_name`, `cls`, "),
]


def test_wrong_use_is_refused_before_any_work(alit, sources, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("alit_hf.cli.loading.load_model", None)
    for arguments, message in REFUSED:
        arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
        result = alit("tokenize", *arguments, "-o", "tester/codes", "--num-tokens", 4)
        assert (result.code, result.out, len(result.errors)) == (2, "", 1), arguments
        assert message in result.errors[0]
    assert set(hub.repos) == {"datasets/tester/photos"}


def test_the_keys_of_a_tar_can_be_kept(alit, sources, model, tmp_path):
    arguments = [*sources["tars"].data, "--keep", "__key__", "--model", model, "--num-tokens", 4]
    assert alit("tokenize", *arguments, "-o", tmp_path / "out").code == 0
    codes = load(tmp_path / "out", "train")
    assert codes.column_names[:3] == ["file_name", "__key__", "token_ids"]
    assert codes["__key__"][:] == [f"{number:02d}" for number in NUMBERS]


def test_names_of_pictures_are_always_kept(alit, sources, model, tmp_path):
    arguments = [*sources["folder"].data, "--keep", "file_name", "--model", model, "--num-tokens", 4]
    assert alit("tokenize", *arguments, "-o", tmp_path / "out").code == 0
    codes = load(tmp_path / "out", "train")
    assert codes.column_names[:2] == ["file_name", "token_ids"]
    assert codes["file_name"][:] == [f"sub/{number:02d}.png" for number in NUMBERS]


def test_another_choice_of_columns_is_another_run(alit, sources, model, tmp_path):
    common = [
        *sources["hub"].data,
        *sources["hub"].options,
        "--model",
        model,
        "--num-tokens",
        4,
        "-o",
        tmp_path / "out",
    ]
    common += ["--rows-per-shard", 3]
    assert alit("tokenize", *common, "--keep", "caption,label").code == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()}
    (tmp_path / "out" / "data" / "test-00000-00001.parquet").unlink()
    result = alit("tokenize", *common, "--keep", "caption")
    assert (result.code, result.out) == (2, "")
    expected = "kept_columns was ['label', 'caption'] and is now ['caption']: choose another output, or delete it"
    assert expected in result.errors[0]
    # In another order they are the same columns, as they stand in the order of the data.
    assert alit("tokenize", *common, "--keep", "label,caption").code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()} == whole
    assert "Of the other columns of the data, whose terms apply, it has `label`, `caption`." in " ".join(
        (tmp_path / "out" / "README.md").read_text().split()
    )
