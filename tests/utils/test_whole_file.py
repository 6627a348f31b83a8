"""Files that are written whole or not at all."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from alit_hf.utils.whole_file import unfinished_files, whole_file, write_json


def test_what_is_there_at_the_end_replaces_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
        assert unfinished.suffix == ".txt"
        assert unfinished_files(tmp_path) == [unfinished]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path):
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError


def test_an_exception_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_can_be(tmp_path):
    path = tmp_path / f"{'ä' * 125}.png"
    with whole_file(path) as unfinished:
        unfinished.write_text("x")
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_not_unfinished(tmp_path):
    for name in ("a.alit", ".hidden", ".alit"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".alit-folder").mkdir()
    assert unfinished_files(tmp_path) == []


def test_json_without_numbers_that_it_does_not_have(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"names": ["ä"], "value": 0.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"names": ["ä"], "value": 0.5}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["value"] == 0.5
    assert list(tmp_path.iterdir()) == [path]


def test_threads_do_not_write_to_the_same_unfinished_file(tmp_path):
    paths = [tmp_path / f"{name}{'x' * 60}.png" for name in "ab"]

    def write_inside(outer):
        with whole_file(paths[1]) as unfinished:
            assert unfinished != outer
            unfinished.write_text("b")

    with whole_file(paths[0]) as unfinished, ThreadPoolExecutor(1) as pool:
        unfinished.write_text("a")
        pool.submit(write_inside, unfinished).result()
    assert [path.read_text() for path in paths] == ["a", "b"]
