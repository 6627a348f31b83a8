"""Data sets come from others: what they name outside of themselves, on this machine or another, is not read."""

import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import logged_in_hub
from huggingface_hub import HfApi
from PIL import Image
from tar_data import write_tar

from alit_hf.data.image_rows import open_rows
from alit_hf.data.images import open_images
from alit_hf.data.picture_cells import fetch, read_picture


def png(width: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, 5)).save(stream, "PNG")
    return stream.getvalue()


SECRET, OWN = png(99), png(7)


@pytest.fixture
def listener():
    """A server on this machine with the secret; `.asked` has the paths of all requests."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def places(tmp_path, listener, monkeypatch) -> dict[str, str]:
    """A data set's folder with a picture of its own, and names of a picture outside."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "own.png").write_bytes(OWN)
    secret = tmp_path / "secret.png"
    secret.write_bytes(SECRET)
    (data / "link.png").symlink_to(secret)
    (data / "up").symlink_to(tmp_path)
    with fsspec.open("memory://secret.png", "wb") as file:
        file.write(SECRET)
    return {
        "absolute": str(secret),
        "in the working folder": "secret.png",
        "above": "../secret.png",
        "through the folder": f"{data}/../secret.png",
        "link": "link.png",
        "absolute link": str(data / "link.png"),
        "linked folder": "up/secret.png",
        "file address": f"file://{secret}",
        "local address": f"local://{secret}",
        "memory": "memory://secret.png",
        "chain": f"simplecache::file://{secret}",
        "zip": f"zip://own.png::file://{secret}",
        "web": f"http://127.0.0.1:{listener.server_port}/secret.png",
        "Hub": "hf://datasets/someone/private/secret.png",
        "no name": "a\0b",
    }


