"""Where images come from: files, folders, parquet files, tars and the Hub, in an order that is always the same."""

import io
import os
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import logged_in_hub
from huggingface_hub import HfApi
from PIL import Image
from tar_data import cut, member_ends, write_tar

from alit_hf.data.image_rows import open_rows
from alit_hf.data.images import check_columns, open_images


def save(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30), (number, 0, 0)).save(folder / name)


def picture(number):
    stream = io.BytesIO()
    Image.new("RGB", (20, 30 + number)).save(stream, "WEBP")
    return stream.getvalue()


def parquet(path, column="image", count=3):
    rows = [{"bytes": picture(number), "path": f"folder/{number}.webp"} for number in range(count)]
    datasets.Dataset.from_dict({column: rows, "label": ["x"] * count}).to_parquet(path)
    return str(path)


def numbers(path, count):
    table = pa.table({"image": pa.array(range(count), pa.int64())})
    pq.write_table(table, path)


def test_folders_and_files_in_order_without_hidden_ones(tmp_path):
    save(tmp_path, "b.png", "a.JPG", "sub/c.webp", ".hidden/d.png", ".e.png")
    (tmp_path / "notes.txt").write_text("no picture")
    images = open_images([str(tmp_path / "sub" / "c.webp"), str(tmp_path)])
    name = tmp_path.name
    names = [images.name(index) for index in range(len(images))]
    assert names == [f"{name}/sub/c.webp", f"{name}/a.JPG", f"{name}/b.png", f"{name}/sub/c.webp"]
    assert images.read(2).size == (20, 30)
    assert images.split is None
    assert images.passed_over == [
        f"{tmp_path}: 1 file was passed over, only pictures that Pillow reads, parquet files and tars are taken "
        "(.txt: 1)"
    ]


def test_names_that_are_not_utf8(tmp_path):
    save(tmp_path, "\udcff.png", "b\x1b.png")
    (tmp_path / "c\udcff.png").write_bytes(b"no picture")
    images = open_images([str(tmp_path)])
    assert [images.name(index) for index in range(3)] == [r"b\x1b.png", r"c\udcff.png", r"\udcff.png"]
    assert [images.read(index).width for index in (0, 2)] == [21, 20]
    with pytest.raises(ValueError, match="is not a picture") as error:
        images.read(1)
    reason = r"c\udcff.png is not a picture in a format that can be read"
    expected = {"index": 1, "image": r"c\udcff.png", "reason": reason}
    assert images.describe_failure(1, error.value) == expected


