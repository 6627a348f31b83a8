"""Which columns beside the pictures' are kept, and how many rows are read."""

import io
import json

import datasets
import pytest
from PIL import Image
from tar_data import cut, member_ends, samples, write_tar
from token_data import png, write_parquet

from alit_hf.data.image_rows import open_rows
from alit_hf.data.images import Images, open_images


def save(path, label_names=("a", "b"), **columns) -> None:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(label_names))}
    rows = {"image": [{"bytes": png(1), "path": "1.png"}], "label": [0], **columns}
    features |= {name: datasets.Value("string") for name in columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)


def test_they_stand_in_the_order_of_the_data_with_their_types(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(3))
    rows = open_rows([str(tmp_path)], columns=["boxes", "label"])
    assert list(rows.features) == ["file_name", "label", "boxes"]
    assert rows.kept_columns == ["label", "boxes"]
    assert rows.features["label"] == datasets.ClassLabel(names=["cat", "dog"])
    table = rows.pictures_and_columns(next(rows.tables(0, 1, 2)))[1]
    assert table.to_pylist()[1] == {"file_name": "2.png", "label": 0, "boxes": [[2.0, 0.5], [2.0, 0.5]]}
    assert open_images([str(tmp_path)], columns=["caption"]).column("caption") == [
        "caption 0",
        "caption 1",
        "caption 2",
    ]


def test_all_of_them_are_the_same_as_no_choice(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(3))
    everything = open_rows([str(tmp_path)], columns=["label", "caption", "boxes", "mask"])
    assert everything.kept_columns is open_rows([str(tmp_path)]).kept_columns is None
    assert open_rows([str(tmp_path)], columns=[]).kept_columns == []


def test_a_column_of_names_is_kept_like_any_other(tmp_path):
    save(tmp_path / "a.parquet", file_name=["mine"])
    for columns, expected in ((["file_name"], "mine"), (["label"], "1.png"), (None, "mine")):
        rows = open_rows([str(tmp_path)], columns=columns)
        table = rows.pictures_and_columns(next(rows.tables(0, 0, 1)))[1]
        assert table["file_name"].to_pylist() == [expected]


def test_files_may_differ_in_what_is_left_out(tmp_path):
    save(tmp_path / "a.parquet", words=["x"])
    save(tmp_path / "b.parquet", other=["y"])
    assert open_rows([str(tmp_path)], columns=["label"]).num_rows == 2
    for columns in (None, ["words"]):
        with pytest.raises(ValueError, match=r"b\.parquet has the columns image, label, other, but the data"):
            open_rows([str(tmp_path)], columns=columns)


def test_classes_of_files_of_one_name_are_compared(tmp_path):
    save(tmp_path / "one" / "a.parquet")
    save(tmp_path / "two" / "a.parquet", ("b", "a"))
    sources = [str(tmp_path / folder / "a.parquet") for folder in ("one", "two")]
    with pytest.raises(ValueError, match="the classes of `label` are"):
        open_rows(sources, columns=["label"])
    assert open_rows(sources, columns=[]).num_rows == 2


def test_pictures_in_a_column_that_is_left_out_are_not_unlisted(tmp_path):
    for number, name in enumerate(["a.png", "depth.png", "unlisted.png"]):
        (tmp_path / name).write_bytes(png(number))
    line = {"file_name": "a.png", "depth_file_name": "depth.png", "words": "x"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    rows = open_rows([str(tmp_path)], image_column="image", columns=["words"])
    assert list(rows.features) == ["file_name", "words"]
    assert rows.passed_over == [f"{tmp_path}: 1 image passed over, which the metadata file does not list"]
    stream = io.BytesIO()
    open_images([str(tmp_path)], image_column="depth").read(0).save(stream, "PNG")
    assert Image.open(stream).size == Image.open(tmp_path / "depth.png").size


def test_only_the_first_rows_are_read(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", samples(range(10 * number, 10 * number + 4)))
    cut(tmp_path / "0.tar", member_ends(tmp_path / "0.tar")[4] + 600)  # two whole samples
    rows = open_rows([str(tmp_path)])
    (tmp_path / "2.tar").unlink()
    for first, damaged in ((2, 0), (3, 1), (6, 1)):
        images = Images(rows, first)
        expected = ["00.png", "01.png", "10.png", "11.png", "12.png", "13.png"][:first]
        assert [images.name(index) for index in range(len(images))] == [
            f"row {number} ({name})" for number, name in enumerate(expected)
        ]
        assert len(images.damage) == damaged
    with pytest.raises(ValueError, match="no images can be read"):
        Images(rows, 7)
    with pytest.raises(ValueError, match="no images can be read"):
        Images(rows)


def test_only_the_first_picture_files_are_taken(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    images = Images(open_rows([str(tmp_path)]), 2)
    assert [images.name(index) for index in range(len(images))] == ["0.png", "1.png"]