def write(path: Path, columns: dict[str, list[dict]], declared: bool = True) -> None:
    """A parquet file; `datasets` itself would put the files into it."""
    kind = datasets.Image() if declared else {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    schema = datasets.Features(dict.fromkeys(columns, kind)).arrow_schema
    pq.write_table(pa.table(columns, schema), path)


def widths(sources: list[str], **arguments) -> list[int | str]:
    """Of each picture its width, or why it is not read: the same by number and one after the other."""

    def width(cell, read) -> int | str:
        try:
            return read(cell).width
        except (ValueError, OSError) as error:
            return str(error)

    images, rows = open_images(sources, **arguments), open_rows(sources, **arguments)
    by_number = [width(index, images.read) for index in range(len(images))]
    streamed = [
        width(cell, lambda cell: read_picture(fetch(cell)))
        for part in range(rows.num_parts)
        for table in rows.tables(part, 0, 3)
        for cell in rows.pictures_and_columns(table)[0]
    ]
    assert streamed == by_number
    return by_number


@pytest.mark.parametrize("declared", [True, False])
def test_parquet_files_name_nothing_outside_their_folder(places, listener, declared):
    write(Path("data/a.parquet"), {"image": [{"bytes": None, "path": path} for path in places.values()]}, declared)
    reasons = dict(zip(places, widths(["data/a.parquet"]), strict=True))
    assert "No such file" in reasons.pop("in the working folder")  # it is one of the data's own that is missing
    assert set(reasons.values()) == {"it names a file or address outside the data, which is not read"}
    assert listener.asked == []


@pytest.mark.parametrize("declared", [True, False])
def test_what_parquet_files_hold_is_read_whatever_it_is_called(places, listener, declared):
    write(Path("data/a.parquet"), {"image": [{"bytes": OWN, "path": path} for path in places.values()]}, declared)
    assert set(widths(["data/a.parquet"])) == {7}
    assert listener.asked == []


def test_pictures_beside_a_parquet_file_are_read(places, tmp_path):
    inside = ["own.png", "./own.png", "../data/own.png", str(tmp_path / "data" / "own.png")]
    write(Path("data/a.parquet"), {"image": [{"bytes": None, "path": path} for path in inside]})
    assert widths(["data/a.parquet"]) == [7] * 4
    rows = open_rows(["data/a.parquet"])
    (table,) = rows.tables(0, 0, 8)
    assert set(rows.pictures_and_columns(table)[1]["file_name"].to_pylist()) == {"own.png"}


def test_names_in_a_tar_are_only_names(places, tmp_path):
    """`datasets` takes the file of that name instead, where there is one."""
    Path("data/own.png").write_bytes(SECRET)
    names = ["secret.png", str(tmp_path / "data" / ".." / "secret.png"), "data/../secret.png", "data/own.png"]
    assert all(map(os.path.isfile, names))
    write_tar(tmp_path / "a.tar", dict.fromkeys(names, OWN))
    assert widths(["a.tar"]) == [7] * 4


def test_metadata_names_nothing_outside_its_folder(places, listener):
    # A link in the folder is read as in any folder of pictures.
    for name in set(places) - {"link", "linked folder", "in the working folder", "no name"}:
        Path("data/metadata.jsonl").write_text(json.dumps({"file_name": places[name], "words": "x"}) + "\n")
        for open_as in (open_images, open_rows):
            with pytest.raises(ValueError, match="data: no images can be read: Invalid metadata file_name"):
                open_as(["data"])
    assert listener.asked == []
    Path("data/metadata.jsonl").write_text('{"file_name": "own.png", "words": "x"}\n')
    assert widths(["data"]) == [7]


def test_other_columns_of_pictures_are_not_decoded(places, listener):
    mask = [{"bytes": None, "path": path} for path in places.values()]
    write(Path("data/a.parquet"), {"image": [{"bytes": OWN, "path": None}] * len(mask), "mask": mask})
    images = open_images(["data/a.parquet"])
    assert [cell["bytes"] for cell in images.column("mask")] == [None] * len(mask)
    assert listener.asked == []


def test_other_columns_of_pictures_keep_no_folder_of_this_machine(places, tmp_path):
    Path("data/masks").mkdir()
    Path("data/masks/own.png").write_bytes(OWN)
    Path("data/metadata.jsonl").write_text('{"file_name": "own.png", "mask_file_name": "masks/own.png"}\n')
    rows = open_rows(["data"])
    (table,) = rows.tables(0, 0, 2)
    assert rows.pictures_and_columns(table)[1].to_pylist() == [
        {"file_name": "own.png", "mask": {"bytes": None, "path": "masks/own.png"}}
    ]
    assert str(tmp_path) not in str(open_images(["data"]).column("mask"))


def test_rows_of_the_hub_name_nothing(places, listener, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with logged_in_hub(monkeypatch) as server:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        HfApi().create_repo("tester/photos", repo_type="dataset")
        paths = [*places.values(), "own.png", "hf://datasets/tester/photos/own.png"]
        write(tmp_path / "a.parquet", {"image": [{"bytes": None, "path": path} for path in paths]})
        for name, content in (("a.parquet", (tmp_path / "a.parquet").read_bytes()), ("own.png", OWN)):
            HfApi().upload_file(
                repo_id="tester/photos", repo_type="dataset", path_in_repo=name, path_or_fileobj=content
            )
        assert set(widths(["tester/photos"])) == {"it names a file or address outside the data, which is not read"}
    assert listener.asked == []


def test_pictures_of_a_folder_on_the_hub_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with logged_in_hub(monkeypatch) as server:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        HfApi().create_repo("tester/photos", repo_type="dataset")
        for name in ("train/b.png", "train/a.png"):
            HfApi().upload_file(repo_id="tester/photos", repo_type="dataset", path_in_repo=name, path_or_fileobj=OWN)
        assert widths(["tester/photos"]) == [7, 7]
        images = open_images(["tester/photos"])
        assert [images.name(index) for index in range(2)] == ["row 0 (a.png)", "row 1 (b.png)"]
