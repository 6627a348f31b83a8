"""Which column has the pictures: the right one, or a sentence that says what columns there are."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tar_data import write_tar

from alit_hf.data.columns import ImageColumnError
from alit_hf.data.image_rows import open_rows
from alit_hf.data.images import open_images
from alit_hf.data.picture_cells import read_picture


def picture(width: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, 5)).save(stream, kind)
    return stream.getvalue()


def widths(path, image_column=None) -> tuple[str, list[int]]:
    """The column, and the width of each row's picture, by number and in order."""
    rows = open_rows([str(path)], image_column=image_column)
    (tables,) = [list(rows.tables(part, 0, 100)) for part in range(rows.num_parts)]
    streamed = [read_picture(cell).width for table in tables for cell in rows.pictures_and_columns(table)[0]]
    images = open_images([str(path)], image_column=image_column)
    assert [images.read(index).width for index in range(len(images))] == streamed
    return rows.image_column, streamed


class TestTars:
    @pytest.mark.parametrize("suffix", ["jpg", "JPG", "jpeg", "png", "webp", "avif", "gif", "tif", "bmp"])
    def test_any_suffix_of_pictures(self, tmp_path, suffix):
        content = picture(7, {"jpg": "JPEG", "JPG": "JPEG", "tif": "TIFF"}.get(suffix, suffix).upper())
        write_tar(tmp_path / "a.tar", {f"0.{suffix}": content, "0.cls": b"1"})
        assert widths(tmp_path / "a.tar") == (suffix, [7])
        assert widths(tmp_path / "a.tar", "image") == (suffix, [7])

    def test_suffixes_that_differ_are_one_column(self, tmp_path):
        suffixes = ["png", "jpg", "PNG", "png", "png", "webp", "jpg"]
        kinds = {"jpg": "JPEG", "webp": "WEBP"}
        members = {}
        for number, suffix in enumerate(suffixes):
            members[f"{number}.{suffix}"] = picture(7 + number, kinds.get(suffix, "PNG"))
            members[f"{number}.txt"] = b"words"
        write_tar(tmp_path / "a.tar", members)
        assert widths(tmp_path / "a.tar") == ("png", [7, 8, 9, 10, 11, 12, 13])
        rows = open_rows([str(tmp_path / "a.tar")])
        assert set(rows.features) == {"file_name", "__key__", "txt"}
        (table,) = rows.tables(0, 0, 10)
        names = rows.pictures_and_columns(table)[1]["file_name"].to_pylist()
        assert names == [f"{number}.{suffix}" for number, suffix in enumerate(suffixes)]

    def test_the_picture_and_what_belongs_to_it(self, tmp_path):
        array = io.BytesIO()
        np.save(array, np.zeros((2, 3)))
        members = {"0.depth.png": picture(99), "0.h5": b"features", "0.npy": array.getvalue(), "0.webp": picture(7)}
        write_tar(tmp_path / "a.tar", members)
        assert widths(tmp_path / "a.tar") == ("webp", [7])
        assert set(open_images([str(tmp_path)]).column_names) == {"__key__", "depth.png", "h5", "npy"}

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            (
                ["jpg", "png"],
                r"2 columns of pictures among `__key__` \(string\), .*`jpg` \(pictures\), .*`png` \(pict",
            ),
            (["left.png", "right.png"], r"2 columns of pictures among .*`left.png` \(pictures\)"),
            (["txt", "cls", "json"], r"no column `image`, and 0 columns of pictures among .*`cls` \(int64\)"),
        ],
    )
    def test_what_is_unclear_is_asked_for(self, tmp_path, members, message):
        contents = {"txt": b"words", "cls": b"3", "json": b'{"a": [1]}'}
        write_tar(tmp_path / "a.tar", {f"0.{name}": contents.get(name, picture(7)) for name in members})
        with pytest.raises(ImageColumnError, match=message):
            open_rows([str(tmp_path)])

    def test_a_column_can_be_named(self, tmp_path):
        write_tar(tmp_path / "a.tar", {"0.jpg": picture(7), "0.png": picture(8)})
        assert widths(tmp_path / "a.tar", "png") == ("png", [8])


NOT_PICTURES = {
    "int64": [0, 1],
    "string": ["cat", "photos/dog.png"],
    "double": [0.5, 1.0],
    "list<item: double>": [[0.5], [1.0, 2.0]],
    "list<item: list<item: double>>": [[[0.5]], [[1.0]]],
    "list<item: struct<bytes: binary, path: string>>": [[{"bytes": picture(7), "path": ""}], []],
    "struct<jpg: struct<bytes: binary": [{"jpg": {"bytes": picture(7), "path": ""}}] * 2,
    "struct<url: string": [{"url": "http://example.com/a.png"}] * 2,
    "bool": [True, False],
    "null": [None, None],
}


class TestParquetFiles:
    @pytest.fixture
    def write(self, tmp_path):
        def write(**columns):
            pq.write_table(pa.table(columns), tmp_path / "a.parquet")
            return tmp_path / "a.parquet"

        return write

    @pytest.mark.parametrize("kind", NOT_PICTURES)
    def test_an_image_column_without_pictures(self, write, kind):
        path = write(image=NOT_PICTURES[kind], label=[1, 2])
        with pytest.raises(ImageColumnError) as raised:
            open_rows([str(path)])
        assert "no pictures in its column `image`, and 0 columns of pictures among `image` (" in str(raised.value)
        assert kind[:20] in str(raised.value)
        assert "`label` (int64)" in str(raised.value)

    @pytest.mark.parametrize("kind", NOT_PICTURES)
    def test_the_pictures_are_in_another_column(self, write, kind):
        photo = [{"bytes": picture(7), "path": "a.png"}, {"bytes": picture(8), "path": "b.png"}]
        path = write(image=NOT_PICTURES[kind], photo=photo)
        assert widths(path) == ("photo", [7, 8])
        with pytest.raises(ImageColumnError, match="no pictures in its column `image`, and 1 columns of pictures"):
            open_rows([str(path)], image_column="image")

    @pytest.mark.parametrize("name", ["image", "jpg", "0", "a.b"])
    def test_bytes_are_pictures(self, write, name):
        contents = [picture(7), picture(8)]
        for column in (
            pa.array(contents, pa.binary()),
            pa.array(contents, pa.large_binary()),
            [{"bytes": content} for content in contents],
            [{"path": "x", "bytes": content, "size": 3} for content in contents],
        ):
            assert widths(write(**{name: column, "label": [1, 2]})) == (name, [7, 8])

    def test_pixels_are_pictures(self, write):
        flat, colored = np.zeros((3, 7), int).tolist(), np.zeros((3, 7, 3), int).tolist()
        for image in (flat, colored):
            assert widths(write(image=[image])) == ("image", [7])
        photo = {"bytes": picture(9), "path": "a.png"}
        assert widths(write(image=[[[1, 2, 3, 4]]], photo=[photo])) == ("photo", [9])
        rows = open_images([str(write(image=[flat, [[1, 2], [3]], flat]))])
        assert [rows.read(index).width for index in (0, 2)] == [7, 7]
        with pytest.raises(ValueError, match="its pixels make no picture"):
            rows.read(1)

    def test_many_columns_are_not_all_shown(self, write):
        with pytest.raises(ImageColumnError, match=r"among .*`c19` \(int64\) and 30 more$"):
            open_rows([str(write(**{f"c{number}": [1] for number in range(50)}))])
