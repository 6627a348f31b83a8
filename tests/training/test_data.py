import io
import itertools
import logging
import os
import tarfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tar_data import cut, member_ends

from alit_hf.data.images import Images
from training.configuration import DataConfig
from training.images.batches import (
    BatchSplit,
    StreamedImages,
    TrainingImages,
    UndecodableImagesError,
    center_crop,
    check_undecodable,
    load_validation,
    open_source,
    random_crop,
    training_batches,
)


def data_config(source, **kwargs) -> DataConfig:
    return DataConfig(train=[str(source)], image_size=16, **{"crop_scale": 0.75, **kwargs})


def one_rank(batch_size: int = 4) -> BatchSplit:
    return BatchSplit(batch_size=batch_size, micro_batch_size=batch_size, rank=0, num_ranks=1)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shades(tmp_path):
    """A folder of 12 pictures of one shade each, by which they can be told apart."""
    folder = tmp_path / "shades"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.png").write_bytes(png(20 * number))
    return folder


@pytest.fixture
def tars(tmp_path):
    """Four webdataset tars of six pictures, each of a shade of its own."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(6):
                content = png(10 * (6 * shard + number))
                member = tarfile.TarInfo(f"{shard}{number}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def shades_of(batches) -> list[int]:
    return [int(pixels[0, 0, 0]) for batch in batches for pixels in batch["pixel_values"]]


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_epoch_has_every_image_once_in_an_order_of_its_own(shades, in_memory):
    images = TrainingImages(data_config(shades, in_memory=in_memory), seed=0)
    first, second = ([int(images[epoch * 12 + n]["pixel_values"][0, 0, 0]) for n in range(12)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == [20 * number for number in range(12)]
    assert first != second
    assert first != sorted(first)


def test_position_and_seed_determine_the_crop(photo_folder):
    images = TrainingImages(data_config(photo_folder), seed=0)
    again = TrainingImages(data_config(photo_folder), seed=0)
    assert torch.equal(images[5]["pixel_values"], again[5]["pixel_values"])
    other = TrainingImages(data_config(photo_folder), seed=1)
    assert not torch.equal(images[5]["pixel_values"], other[5]["pixel_values"])


def test_a_later_start_goes_on_where_the_other_left(shades):
    images = TrainingImages(data_config(shades), seed=0)
    full, late = (
        list(itertools.islice(training_batches(images.config, images, 0, one_rank(), first, False), count))
        for first, count in ((0, 8), (5, 3))
    )
    for one, two in zip(full[5:], late, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"])


def test_ranks_and_micro_batches_share_the_same_step(shades):
    images = TrainingImages(data_config(shades), seed=0)
    (whole,) = itertools.islice(training_batches(images.config, images, 0, one_rank(), 2, False), 1)
    parts = []
    for rank in range(2):
        split = BatchSplit(batch_size=4, micro_batch_size=1, rank=rank, num_ranks=2)
        assert split.micro_batches == 2
        parts += itertools.islice(training_batches(images.config, images, 0, split, 2, False), 2)
    together = torch.cat([part["pixel_values"] for part in parts])
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, whole["pixel_values"].numpy()))


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match=r"`optimization.batch_size` is 6"):
        BatchSplit(batch_size=6, micro_batch_size=2, rank=0, num_ranks=2)
    with pytest.raises(ValueError, match=r"`optimization.batch_size` is 1"):
        BatchSplit(batch_size=1, micro_batch_size=0, rank=0, num_ranks=2)


def test_crops_are_random_in_place_scale_and_side():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (48, 64, 3))
    picture = Image.fromarray(np.ascontiguousarray(ramp))
    config = DataConfig(train=["x"], crop_scale=0.5)
    rows = np.stack([random_crop(picture, (16, 16), config, (0, n))[8, :, 0].astype(int) for n in range(64)])
    mirrored = rows[:, 0] > rows[:, -1]
    assert 16 < mirrored.sum() < 48
    span = np.abs(rows[:, -1] - rows[:, 0])  # a crop's side in source pixels, less one target pixel
    assert span.min() >= 20
    assert span.max() <= 46
    assert span.max() - span.min() > 10
    assert len(np.unique(rows[~mirrored, 0])) > 10
    config = DataConfig(flip=False)
    unmirrored = np.stack([random_crop(picture, (16, 16), config, (0, n))[8] for n in range(32)])
    assert (unmirrored[:, 0] <= unmirrored[:, -1]).all()


def places(width: int, height: int) -> Image.Image:
    """A picture that says of each pixel where it is: red from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", [(16, 48), (48, 16), (24, 32)])
