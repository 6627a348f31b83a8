"""What can be tokenized: rows come whole, in their order, from any row on, and nothing is left out in silence."""

import io
import os
import tarfile
from pathlib import Path

import datasets
import fsspec
import pytest
from PIL import Image
from token_data import FEATURES, NUM_ROWS, png, write_parquet

from alit_hf.data.image_rows import ImageRows, open_rows
from alit_hf.data.picture_cells import CELL, fetch, read_picture


def save(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def read(rows: ImageRows, part: int = 0, first_row: int = 0) -> list[dict]:
    return [
        row for table in rows.tables(part, first_row, 2) for row in rows.pictures_and_columns(table)[1].to_pylist()
    ]


def names(rows: ImageRows, part: int = 0, first_row: int = 0) -> list[str]:
    return [row["file_name"] for row in read(rows, part, first_row)]


def test_a_folder_of_pictures(tmp_path):
    save(tmp_path, "b.png", "a.JPG", "train/c.webp", "test/d.png", ".hidden/e.png", ".f.png")
    (tmp_path / "notes.txt").write_text("no picture")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "link.png")
    rows = open_rows([str(tmp_path)])
    expected = ["a.JPG", "b.png", "link.png", "test/d.png", "train/c.webp"]
    assert (rows.num_parts, rows.num_rows, rows.split) == (1, 5, None)
    assert names(rows) == expected
    assert names(rows, first_row=3) == expected[3:]
    assert list(rows.features) == ["file_name"]
    cells = rows.pictures_and_columns(next(rows.tables(0, 1, 2)))[0]
    assert read_picture(cells[0]).size == Image.open(tmp_path / "b.png").size
    with pytest.raises(FileNotFoundError):
        read_picture(cells[1])


def test_names_of_pictures_are_stored_safely(tmp_path):
    save(tmp_path, "\udcff.png", "b\x1b[31m.png", "c\nd.png", "e\u202f.png")
    rows = open_rows([str(tmp_path)])
    assert names(rows) == [r"b\x1b[31m.png", r"c\nd.png", "e\u202f.png", r"\udcff.png"]
    cells = rows.pictures_and_columns(next(rows.tables(0, 3, 1)))[0]
    assert fetch(cells[0]) == cells[0]
    assert read_picture(cells[0]).size == Image.open(tmp_path / "\udcff.png").size
    assert list(rows.files) == sorted(str(path) for path in tmp_path.iterdir())


def test_a_folder_that_may_not_be_searched_is_named(tmp_path, monkeypatch):
    save(tmp_path, "a.png")

    exists, lstat = os.path.exists, os.lstat

    def refuse(path, **arguments):
        if str(path).endswith("a.png"):
            raise PermissionError(13, "Permission denied", path)
        return lstat(path, **arguments)

    monkeypatch.setattr(os, "lstat", refuse)
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).endswith("a.png") and exists(path))
    with pytest.raises(ValueError, match=f"the folder {tmp_path} cannot be read: Permission denied"):
        open_rows([str(tmp_path)])


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/home/someone/a.png", "a.png"), ("b/a.png", "b/a.png"), ("a\x1b.png", r"a\x1b.png"), (None, None)],
)
def test_paths_in_parquet_files_lose_the_folders_of_a_machine(tmp_path, path, expected):
    columns = {"image": [{"bytes": png(1), "path": path}]}
    feature = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": feature}))
    rows.to_parquet(tmp_path / "a.parquet")
    assert names(open_rows([str(tmp_path / "a.parquet")])) == [expected]


def test_several_sources_keep_their_names_apart(tmp_path):
    save(tmp_path, "one/a.png", "two/a.png", "b.png")
    rows = open_rows([str(tmp_path / name) for name in ("b.png", "two", "one")])
    assert names(rows) == ["b.png", "two/a.png", "one/a.png"]


def test_parquet_files_are_parts(parquet):
    rows = open_rows([str(parquet)])
    assert (rows.num_parts, rows.num_rows) == (2, sum(NUM_ROWS))
    assert list(rows.features) == ["file_name", *(name for name in FEATURES if name != "image")]
    assert names(rows, 0) == [f"{number}.png" for number in range(7)]
    assert names(rows, 1, 1) == ["8.png", "9.png", "10.png"]
    assert read(rows, 1)[1]["caption"] == "caption 8"


def test_a_folder_with_metadata_keeps_its_columns(tmp_path):
    save(tmp_path, "a/1.png", "b/2.png", "3.png")
    lines = [f'{{"file_name": "{name}", "words": "of {name}"}}\n' for name in ("b/2.png", "a/1.png")]
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    rows = open_rows([str(tmp_path)])
    assert read(rows) == [
        {"file_name": "b/2.png", "words": "of b/2.png"},
        {"file_name": "a/1.png", "words": "of a/1.png"},
    ]
    assert rows.split == "train"
    assert read_picture(rows.pictures_and_columns(next(rows.tables(0, 1, 1)))[0][0]).size == (40, 34)


