"""Files of a data set that are damaged: what is whole of them is read, and what is missing is said."""

import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from tar_data import cut, member_ends, samples, write_tar
from token_data import FEATURES, png, write_parquet

from alit_hf.data.image_rows import open_rows
from alit_hf.data.images import open_images
from alit_hf.data.picture_cells import read_picture


def parts(sources: list[Path]) -> list[tuple[list[str], list[str]]]:
    """For each part the names of its rows, and what is said of its damage; all other pictures can be decoded."""
    rows = open_rows(list(map(str, sources)))
    found = []
    for part in range(rows.num_parts):
        names, damage = [], []
        for table in rows.tables(part, 0, 2):
            cells, columns = rows.pictures_and_columns(table)
            for cell, name in zip(cells, columns["file_name"].to_pylist(), strict=True):
                if cell["damage"]:
                    damage.append(cell["damage"])
                    with pytest.raises(ValueError, match="is damaged"):
                        read_picture(cell)
                else:
                    read_picture(cell)
                    names.append(name)
        found.append((names, damage))
    return found


class TestTars:
    @pytest.fixture
    def tars(self, tmp_path) -> list[Path]:
        """The second one has samples 10 to 14, each a class and a picture."""
        return [write_tar(tmp_path / f"{n}.tar", samples(range(10 * n, 10 * n + 5))) for n in range(3)]

    @pytest.mark.parametrize(
        ("member", "offset", "whole"),
        [
            (4, 600, 2),  # within the class of the third sample
            (5, -700, 2),  # within its picture
            (5, 0, 3),  # behind it
            (5, -1, 3),  # within the padding behind it
            (4, 0, 2),  # between class and picture of it
            (5, 100, 3),  # within the next header
            (9, 0, 5),  # the end is missing and nothing else
            (9, 512, 5),
            (0, 100, 0),  # within the first header
        ],
    )
    def test_cut_anywhere(self, tars, member, offset, whole):
        end = 0 if member == 0 else member_ends(tars[1])[member]
        cut(tars[1], end + offset)
        before, (names, damage), after = parts(tars)
        assert names == [f"{number}.png" for number in range(10, 10 + whole)]
        assert before == ([f"{number:02d}.png" for number in range(5)], [])
        assert after == ([f"{number}.png" for number in range(20, 25)], [])
        if (member, offset) != (9, 512):  # one block of zeros is an end, if a short one
            (said,) = damage
            assert said.startswith(
                f"1.tar is damaged, what is behind its first {whole} rows cannot be read: unexpected"
            )

    def test_a_broken_header_is_not_taken_for_the_end(self, tars):
        content = bytearray(tars[1].read_bytes())
        start = member_ends(tars[1])[5]
        content[start : start + 64] = b"x" * 64
        tars[1].write_bytes(content)
        names, (said,) = parts(tars)[1]
        assert names == ["10.png", "11.png", "12.png"]
        assert said.endswith("(bad checksum)")

    def test_more_rows_than_a_batch(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", samples(range(32)) | {"99.cls": b"7"} | {"99.png": png(1)})
        cut(path, member_ends(path)[-2])
        ((names, damage),) = parts([path])
        assert len(names) == 32
        assert "its first 32 rows" in damage[0]

    def test_the_first_file_may_be_the_damaged_one(self, tars):
        cut(tars[0], 0)
        cut(tars[1], 100)
        assert [len(names) for names, _ in parts(tars)] == [0, 0, 5]
        cut(tars[2], member_ends(tars[2])[0])
        with pytest.raises(ValueError, match=r"no images can be read: 0\.tar: "):
            parts(tars)


class TestParquetFiles:
    @pytest.fixture
    def files(self, tmp_path) -> list[Path]:
        """The second one has rows 10 to 15 in groups of two."""
        for number in range(3):
            write_parquet(tmp_path / f"{number}.parquet", range(10 * number + 6, 10 * number + 12))
        table = pq.read_table(tmp_path / "1.parquet")
        pq.write_table(table, tmp_path / "1.parquet", row_group_size=2, compression="gzip")
        return [tmp_path / f"{number}.parquet" for number in range(3)]

    @pytest.mark.parametrize("size", [0, 1, 1000, -1, -30])
    def test_cut_anywhere(self, files, size):
        content = files[1].read_bytes()
        files[1].write_bytes(content[:size])
        before, (names, (said,)), after = parts(files)
        assert len(before[0]) == len(after[0]) == 6
        assert names == []
        assert said.startswith("1.parquet is damaged, no row of it can be read: ")

    def test_other_groups_of_rows_are_read(self, files):
        group = pq.read_metadata(files[1]).row_group(1).column(0)
        content = bytearray(files[1].read_bytes())
        middle = group.data_page_offset + group.total_compressed_size // 2
        content[middle : middle + 200] = np.random.default_rng(0).bytes(200)
        files[1].write_bytes(content)
        names, (said,) = parts(files)[1]
        assert names == ["16.png", "17.png", "20.png", "21.png"]
        assert said.startswith("1.parquet is damaged, 2 of its 6 rows cannot be read: ")

    def test_the_first_file_may_be_the_damaged_one(self, files):
        cut(files[0], 100)
        assert [len(names) for names, _ in parts(files)] == [0, 6, 6]
        rows = open_rows([str(file) for file in files])
        assert list(rows.features) == ["file_name", *(name for name in FEATURES if name != "image")]
        assert rows.num_rows == 12

    def test_other_columns_are_no_damage(self, files):
        datasets.Dataset.from_parquet(str(files[2])).remove_columns("caption").to_parquet(files[2])
        with pytest.raises(ValueError, match=r"2\.parquet has the columns image, label, .*, but the data have image"):
            open_rows([str(files[0].parent)])


def test_by_number_there_are_only_whole_rows(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", samples(range(10 * number, 10 * number + 3)))
    content = (tmp_path / "0.tar").read_bytes()
    cut(tmp_path / "0.tar", member_ends(tmp_path / "0.tar")[3] + 700)
    for _ in range(2):  # the second time from the cache
        images = open_images([str(tmp_path)])
        assert [images.name(index) for index in range(len(images))] == [
            "row 0 (00.png)",
            "row 1 (01.png)",
            "row 2 (10.png)",
            "row 3 (11.png)",
            "row 4 (12.png)",
        ]
        assert list(images.column("cls")) == [7] * 5
        (damage,) = images.damage
        assert damage.startswith("0.tar is damaged, what is behind its first 2 rows cannot be read")
        assert pickle.loads(pickle.dumps(images)).read(4).size == (40, 36)
    (tmp_path / "0.tar").write_bytes(content)
    repaired = open_images([str(tmp_path)])
    assert (len(repaired), repaired.damage) == (6, [])


def test_a_connection_that_fails_is_no_damage(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", samples(range(3)))
    rows = open_rows([str(tmp_path)])

    def fail(*args):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("tarfile.ExFileObject.read", fail)
    with pytest.raises(ConnectionError):
        list(rows.tables(0, 0, 2))