@pytest.mark.parametrize("shape", [(240, 100), (100, 240), (160, 120)])
def test_crops_of_any_aspect_ratio_are_as_large_as_they_can_be_and_not_distorted(size, shape):
    picture, (height, width) = places(*shape), size
    largest = min(shape[1], shape[0] * height / width)
    config = DataConfig(train=["x"], crop_scale=0.5, flip=False)
    scales = []
    for number in range(20):
        crop = random_crop(picture, size, config, (0, number)).astype(float)
        assert crop.shape == (height, width, 3)
        right = (crop[4, -5, 0] - crop[4, 4, 0]) / (width - 9)
        down = (crop[-5, 4, 1] - crop[4, 4, 1]) / (height - 9)
        assert right == pytest.approx(down, abs=0.35)
        scales.append(down * height / largest)
    assert 0.45 < min(scales) < 0.65
    assert 0.85 < max(scales) < 1.05
    whole = center_crop(picture, size).astype(float)
    assert whole.shape == (height, width, 3)
    assert whole[:, :, 0].mean() == pytest.approx((shape[0] - 1) / 2, abs=1)
    assert whole[:, :, 1].mean() == pytest.approx((shape[1] - 1) / 2, abs=1)
    assert (whole[-5, 4, 1] - whole[4, 4, 1]) / (height - 9) * height == pytest.approx(largest, abs=4)