def test_parquet_files_whose_names_are_not_utf8(tmp_path):
    parquet(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").rename(tmp_path / "\udcff.parquet")
    assert open_images([str(tmp_path)]).name(1) == "row 1 (1.webp)"


def test_tars_whose_names_are_not_utf8(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1.webp": picture(1), "2.webp": picture(2)})
    path.rename(tmp_path / "\udcff.tar")
    assert open_images([str(tmp_path)]).name(0) == "row 0 (1.webp)"
    cut(tmp_path / "\udcff.tar", member_ends(tmp_path / "\udcff.tar")[1])
    assert open_images([str(tmp_path)]).damage[0].startswith(r"\udcff.tar is damaged, ")


def test_a_folder_with_metadata_must_have_a_utf8_name(tmp_path):
    save(tmp_path / "\udcff", "a.png")
    (tmp_path / "\udcff" / "metadata.csv").write_text("file_name,score\na.png,1\n")
    with pytest.raises(ValueError, match=r"\\udcff is not UTF-8, as it must be with a metadata file: rename it"):
        open_images([str(tmp_path / "\udcff")])


@pytest.mark.parametrize("as_folder", [False, True])
def test_rows_of_parquet_files(tmp_path, as_folder):
    path = parquet(tmp_path / "photos.parquet")
    images = open_images([str(tmp_path) if as_folder else path])
    assert len(images) == 3
    assert [images.read(index).size for index in range(3)] == [(20, 30), (20, 31), (20, 32)]
    assert images.name(1) == "row 1 (1.webp)"


def test_samples_of_tars(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"set [{number}].tar", "w") as archive:
            for name, content in ((f"{number}.webp", picture(number)), (f"{number}.txt", b"words")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    images = open_images([str(tmp_path)])
    assert [images.read(index).size for index in range(2)] == [(20, 30), (20, 31)]
    assert images.name(1) == "row 1 (1.webp)"
    assert sorted(images.column_names) == ["__key__", "txt"]


def test_a_folder_with_metadata_has_its_columns(tmp_path):
    save(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,score\nb.png,2\na.png,1\n")
    images = open_images([str(tmp_path)])
    assert list(images.column("score")) == [2, 1]
    assert [images.read(index).size for index in range(2)] == [(21, 30), (20, 30)]
    assert open_images([str(tmp_path)], columns=()).column_names == []


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_with_metadata_is_no_pattern_and_says_what_it_does_not_list(tmp_path, link):
    save(tmp_path / "set [a]", "a.png", "deeper/b.png", "unlisted.png")
    save(tmp_path / "set a", *[f"{number}.png" for number in range(9)])
    for folder, names in (("set [a]", ["deeper/b.png", "a.png"]), ("set a", ["8.png"])):
        (tmp_path / folder / "metadata.csv").write_text("\n".join(["file_name", *names]) + "\n")
    source = tmp_path / "set [a]"
    if link:
        (tmp_path / "link [b]").symlink_to(source)
        source = tmp_path / "link [b]"
    rows = open_rows([str(source)])
    assert rows.passed_over == [f"{source}: 1 image passed over, which the metadata file does not list"]
    table = next(rows.tables(0, 0, 9))
    assert rows.pictures_and_columns(table)[1]["file_name"].to_pylist() == ["deeper/b.png", "a.png"]
    assert [open_images([str(source)]).read(index).size for index in range(2)] == [(21, 30), (20, 30)]


def test_splits_are_not_looked_for_in_another_folder(tmp_path, monkeypatch):
    for folder in ("set [a]", "set a"):
        save(tmp_path / folder, "train/cat/1.png", "test/cat/2.png")
    with pytest.raises(ValueError, match=r"the split 'train' cannot be found in .*, whose path has one of \*\?\["):
        open_images([str(tmp_path / "set [a]")], "train")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("set a")
    for source in (str(tmp_path / "set a"), "set a", "link"):
        rows = open_rows([source], "train")
        assert rows.pictures_and_columns(next(rows.tables(0, 0, 9)))[1]["file_name"].to_pylist() == ["train/cat/1.png"]


def test_patterns_and_paths_in_packages(tmp_path):
    save(tmp_path, "1.png", "2.png", "[12].png")
    assert len(open_images([str(tmp_path / "?.png")])) == 2
    # What exists is no pattern.
    images = open_images([str(tmp_path / "[12].png")])
    assert [images.name(index) for index in range(len(images))] == ["[12].png"]
    assert open_images(["package://skimage/data/coffee.png"]).read(0).size == (600, 400)


def test_a_row_without_image_fails_alone(tmp_path):
    feature = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [None, Image.new("RGB", (5, 5))]}, features=feature)
    rows.to_parquet(tmp_path / "a.parquet")
    images = open_images([str(tmp_path / "a.parquet")])
    with pytest.raises(ValueError, match="the row has no picture"):
        images.read(0)
    assert images.read(1).size == (5, 5)


def test_a_cell_without_bytes_and_path_is_no_image(tmp_path):
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": None}]})
    cell = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    rows.cast(cell).to_parquet(tmp_path / "a.parquet")
    images = open_images([str(tmp_path / "a.parquet")])
    with pytest.raises(ValueError, match="the row has no picture"):
        images.read(0)


class TestClassLabels:
    def save(self, path, names, labels):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        pictures = [Image.new("RGB", (5, 5)) for _ in labels]
        datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features).to_parquet(path)
        return str(path)

    def test_are_read_as_names(self, tmp_path):
        path = self.save(tmp_path / "a.parquet", ["cat", "dog"], [1, 0, -1, None])
        assert list(open_images([path]).column("label")) == ["dog", "cat", None, None]

    def test_files_of_other_names_are_refused(self, tmp_path):
        names = [["cat", "dog"], ["dog", "cat"]]
        paths = [self.save(tmp_path / f"{n}.parquet", names[n], [0, 1]) for n in (0, 1)]
        with pytest.raises(ValueError, match=r"`label` are \['cat', 'dog'\] in .*0\.parquet, but \['dog', 'cat'\]"):
            open_images(paths)


@pytest.mark.parametrize(
    ("make", "sources", "message"),
    [
        (lambda folder: None, ["missing.png"], "missing.png does not exist"),
        (lambda folder: None, ["*.png"], r"\*\.png does not exist"),
        (lambda folder: None, ["someone/photo.png"], "someone/photo.png does not exist"),
        (lambda folder: None, ["package://no_such_package/a.png"], "the Python package no_such_package is not inst"),
        (lambda folder: (folder / "a.tar").write_bytes(b"x"), ["a.tar"], "a.tar: no images can be read"),
        (lambda folder: None, ["."], r"the folder \. holds no pictures and no parquet files"),
        (lambda folder: (save(folder, "b.png"), parquet(folder / "a.parquet")), ["."], "both parquet files and"),
        (lambda folder: (save(folder, "b.png"), (folder / "a.tar").touch()), ["."], "both pictures and tars"),
        (
            lambda folder: (folder / "a.parquet").write_bytes(b"x"),
            ["a.parquet"],
            "no images can be read: a.parquet: Parquet",
        ),
        (
            lambda folder: parquet(folder / "a.parquet", count=0),
            ["a.parquet"],
            "a.parquet has no pictures in its column `image`",
        ),
        (
            lambda folder: numbers(folder / "a.parquet", 2),
            ["a.parquet"],
            r"no pictures in its column `image`, .* \(int64\)",
        ),
        (lambda folder: numbers(folder / "a.parquet", 0), ["a.parquet"], "a.parquet"),
        (
            lambda folder: os.mkfifo(folder / "a.parquet"),
            ["a.parquet"],
            "a.parquet cannot be read: .* is a pipe, socket",
        ),
        (lambda folder: os.mkfifo(folder / "a.tar"), ["a.tar"], "a.tar cannot be read: .* is a pipe, socket"),
        (lambda folder: os.symlink("a.tar", folder / "a.tar"), ["."], "a.tar cannot be read: Too many levels"),
        (lambda folder: (folder / "a.heic").touch(), ["."], r"holds no pictures and .*; 1 file was .* \(\.heic: 1\)"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, make, sources, message):
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_images(sources)


def test_a_folder_has_the_splits_that_it_is_laid_out_in(tmp_path):
    save(tmp_path, "a.png")
    assert len(open_images([str(tmp_path)], "train")) == 1
    with pytest.raises(ValueError, match=r"the split 'test' does not exist, the data set .* has train"):
        open_images([str(tmp_path)], "test")


class TestHub:
    @pytest.fixture
    def splits(self, monkeypatch, tmp_path):
        """Puts splits on a Hub of the test's own."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        with logged_in_hub(monkeypatch) as server:
            monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
            monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
            HfApi().create_repo("tester/photos", repo_type="dataset")

            def add(split):
                content = Path(parquet(tmp_path / "rows.parquet", count=1)).read_bytes()
                name = f"{split}-00000-of-00001.parquet"
                HfApi().upload_file(
                    repo_id="tester/photos", repo_type="dataset", path_in_repo=name, path_or_fileobj=content
                )

            add("test")
            yield add

    def test_the_only_split_needs_no_name(self, splits):
        images = open_images(["tester/photos"])
        assert (images.sources, images.split, images.read(0).size) == (["tester/photos"], "test", (20, 30))

    def test_one_of_several_must_be_named(self, splits):
        splits("train")
        assert open_images(["tester/photos"], "train").split == "train"
        with pytest.raises(ValueError, match="no split is given, the data set tester/photos has train, test"):
            open_images(["tester/photos"])

    def test_unknown_split(self, splits):
        with pytest.raises(ValueError, match=r"the split 'val' does not exist, .* has test"):
            open_images(["tester/photos"], "val")

    def test_not_reachable(self):
        with pytest.raises(ValueError, match="nobody/nothing is no file or folder, and from the Hub it cannot be"):
            open_images(["nobody/nothing"])


class TestColumns:
    def test_values_by_name_in_the_order_of_the_images(self, tmp_path):
        rows = {"image": [Image.new("RGB", (5 + n, 5)) for n in range(3)], "score": [3.0, None, 1.5]}
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
        images = open_images([str(tmp_path / "a.parquet")])
        assert images.column_names == ["score"]
        assert list(images.column("score")) == [3.0, None, 1.5]
        check_columns(images, ["score"])
        with pytest.raises(ValueError, match=r"a\.parquet lacks the columns `label`; it has score"):
            check_columns(images, ["score", "label"])

    def test_files_have_none(self, tmp_path):
        save(tmp_path, "a.png")
        images = open_images([str(tmp_path)])
        assert images.column_names == []
        with pytest.raises(ValueError, match="lacks the columns `label`; it has none, as picture files"):
            check_columns(images, ["label"])
        with pytest.raises(KeyError):
            images.column("label")