def test_splits_of_a_folder_that_is_laid_out_as_a_data_set(tmp_path):
    for split, numbers in (("train", [1, 2]), ("test", [3])):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", numbers)
    rows = open_rows([str(tmp_path)], "test")
    assert (rows.split, names(rows)) == ("test", ["3.png"])
    assert open_rows([str(tmp_path)]).num_rows == 3
    with pytest.raises(ValueError, match=r"the split 'val' does not exist, the data set .* has train, test"):
        open_rows([str(tmp_path)], "val")


def test_tars_are_parts(tmp_path):
    for part, numbers in enumerate(([1, 2, 3], [4])):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as archive:
            for number in numbers:
                for name, content in ((f"{number}.cls", b"7"), (f"{number}.png", png(number))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    rows = open_rows([str(tmp_path)])
    assert (rows.num_parts, rows.num_rows, rows.image_column) == (2, None, "png")
    assert read(rows, 0, 1) == [
        {"file_name": "2.png", "cls": 7, "__key__": "2"},
        {"file_name": "3.png", "cls": 7, "__key__": "3"},
    ]
    assert names(rows, 1) == ["4.png"]
    assert read_picture(rows.pictures_and_columns(next(rows.tables(0, 1, 1)))[0][0]).size == (40, 36)


def test_the_only_column_of_pictures_needs_no_name(tmp_path):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    cell = {"bytes": png(1), "path": None}
    datasets.Dataset.from_dict({"img": [cell], "label": [7]}, features=features).to_parquet(tmp_path / "a.parquet")
    rows = open_rows([str(tmp_path / "a.parquet")])
    assert rows.image_column == "img"
    assert read(rows) == [{"file_name": None, "label": 7}]


def test_a_file_name_of_the_datas_own_stays(tmp_path):
    columns = {"image": [{"bytes": png(1), "path": "x.png"}], "file_name": ["mine"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    assert read(open_rows([str(tmp_path)])) == [{"file_name": "mine"}]


def test_fingerprints_follow_the_data(tmp_path, parquet):
    save(tmp_path, "a.png", "b.png")
    first = open_rows([str(tmp_path)]).fingerprint
    assert open_rows([str(tmp_path)]).fingerprint == first
    (tmp_path / "b.png").write_bytes(png(9))
    second = open_rows([str(tmp_path)]).fingerprint
    os.rename(tmp_path / "b.png", tmp_path / "c.png")
    third = open_rows([str(tmp_path)]).fingerprint
    assert len({first, second, third}) == 3
    assert open_rows([str(parquet)]).fingerprint == open_rows([str(parquet)]).fingerprint


def test_remote_pictures_are_fetched(tmp_path):
    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(png(1))
    nothing = dict.fromkeys(CELL)
    cell = {**nothing, "path": "memory://pictures/a.png"}
    assert fetch(cell) == {**cell, "bytes": png(1)}
    with pytest.raises(FileNotFoundError):
        fetch({**nothing, "path": "memory://pictures/b.png"})
    local = {**nothing, "path": str(tmp_path / "missing.png")}
    assert fetch(local) == local
    assert fetch(None) is None


@pytest.mark.parametrize("cell", [None, dict.fromkeys(CELL)])
def test_a_row_without_picture(cell):
    with pytest.raises(ValueError, match="the row has no picture"):
        read_picture(cell)


@pytest.mark.parametrize(
    ("make", "sources", "split", "message"),
    [
        (None, ["missing.png"], None, "missing.png does not exist"),
        (None, ["."], None, r"the folder \. holds no pictures and no parquet files"),
        (None, ["nobody/nothing"], None, "nobody/nothing is no file or folder, and from the Hub it cannot be"),
        (lambda: write_parquet("a.parquet", [1]), ["a.parquet"], "test", "'test' is given, but a.parquet has no spl"),
        (lambda: Path("a.parquet").write_bytes(b"x"), ["a.parquet"], None, "Parquet file size is 1 bytes"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, make, sources, split, message):
    monkeypatch.chdir(tmp_path)
    if make is not None:
        make()
    with pytest.raises(ValueError, match=message):
        open_rows(sources, split)


def test_kinds_that_do_not_go_together(tmp_path, parquet):
    save(tmp_path, "a.png")
    with pytest.raises(ValueError, match="holds both parquet files and pictures"):
        open_rows([str(tmp_path), str(parquet)])


@pytest.mark.parametrize(("columns", "count"), [({"a": [1]}, 0), ({"a": [png(1)], "b": [png(2)]}, 2)])
def test_no_column_of_pictures(tmp_path, columns, count):
    features = datasets.Features({name: datasets.Image() if count else datasets.Value("int64") for name in columns})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"no column `image`, and {count} columns of pictures among "):
        open_rows([str(tmp_path / "a.parquet")])