@pytest.fixture
def shapes(tmp_path):
    """A folder of six wide, four square and five tall pictures, the last tall one by its EXIF orientation only."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for number, size in enumerate([(48, 24)] * 6 + [(32, 34)] * 4 + [(24, 48)] * 4 + [(48, 24)]):
        picture = Image.new("RGB", size, (16 * number,) * 3)
        exif = picture.getexif()
        if number == 14:
            exif[ExifTags.Base.Orientation] = 6
        picture.save(folder / f"{number:02d}.jpg", exif=exif, quality=95)
    return folder


BUCKETS = {"buckets": [16, [16, 32], [32, 16]], "crop_scale": 1.0}


def names_of(batch: dict) -> list[int]:
    return [round(float(pixels.float().mean()) / 16) for pixels in batch["pixel_values"]]


@pytest.mark.parametrize("in_memory", [False, True])
def test_each_batch_has_the_size_of_its_images(shapes, in_memory, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        if not in_memory:  # what is not kept need not be decoded to be measured
            monkeypatch.setattr(Images, "read", Mock(side_effect=AssertionError))
        images = TrainingImages(data_config(shapes, in_memory=in_memory, **BUCKETS), seed=0, batch_size=4)
        monkeypatch.undo()
    assert "16x16 has 4 images, 16x32 has 6 images, 32x16 has 5 images" in caplog.text
    batches = itertools.islice(training_batches(images.config, images, 0, one_rank(), 0, False), 15)
    found = {}
    for batch in batches:
        found.setdefault(tuple(batch["pixel_values"].shape[2:]), []).extend(names_of(batch))
    members = {(16, 32): range(6), (16, 16): range(6, 10), (32, 16): range(10, 15)}
    assert {size: set(numbers) for size, numbers in found.items()} == {size: set(one) for size, one in members.items()}
    assert max(max(Counter(numbers).values()) for numbers in found.values()) <= 6


def test_ranks_micro_batches_and_later_starts_see_the_same_buckets(shapes):
    images = TrainingImages(data_config(shapes, **BUCKETS), seed=0, batch_size=4)
    again = TrainingImages(data_config(shapes, **BUCKETS), seed=0, batch_size=4)
    whole = list(itertools.islice(training_batches(images.config, images, 0, one_rank(), 0, False), 9))
    late = itertools.islice(training_batches(again.config, again, 0, one_rank(), 5, False), 4)
    for one, two in zip(whole[5:], late, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"])
    splits = (BatchSplit(batch_size=4, micro_batch_size=1, rank=rank, num_ranks=2) for rank in range(2))
    parts = [list(itertools.islice(training_batches(again.config, again, 0, one, 0, False), 18)) for one in splits]
    for step, batch in enumerate(whole):
        of_step = [part["pixel_values"] for rank in parts for part in rank[2 * step : 2 * step + 2]]
        assert sorted(map(bytes, torch.cat(of_step).numpy())) == sorted(map(bytes, batch["pixel_values"].numpy()))


@pytest.mark.parametrize("broken", [b"no picture", "cut"])
def test_undecodable_images_of_buckets_are_counted_and_replaced(shapes, broken):
    """One whose file does not even say its size, and one that does."""
    file = shapes / "07.jpg"
    file.write_bytes(file.read_bytes()[:-200] if broken == "cut" else broken)
    images = TrainingImages(data_config(shapes, **BUCKETS), seed=0, batch_size=4)
    batches = list(itertools.islice(training_batches(images.config, images, 0, one_rank(), 0, False), 15))
    assert all(7 not in names_of(batch) for batch in batches)
    assert 2 <= sum(int(batch["undecodable"].sum()) for batch in batches) <= 6


def test_pictures_in_memory_are_large_enough_for_every_size(shapes):
    config = data_config(shapes, in_memory=True, buckets=[16, [16, 32]], crop_scale=0.8)
    sizes = {picture.shape[:2] for picture in TrainingImages(config, seed=0, batch_size=4).decoded}
    # 0.8 of the largest part of each shape has at least the pixels of the crop, where the picture itself has them.
    assert sizes == {(20, 40), (34, 32), (48, 24)}
    square_only = TrainingImages(data_config(shapes, in_memory=True, crop_scale=0.8), seed=0)
    assert {picture.shape[:2] for picture in square_only.decoded} == {(20, 40), (21, 20), (40, 20)}


def test_validation_has_all_images_at_every_size(shapes):
    config = DataConfig(train=["x"], validation=[str(shapes)], image_size=16, validation_images=7, **BUCKETS)
    crops = load_validation(config)
    assert {size: tuple(of_size.shape) for size, of_size in crops.items()} == {
        (16, 16): (7, 3, 16, 16),
        (16, 32): (7, 3, 16, 32),
        (32, 16): (7, 3, 32, 16),
    }
    assert [names_of({"pixel_values": of_size}) for of_size in crops.values()] == [list(range(7))] * 3


def test_parquet_and_package_sources(shades, tmp_path):
    rows = {"photo": [(shades / "03.png").read_bytes(), (shades / "04.png").read_bytes()]}
    features = datasets.Features({"photo": datasets.Image()})
    encoded = {"photo": [{"bytes": content, "path": None} for content in rows["photo"]]}
    datasets.Dataset.from_dict(encoded, features=features).to_parquet(tmp_path / "two.parquet")
    images = TrainingImages(data_config(tmp_path / "*.parquet", image_column="photo"), seed=0)
    assert sorted(int(images[n]["pixel_values"][0, 0, 0]) for n in range(2)) == [60, 80]
    with pytest.raises(ValueError, match=r"`data.image_column` is 'image'"):
        TrainingImages(data_config(tmp_path / "two.parquet"), seed=0)
    assert len(TrainingImages(data_config("package://skimage/data/coffee.png"), seed=0)) == 1


def test_what_is_asked_of_a_data_set_on_the_hub():
    config = DataConfig(train=["someone/photos"], validation=["someone/photos"], image_column="photo")
    config = replace(config, config_name="large", split="a", validation_split="b")

    def asked(part: str, config: DataConfig) -> dict:
        calls = []
        opened = SimpleNamespace(passed_over=[])
        open_source(config, part, lambda *arguments, **keywords: calls.append((arguments, keywords)) or opened)
        ((_, *arguments), keywords) = calls[0]
        return {**dict(zip(("split", "image_column"), arguments, strict=True)), **keywords}

    expected = {"split": "a", "image_column": "photo", "config_name": "large", "columns": ()}
    assert asked("train", config) == expected
    assert asked("validation", config) == {**expected, "split": "b", "config_name": None}
    other = replace(config, validation_config_name="small")
    assert asked("validation", other) == {**expected, "split": "b", "config_name": "small"}
    files = replace(config, train=["photos/"])
    assert asked("train", files) == {**expected, "split": None, "config_name": None}


@pytest.mark.parametrize("source", ["nowhere/*.parquet", "nowhere.png", "package://no_such_package/x.png"])
def test_missing_sources_are_named(source):
    with pytest.raises(ValueError, match=r"nowhere|no_such_package"):
        TrainingImages(data_config(source), seed=0)


def test_what_is_a_picture_is_the_same_as_for_all_commands(tmp_path, caplog):
    (tmp_path / "set [a]" / "linked").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for number, name in enumerate(["a.avif", "b.jp2", "\udcff.png", "../elsewhere/d.tga", "e.png.txt"]):
        picture = Image.new("RGB", (24, 20), (20 * number,) * 3)
        picture.save(
            tmp_path / "set [a]" / name, {"avif": "AVIF", "jp2": "JPEG2000", "tga": "TGA"}.get(name[-4:], "PNG")
        )
    os.symlink("../elsewhere", tmp_path / "set [a]" / "link")
    os.mkfifo(tmp_path / "set [a]" / "pipe.png")
    with caplog.at_level(logging.INFO):
        assert len(TrainingImages(data_config(tmp_path / "set [a]"), seed=0)) == 4
        rows = StreamedImages(data_config(tmp_path / "set [a]", streaming=True), 0, one_rank(), 0).rows
    assert sum(1 for _ in rows) == 4
    note = f"data.train: {tmp_path / 'set [a]'}: 2 files were passed over, "
    assert [message.startswith(note) for message in caplog.messages] == [True, True]


def test_names_do_not_reach_the_terminal_as_they_are(tmp_path, caplog):
    Image.new("RGB", (24, 20)).save(tmp_path / "a.png")
    (tmp_path / "b\x1b[31m.png").write_bytes(b"no picture")
    images = TrainingImages(data_config(tmp_path), seed=0)
    assert [images[position]["undecodable"] for position in range(2)] in ([0, 1], [1, 0])
    assert r"b\x1b[31m.png is not a picture" in caplog.text
    assert "\x1b" not in caplog.text


def test_validation_takes_the_first_centre_crops(shades):
    (shades / "01.png").write_bytes(b"no picture")
    config = DataConfig(train=["x"], validation=[str(shades)], image_size=16, validation_images=3)
    (crops,) = load_validation(config).values()
    assert crops.shape == (3, 3, 16, 16)
    assert crops[:, 0, 0, 0].tolist() == [0, 40, 60]


@pytest.mark.parametrize("in_memory", [False, True])
def test_undecodable_images_are_counted_and_replaced(shades, in_memory):
    (shades / "02.png").write_bytes(b"no picture")
    config = data_config(shades, in_memory=in_memory, max_undecodable=0.01)
    images = TrainingImages(config, seed=0)
    batches = list(itertools.islice(training_batches(config, images, 0, one_rank(), 0, False), 3))
    assert 40 not in shades_of(batches)
    counted = sum(int(batch["undecodable"].sum()) for batch in batches)
    assert counted == (0 if in_memory else 1)
    assert len(images) == (11 if in_memory else 12)


def test_more_undecodable_images_than_allowed_stop_the_run(shades):
    for number in range(11):
        (shades / f"{number:02d}.png").write_bytes(b"no picture")
    with pytest.raises(UndecodableImagesError, match="11 of 12"):
        TrainingImages(data_config(shades, in_memory=True, max_undecodable=0.01), seed=0)
    check_undecodable(11, 12, 0.05)  # of so few images, 11 are no evidence of more than 5 %
    check_undecodable(500, 10_000, 0.05)
    with pytest.raises(UndecodableImagesError, match="501 of 10000"):
        check_undecodable(501, 10_000, 0.05)


def stream(config, split, first_step, count):
    return list(itertools.islice(training_batches(config, None, 0, split, first_step, False), count))


def test_streamed_ranks_split_an_epoch(tars):
    config = data_config(tars, streaming=True, shuffle_buffer=8)
    seen = []
    for rank in range(2):
        split = BatchSplit(batch_size=8, micro_batch_size=4, rank=rank, num_ranks=2)
        seen += shades_of(stream(config, split, 0, 3))
    assert sorted(seen) == [10 * number for number in range(24)]
    assert seen != sorted(seen)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streams_go_on_where_they_left(tars, workers):
    (member,) = [path for path in tars.iterdir() if path.name == "1.tar"]
    content = member.read_bytes()
    start = content.index(b"\x89PNG")
    member.write_bytes(content[:start] + b"\x00" * 8 + content[start + 8 :])
    config = data_config(tars, streaming=True, shuffle_buffer=8, num_workers=workers)
    full = stream(config, one_rank(3), 0, 12)
    late = stream(config, one_rank(3), 5, 7)
    for one, two in zip(full[5:], late, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"])
    assert sum(int(batch["undecodable"].sum()) for batch in full) >= 1
    if not workers:
        epochs = shades_of(full)
        assert set(epochs[:24]) == set(epochs)
        assert epochs[:12] != epochs[24:36]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_file_is_logged_and_its_whole_rows_are_used(tars, caplog, streaming):
    cut(tars / "1.tar", member_ends(tars / "1.tar")[2] - 10)
    config = data_config(tars, streaming=streaming, shuffle_buffer=1)
    images = None if streaming else TrainingImages(config, seed=0)
    batches = training_batches(config, images, 0, one_rank(10), 0, False)
    seen = shades_of(itertools.islice(batches, 2))
    lost = {10 * number for number in (9, 10, 11)}
    assert set(seen) <= {10 * number for number in range(24)} - lost
    assert "1.tar is damaged, what is behind its first 3 rows cannot be read" in caplog.text


def test_too_many_workers_for_a_stream_are_refused(tars):
    config = data_config(tars, streaming=True, num_workers=5)
    with pytest.raises(ValueError, match=r"`data.num_workers` is 5, it must be at most 4"):
        training_batches(config, None, 0, one_rank(), 0, False)
