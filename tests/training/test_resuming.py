"""Where a resumed run starts, what it may change, and that no other run writes to its folder."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alit_hf.utils.sole_use import LOCK_FILE, sole_use
from training.configuration import (
    Change,
    DataConfig,
    LoggingConfig,
    OptimizationConfig,
    TrainingConfig,
    changeable,
    changes,
    config_to_dict,
)
from training.engine.checkpointing import checkpoints
from training.engine.loop import Trainer, train
from training.engine.resuming import find_start
from training.stages.loss_config import LOSS_CONFIGS
from training.stages.stage import Stage


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def run(config, tmp_path):
    """A finished run of 6 steps with checkpoints 2, 4 and 6, and its configuration with other fields."""

    def make(stage: str = "distill", /, **fields):
        return config(stage, **{"logging__checkpoint_every": 2, "logging__keep": 9, "resume": "latest", **fields})

    return make


@pytest.fixture
def folder(run, finished, tmp_path) -> Path:
    """The folder of `run`; trained once for all tests."""
    if not any(finished.iterdir()):
        train(run(output_dir=str(finished / "distill")))
    shutil.copytree(finished / "distill", tmp_path / "distill")
    return tmp_path / "distill"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestFields:
    def test_a_new_field_may_not_change_unless_it_says_so(self):
        @dataclass(kw_only=True)
        class Later(DataConfig):
            new: int = 3
            new_and_changeable: int = changeable(default=5)

        # Neither was known when the run was started, so that they had their defaults.
        before = dataclasses.asdict(DataConfig())
        assert list(changes(before, Later())) == []
        assert list(changes(before, Later(new=4, new_and_changeable=6), "data.")) == [
            Change("data.new", 3, 4, False),
            Change("data.new_and_changeable", 5, 6, True),
        ]

    def test_what_the_weights_hang_on_may_not_change(self):
        """All that may, by name: whoever adds a field here must have thought of how a resumed run applies it."""
        allowed = {
            kind: {one.name for one in dataclasses.fields(kind) if one.metadata.get("changeable")}
            for kind in (TrainingConfig, DataConfig, OptimizationConfig, LoggingConfig, *LOSS_CONFIGS.values())
        }
        assert allowed[LoggingConfig] == {one.name for one in dataclasses.fields(LoggingConfig)}
        never = {"stage", "init_from", "base_from", "seed", "model", "resume"}
        never |= {"loss", "data", "optimization", "logging"}
        assert {one.name for one in dataclasses.fields(TrainingConfig)} - allowed[TrainingConfig] == never
        never = {"batch_size", "optimizer", "betas", "ema_decay"}
        assert {one.name for one in dataclasses.fields(OptimizationConfig)} - allowed[OptimizationConfig] == never
        assert allowed[DataConfig] == {
            "validation",
            "validation_split",
            "validation_config_name",
            "validation_images",
            "num_workers",
            "max_undecodable",
            "cache_dir",
        }
        of_losses = set().union(*(allowed[kind] for kind in LOSS_CONFIGS.values()))
        assert of_losses == {"discriminator_learning_rate", "regularizer_weight"}

    def test_a_configuration_that_was_written_down_has_no_changes(self, config):
        for stage in ("base", "distill"):
            one = config(stage, optimization__learning_rate=1e-5)
            before = yaml.safe_load(yaml.safe_dump(config_to_dict(one)))
            assert list(changes(before, one)) == []


REFUSED = [
    ("seed", 1, "`seed` is 1, it must be 0"),
    ("optimization__betas", [0.8, 0.9], r"`optimization\.betas` is \[0\.8, 0\.9\], it must be \[0\.9, 0\.95\]"),
    ("optimization__ema_decay", 0.5, r"`optimization\.ema_decay` is 0\.5, it must be 0\.9"),
    ("optimization__optimizer", "muon", r"`optimization\.optimizer` is 'muon', it must be 'adamw'"),
    ("optimization__batch_size", 2, r"`optimization\.batch_size` is 2, it must be 4"),
    ("data__train", ["others/"], r"`data\.train` is \['others/'\], it must be \["),
    ("data__image_size", 64, r"`data\.image_size` is 64, it must be 32"),
    ("data__flip", False, r"`data\.flip` is False, it must be True"),
    ("data__cached_crops", 2, r"`data\.cached_crops` is 2, it must be 0"),
    ("model__hidden_size", 64, r"`model\.hidden_size` is 64, it must be 32"),
    ("model__mlp_ratio", 2, r"`model\.mlp_ratio` is 2, it must be None"),
    ("loss__revive_every", 0, r"`loss\.revive_every` is 0, it must be 2"),
    ("loss__quantize_from", 5, r"`loss\.quantize_from` is 5, it must be 0"),
    ("loss__halting", False, r"`loss\.halting` is False, it must be True"),
]


@pytest.mark.parametrize(("field", "value", "message"), REFUSED, ids=[field for field, *_ in REFUSED])
def test_what_may_not_change_is_refused_by_name_before_any_work(run, folder, monkeypatch, field, value, message):
    before = contents(folder)
    for opened in ("TrainingImages", "open_source", "load_validation", "Publisher"):
        monkeypatch.setattr(f"training.engine.loop.{opened}", Mock(side_effect=AssertionError))
    # With an unfinished run, with a finished one, and with a checkpoint that is named.
    for fields in ({"optimization__max_steps": 8}, {}, {"resume": str(folder / "checkpoint-4")}):
        with pytest.raises(ValueError, match=message):
            train(run(**fields, **{field: value}))
    assert contents(folder) == before


def test_another_start_and_another_stage_are_refused(run, folder, kl_base):
    with pytest.raises(ValueError, match=r"`init_from` is '.*', it must be '"):
        train(run(init_from=kl_base))
    with pytest.raises(ValueError, match="`stage` is 'base', it must be 'distill'"):
        train(run("base", output_dir=str(folder)))


def test_all_that_is_refused_is_named_at_once(run, folder):
    with pytest.raises(ValueError, match=r"`seed` is 1.*`optimization\.betas` is"):
        find_start(run(seed=1, optimization__betas=[0.5, 0.5]))


def test_other_images_under_the_same_name_are_refused(run, folder, config, tmp_path, photo_folder):
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    fields = {"data__train": [str(photos)], "output_dir": str(tmp_path / "own")}
    train(run(**fields))
    (photos / "00.png").unlink()
    with pytest.raises(ValueError, match=r"`data\.train` is .* the same 20 images as before, not 19"):
        train(run(**fields, optimization__max_steps=8))
    assert not (tmp_path / "own" / "checkpoint-8").exists()


@pytest.mark.parametrize("case", ["distill with Muon", "base"])
def test_what_may_change_is_applied_and_said(run, tmp_path, caplog, case):
    """Also by the optimisers, whose state in the checkpoint has settings of its own."""
    stage = case.split()[0]
    fields = {
        "base": {"loss__adversarial_weight": 0.5, "loss__discriminator_layers": 1},
        "distill": {"optimization__optimizer": "muon"},
    }[stage]
    train(run(stage, **fields, optimization__max_steps=3))
    changed = {"optimization__weight_decay": 0.7, "optimization__learning_rate": 1e-4, "optimization__max_steps": 6}
    if stage == "base":
        changed["loss__discriminator_learning_rate"] = 0.5
    caplog.set_level(logging.INFO)
    trainer = Trainer(run(stage, **fields, **changed))
    for name, before, now in (("optimization.weight_decay", 0.05, 0.7), ("optimization.max_steps", 3, 6)):
        assert f"Changed on resuming: `{name}` is {now!r}, it was {before!r}" in caplog.messages
    assert len([message for message in caplog.messages if message.startswith("Changed")]) == len(changed)
    trainer._step()
    optimizers = [*trainer.optimizers, *([trainer.opponent.optimizer] if stage == "base" else [])]
    decays = [{group["weight_decay"] for group in optimizer.param_groups} for optimizer in optimizers]
    assert [decay - {0.0} for decay in decays] == [{0.7}] * 2
    # Half of the run is over, so the rates are half of their peaks.
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == pytest.approx([0.5e-4, 0.5 * (0.5e-4 if stage == "base" else 0.02)])
    # The state itself is that of the checkpoint.
    state = next(iter(trainer.optimizers[0].state.values()))
    assert int(state["step"]) == 4
    trainer.close()
    written = yaml.safe_load((tmp_path / stage / "config.yaml").read_text())
    assert written["optimization"]["weight_decay"] == 0.7


def test_a_decay_changed_on_resuming_changes_the_weights(run, folder, tmp_path):
    ends = {}
    for decay in (0.05, 0.9):
        output_dir = tmp_path / str(decay)
        resume = str(folder / "checkpoint-4")
        train(run(output_dir=str(output_dir), resume=resume, optimization__weight_decay=decay))
        ends[decay] = load_file(output_dir / "checkpoint-6" / "model.safetensors")
    through = load_file(folder / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(value, through[name]) for name, value in ends[0.05].items())
    assert any(not torch.equal(value, through[name]) for name, value in ends[0.9].items())


def test_a_resumed_run_knows_what_was_logged_before(run, folder):
    trainer = Trainer(run(optimization__max_steps=8))
    value, step = trainer.progress.logged["loss"]
    assert (step, value > 0) == (6, True)
    trainer.close()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {
    "weights cut off": (cut_off, "model.safetensors"),
    "weights altered": (flip_a_bit, "model.safetensors"),
    "no optimiser": (Path.unlink, "optimizer.bin"),
    "average altered": (flip_a_bit, "custom_checkpoint_0.pkl"),
    "settings altered": (cut_off, "config.yaml"),
    "no progress": (Path.unlink, "progress.json"),
    "zeros for progress": (lambda path: path.write_bytes(bytes(100)), "progress.json"),
    "progress empty": (empty, "progress.json"),
    "nothing": (lambda path: shutil.rmtree(path.parent) or path.parent.mkdir(), "model.safetensors"),
}


@pytest.fixture(params=DAMAGES)
def damage(request):
    action, name = DAMAGES[request.param]
    return lambda checkpoint: action(checkpoint / name)


def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(run, folder, damage, caplog):
    damage(folder / "checkpoint-6")
    config = run(optimization__max_steps=8)
    checkpoint, changed = find_start(config)
    assert checkpoint == folder / "checkpoint-4"
    assert Change("optimization.max_steps", 6, 8, True) in changed
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert f"{folder / 'checkpoint-6'} cannot be read" in record.getMessage()
    assert f"going on from {folder / 'checkpoint-4'}" in record.getMessage()
    # Asked for by name it is not replaced by another.
    with pytest.raises(ValueError, match=r"`resume` is '.*checkpoint-6', it must be a checkpoint that can be read"):
        find_start(run(resume=str(folder / "checkpoint-6")))


def test_the_run_that_goes_on_from_the_one_before_is_the_same(run, folder, finished):
    for name in ("checkpoint-6", "checkpoint-4"):
        cut_off(folder / name / "optimizer.bin")
    shutil.rmtree(folder / "model")
    train(run())
    one, two = (load_file(place / "checkpoint-6" / "model.safetensors") for place in (folder, finished / "distill"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert find_start(run())[0] == folder / "checkpoint-6"


def test_without_any_that_can_be_read_all_are_named(run, folder):
    for checkpoint in checkpoints(folder):
        cut_off(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint-6 \(model\.safetensors.*checkpoint-4.*checkpoint-2") as error:
        train(run(optimization__max_steps=8))
    assert "`output_dir`" in str(error.value)


def test_the_newest_checkpoint_is_not_pruned_in_favour_of_a_damaged_one(run, folder):
    cut_off(folder / "checkpoint-6" / "model.safetensors")
    shutil.rmtree(folder / "model")
    train(run(optimization__max_steps=5, logging__keep=1))
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-5", "checkpoint-6"]
    assert find_start(run(optimization__max_steps=5))[0].name == "checkpoint-5"


def test_checkpoints_of_earlier_versions_can_be_resumed(run, folder):
    """Without checksums and settings of their own."""
    for checkpoint in checkpoints(folder):
        (checkpoint / "config.yaml").unlink()
        progress = json.loads((checkpoint / "progress.json").read_text())
        del progress["files"]
        (checkpoint / "progress.json").write_text(json.dumps(progress))
    assert find_start(run())[0] == folder / "checkpoint-6"
    with pytest.raises(ValueError, match="`seed` is 1, it must be 0"):
        find_start(run(seed=1))
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-6 has no config\.yaml"):
        find_start(run())


@pytest.mark.parametrize("resumes", [False, True])
def test_a_second_run_in_the_same_folder_is_refused(run, config, tmp_path, monkeypatch, resumes):
    """While the first one computes, and not after it; the refused one changes nothing."""
    output_dir = tmp_path / "distill"
    refused = []
    original = Trainer._step

    def step(self):
        if self.progress.steps == 3 and not refused:
            before = contents(output_dir)
            with pytest.raises(ValueError, match="another run is writing") as error:
                train(run(seed=1) if resumes else run(resume="", output_dir=f"{output_dir}/../distill"))
            refused.append(str(error.value))
            assert contents(output_dir) == before
        original(self)

    monkeypatch.setattr(Trainer, "_step", step)
    train(run())
    assert f"`output_dir` is '{output_dir}" in refused[0]
    assert not (output_dir / LOCK_FILE).exists()
    assert (output_dir / "model").is_dir()
    train(run(optimization__max_steps=7))


def test_a_killed_run_does_not_keep_its_folder(run, tmp_path):
    program = (
        "import sys, os\nfrom pathlib import Path\nfrom alit_hf.utils.sole_use import sole_use\n"
        "with sole_use(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    output_dir = tmp_path / "distill"
    subprocess.run([sys.executable, "-c", program, str(output_dir)], check=False)
    assert (output_dir / LOCK_FILE).exists()
    train(run(optimization__max_steps=1))
    assert not (output_dir / LOCK_FILE).exists()


def test_a_run_that_cannot_start_leaves_no_folder(run, tmp_path):
    with pytest.raises(ValueError, match=r"data\.train"):
        train(run(data__train=["nowhere/"]))
    assert not (tmp_path / "distill").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`output_dir` is '.*file', it cannot be used: File exists"):
        train(run(output_dir=str(tmp_path / "file")))


def test_what_a_killed_run_left_unfinished_is_removed_by_the_next(run, folder):
    (folder / ".unfinished-removal-of-model").mkdir()
    (folder / ".alit-123-config.yaml").touch()
    (folder / "model").rename(folder / ".unfinished-model")
    train(run())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_counts_of_other_ranks_are_those_of_the_first(config, monkeypatch):
    """What a checkpoint holds is the sum; a copy on each rank would multiply it."""
    stage: Stage = Trainer(config("distill")).stage
    counts = stage.codebook_care.since_revival
    counts += 3
    stage.leave_counts_to_first_rank()
    assert counts.tolist() == [3] * len(counts)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    for rank, expected in ((0, 6), (1, 0)):
        counts.fill_(3)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        stage.gather_counts()
        assert counts.tolist() == [expected] * len(counts)
    counts.fill_(6)
    stage.leave_counts_to_first_rank()
    assert counts.tolist() == [0] * len(counts)


def test_sole_use_is_only_asked_for_by_the_first_process(run, tmp_path, monkeypatch):
    """The other ranks of a run share the folder."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("training.engine.loop.Trainer", Mock(side_effect=InterruptedError))
    with sole_use(tmp_path / "distill"), pytest.raises(InterruptedError):
        train(run())
