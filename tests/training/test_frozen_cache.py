import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file

from alit_hf.model.base_tokenizer import ALITBaseTokenizer
from training.engine.loop import Trainer, train
from training.engine.monitoring import Display
from training.images import frozen_cache
from training.images.batches import TrainingImages, UndecodableImagesError
from training.stages.registry import config_from_dict


CROPS = 2
FIELDS = {"data__cached_crops": CROPS, "logging__log_every": 1}


@pytest.fixture
def losses(monkeypatch) -> list[float]:
    """What runs log."""
    logged: list[float] = []
    monkeypatch.setattr(Display, "scalars", lambda self, values, step: logged.append(values["loss"]))
    return logged


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The batch size of each call of a base's encoder."""
    sizes: list[int] = []
    original = ALITBaseTokenizer.encode

    def spy(self, pixel_values):
        sizes.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(ALITBaseTokenizer, "encode", spy)
    return sizes


@pytest.fixture
def without_cache(monkeypatch):
    """Trains on the fixed crops, but lets each step encode them."""

    def run(config):
        with monkeypatch.context() as patch:
            patch.setattr("training.engine.loop.cached_outputs", lambda *_: None)
            train(config)

    return run


def caches(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


@pytest.mark.parametrize(
    ("stage", "base", "precision"),
    [("distill", "vq_base", "no"), ("distill", "kl_base", "no"), ("fixed", "vq_base", "bf16")],
)
def test_losses_are_those_without_a_cache(
    config, request, tmp_path, losses, encoded, without_cache, stage, base, precision
):
    """And the base encodes every crop once, before the run, and none in a step."""
    fields = {**FIELDS, "init_from": request.getfixturevalue(base), "optimization__mixed_precision": precision}
    # More than one epoch of 20 images.
    fields |= {"optimization__max_steps": 8, "optimization__micro_batch_size": 2}
    without_cache(config(stage, **fields, output_dir=str(tmp_path / "without")))
    expected, _ = losses.copy(), losses.clear()
    assert sum(encoded) == 8 * 4
    encoded.clear()
    train(config(stage, **fields))
    assert losses == expected
    assert len(set(losses)) == 8
    assert sum(encoded) == 20 * CROPS


def test_epochs_take_turns_with_the_crops_of_an_image(config, photo_folder):
    images = TrainingImages(config("distill", **FIELDS).data, seed=0)

    def crops_of_epoch(epoch: int) -> set[bytes]:
        return {bytes(images[20 * epoch + place]["pixel_values"].numpy()) for place in range(20)}

    epochs = [crops_of_epoch(number) for number in range(4)]
    assert all(len(epoch) == 20 for epoch in epochs)
    assert epochs[0] == epochs[2]
    assert epochs[1] == epochs[3]
    assert not epochs[0] & epochs[1]


def test_a_resumed_run_and_another_one_find_the_cache(config, tmp_path, losses, encoded):
    fields = {**FIELDS, "logging__checkpoint_every": 3, "logging__keep": 5, "data__cache_dir": str(tmp_path / "cache")}
    train(config("distill", **fields))
    through = tmp_path / "distill"
    encoded.clear()
    shutil.copytree(through / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    train(config("distill", **fields, output_dir=str(tmp_path / "resumed"), resume="latest"))
    one, two = (load_file(tmp_path / run / "checkpoint-6" / "model.safetensors") for run in ("distill", "resumed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    train(config("fixed", **fields, optimization__learning_rate=1e-4))
    assert encoded == []
    assert len(caches(tmp_path / "cache")) == 1


def changed_weights(folder: str, photos: Path) -> dict:
    model = VQModel.from_pretrained(folder)
    model.encoder.conv_out.bias.data += 1
    model.save_pretrained(folder)
    return {}


def changed_scale(folder: str, photos: Path) -> dict:
    model = AutoencoderKL.from_pretrained(folder)
    model.register_to_config(scaling_factor=0.5)
    model.save_pretrained(folder)
    return {}


def changed_photo(folder: str, photos: Path) -> dict:
    shutil.copy(photos / "01.png", photos / "00.png")
    return {}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("vq_base", changed_weights),
        ("kl_base", changed_scale),
        ("vq_base", changed_photo),
        ("vq_base", lambda *_: {"seed": 1}),
        ("vq_base", lambda *_: {"data__crop_scale": 0.7}),
        ("vq_base", lambda *_: {"data__flip": False}),
        ("vq_base", lambda *_: {"data__in_memory": False}),
        ("vq_base", lambda *_: {"data__cached_crops": 3}),
        ("vq_base", lambda *_: {"optimization__mixed_precision": "bf16"}),
    ],
    ids=["weights", "scale", "photo", "seed", "crop_scale", "flip", "in_memory", "cached_crops", "mixed_precision"],
)
def test_a_stale_cache_is_not_used(
    config, request, tmp_path, photo_folder, losses, encoded, without_cache, base, change
):
    folders = {"init_from": str(tmp_path / "base"), "data__train": [str(tmp_path / "photos")]}
    shutil.copytree(request.getfixturevalue(base), folders["init_from"])
    shutil.copytree(photo_folder, tmp_path / "photos")
    fields = {**FIELDS, **folders, "data__cache_dir": str(tmp_path / "cache"), "optimization__max_steps": 2}
    train(config("distill", **fields))
    fields |= change(folders["init_from"], tmp_path / "photos")
    encoded.clear()
    losses.clear()
    AcceleratorState._reset_state(True)
    train(config("distill", **fields, output_dir=str(tmp_path / "changed")))
    assert sum(encoded) == 20 * fields["data__cached_crops"]
    assert len(caches(tmp_path / "cache")) == 2
    found = losses.copy()
    losses.clear()
    without_cache(config("distill", **fields, output_dir=str(tmp_path / "without")))
    assert found == losses


def test_a_resumed_run_takes_the_base_of_its_checkpoint(config, tmp_path, vq_base, losses):
    """Not that of `init_from`, where it was trained on in the meantime."""
    base = tmp_path / "base"
    shutil.copytree(vq_base, base)
    fields = {**FIELDS, "init_from": str(base), "logging__checkpoint_every": 3, "logging__keep": 5}
    train(config("distill", **fields))
    expected, _ = losses[3:], losses.clear()
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "distill" / "checkpoint-3", resumed / "checkpoint-3")
    changed_weights(str(base), tmp_path)
    train(config("distill", **fields, output_dir=str(resumed), resume="latest"))
    assert losses == expected


def test_two_runs_that_would_compute_the_same_do_not_do_it_at_once(config, tmp_path, monkeypatch):
    shared = {**FIELDS, "data__cache_dir": str(tmp_path / "shared")}
    refused = []
    original = frozen_cache._compute

    def compute(*arguments):
        if not refused:
            with pytest.raises(ValueError, match=r"`data\.cache_dir` is .*shared.* another run is writing to"):
                train(config("distill", **shared, output_dir=str(tmp_path / "second")))
            refused.append(True)
        # Other latents are none of its business.
        if len(refused) == 1:
            refused.append(True)
            train(config("distill", **shared, seed=1, output_dir=str(tmp_path / "third")))
        original(*arguments)

    monkeypatch.setattr(frozen_cache, "_compute", compute)
    train(config("distill", **shared, output_dir=str(tmp_path / "first")))
    assert len(refused) == 2
    assert len(list((tmp_path / "shared").iterdir())) == 2


def test_an_unfinished_cache_is_made_anew(config, tmp_path, monkeypatch, losses, without_cache):
    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(frozen_cache, "gather_object", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config("distill", **FIELDS))
    folder = tmp_path / "distill" / "frozen-outputs"
    (unfinished,) = folder.iterdir()
    (unfinished / "outputs.bin").write_bytes(b"no latents")
    train(config("distill", **FIELDS))
    assert [path.name for path in folder.iterdir()] == [unfinished.name.removeprefix(".unfinished-")]
    found = losses.copy()
    losses.clear()
    without_cache(config("distill", **FIELDS, output_dir=str(tmp_path / "without")))
    assert found == losses


def test_every_rank_computes_its_part(config, monkeypatch):
    """The parts of three ranks, which 20 images do not go into, one after another."""
    trainer = Trainer(config("distill", **FIELDS, data__in_memory=False))
    dataset = TrainingImages(trainer.config.data, seed=0)
    found: dict[int, torch.Tensor] = {}
    counts = []
    for rank in range(3):
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", 3)
        monkeypatch.setattr(type(trainer.accelerator), "process_index", rank)
        part = dict(frozen_cache._outputs_of_part(trainer.accelerator, trainer.wrapped, dataset, dataset.config, 4))
        counts.append(len(part))
        found |= part
    assert counts == [7, 7, 7]
    (folder,) = (Path(trainer.config.output_dir) / "frozen-outputs").iterdir()
    cache = frozen_cache.FrozenCache(folder)
    assert sorted(found) == list(range(20))
    for image, latents in found.items():
        for crop in range(CROPS):
            assert torch.equal(cache(image, crop), latents[crop])
    trainer.close()


def test_images_that_could_not_be_decoded_are_replaced(config, tmp_path, photo_folder, caplog):
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    picture = (photos / "05.png").read_bytes()
    (photos / "05.png").write_bytes(b"no picture")
    fields = {**FIELDS, "data__train": [str(photos)], "data__in_memory": False, "optimization__max_steps": 5}
    trainer = Trainer(config("distill", **fields))
    images = TrainingImages(trainer.config.data, seed=0)
    (folder,) = (Path(trainer.config.output_dir) / "frozen-outputs").iterdir()
    images.frozen = frozen_cache.FrozenCache(folder)
    assert images.frozen.undecodable == {5}
    # Even where it can be decoded by now: there are no latents of it.
    (photos / "05.png").write_bytes(picture)
    assert sum(images[position]["undecodable"] for position in range(20)) == 1
    assert "could not be decoded when" in caplog.text
    trainer.run()
    trainer.close()
    for path in photos.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UndecodableImagesError, match="20 of 20"):
        train(config("distill", **fields, output_dir=str(tmp_path / "other")))


def test_a_full_disk_is_found_before_anything_is_computed(config, monkeypatch, encoded):
    full = shutil.disk_usage(".")._replace(free=20 * CROPS * 4 * 8 * 8 * 4 - 1)
    monkeypatch.setattr(frozen_cache.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match=r"`data.cached_crops` is 2, .* 0.0 GiB"):
        train(config("distill", **FIELDS))
    assert encoded == []


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        ("distill", {"data__cached_crops": -1}),
        ("distill", {"data__cached_crops": 1, "data__streaming": True, "data__in_memory": False}),
        ("base", {"data__cached_crops": 1}),
        ("finetune", {"data__cached_crops": 1, "init_from": "anywhere"}),
    ],
    ids=["negative", "stream", "base", "finetune"],
)
def test_caches_that_cannot_be_are_refused(values, stage, fields):
    with pytest.raises(ValueError, match=r"`data.cached_crops` is "):
        config_from_dict(values(stage, **fields))
