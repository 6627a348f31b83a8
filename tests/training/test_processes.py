"""Runs in processes of their own: killed ones, and two ranks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from training.engine.loop import train
from training.engine.monitoring import Display
from training.train import EXIT_ENDED_AT_ONCE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_USE, main


ROOT = Path(__file__).parents[2]
RECORDED_RUN = Path(__file__).parent / "recorded_run.py"
PYTHONPATH = os.pathsep.join(str(ROOT / folder) for folder in ("src", ".", "tests"))
SHARDED_RUN = Path(__file__).parent / "sharded_run.py"


def run(command: list[str], start_new_session: bool = False, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        start_new_session=start_new_session,
    )


@pytest.fixture
def config_file(tmp_path):
    def write(values: dict) -> str:
        path = tmp_path / f"{values.get('stage', 'sequence')}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.timeout(300)
def test_a_run_killed_while_writing_a_checkpoint_goes_on_exactly(values, config, config_file, tmp_path):
    """SIGKILL after step 12 of 20, with half of a checkpoint written; the last whole one is that of step 9."""
    fields = {"optimization__max_steps": 20, "logging__checkpoint_every": 3, "logging__keep": 9}
    path = config_file(values("distill", **fields))
    killed = run([str(RECORDED_RUN), "--config", path], KILL_WHILE_WRITING="checkpoint-12")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "distill"
    assert (folder / ".unfinished-checkpoint-12" / "model.safetensors").is_file()
    assert not (folder / "checkpoint-12").exists()
    train(config("distill", **fields, resume="latest"))
    assert not (folder / ".unfinished-checkpoint-12").exists()

    through = tmp_path / "through"
    train(config("distill", **fields, output_dir=str(through)))
    for name in ("model.safetensors", "model/model.safetensors"):
        one, two = (load_file(place / "checkpoint-20" / name) for place in (folder, through))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def sequence(values, tmp_path) -> dict:
    """All stages, five steps each, without what is random and so differs between ranks."""
    base, distill = values("base"), values("distill")
    common = {name: base[name] for name in ("data", "optimization", "logging")}
    common["optimization"] |= {"max_steps": 5, "learning_rate": 2e-4}
    common["logging"] |= {"log_every": 1, "checkpoint_every": 2, "keep": 9}
    common["data"] |= {"validation": common["data"]["train"], "validation_images": 6}
    adversarial = {"adversarial_weight": 0.5, "discriminator_layers": 1, "adversarial_start": 2}
    return {
        **common,
        "output_dir": str(tmp_path / "1"),
        "sequence": {
            "base": {"model": base["model"], "loss": {"perceptual_net": "alex", "revive_every": 0} | adversarial},
            "distill": {
                "model": distill["model"],
                "loss": {"halting": False, "revive_every": 0},
                "data": {"cached_crops": 2},
            },
            "finetune": {"loss": {"perceptual_net": "alex"} | adversarial},
        },
    }


@pytest.fixture
def records(monkeypatch) -> list[dict[str, float]]:
    """What runs in this process log."""
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(Display, "scalars", lambda self, values, step: logged.append(values))
    return logged


def run_on_two_ranks(path: str, record: Path, *overrides: str, script: Path = RECORDED_RUN) -> list[dict[str, float]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = run([*launcher, str(script), "--config", path, *overrides], RECORD=str(record))
    assert done.returncode == 0, done.stderr
    return json.loads(record.read_text())


def assert_same_losses(found: list[dict[str, float]], expected: list[dict[str, float]], rel: float) -> None:
    """Not what hangs on rounding, as the discriminator does: AdamW makes full steps of gradients that should be 0."""
    kinds = ("loss", "l1", "lpips", "nll", "code", "validation")
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for name in [name for name in one if name.split("/")[0] in kinds]:
            assert two[name] == pytest.approx(one[name], rel=rel), name


@pytest.mark.timeout(300)
def test_two_ranks_compute_what_one_does(sequence, config_file, tmp_path, records):
    """Every stage's losses, at the same total batch; and one rank goes on from a checkpoint of two."""
    path = config_file(sequence)
    of_two = run_on_two_ranks(path, tmp_path / "2.json", "--output_dir", str(tmp_path / "2"))
    assert main(["--config", path]) == 0
    assert len(records) == 3 * (5 + 1)
    assert_same_losses(of_two, records, rel=1e-4)

    # All ids since the first step, whichever rank they were given on.
    counted = [num_counted(tmp_path / run / "finetune" / "checkpoint-4") for run in ("1", "2")]
    assert counted[0] == counted[1] > 0

    expected = records[-2]["loss"]
    records.clear()
    assert main(["--config", path, *resumption_of(tmp_path / "2", tmp_path / "resumed")]) == 0
    assert records[-2]["loss"] == pytest.approx(expected, rel=1e-4)


def resumption_of(run: Path, output_dir: Path) -> list[str]:
    """Options that continue `finetune` from checkpoint 4 of another run; the earlier stages are finished."""
    values = {"resume": run / "finetune" / "checkpoint-4", "init_from": run / "distill" / "model"}
    fields = [f"--sequence.finetune.{name}={value}" for name, value in {**values, "output_dir": output_dir}.items()]
    return ["--resume", "latest", *fields]


def num_counted(checkpoint: Path) -> int:
    return int(load_file(checkpoint / "model.safetensors")["codebook_care.since_revival"].sum())


@pytest.mark.timeout(300)
def test_two_ranks_move_weights_by_muon_as_one_does(sequence, config_file, tmp_path, records, vq_base):
    """In the short form, without random noise: losses and the weights at the end."""
    distill = sequence["sequence"]["distill"]
    distill["loss"] |= {"rollouts": "drawn", "rollout_dropout": 0.5}
    distill["optimization"] = {"optimizer": "muon", "muon_learning_rate": 0.005}
    sequence["sequence"] = {"distill": distill | {"init_from": vq_base}}
    path = config_file(sequence)
    of_two = run_on_two_ranks(path, tmp_path / "2.json", "--output_dir", str(tmp_path / "2"))
    assert main(["--config", path]) == 0
    assert_same_losses(of_two, records, rel=1e-5)
    one, two = (load_file(tmp_path / run / "distill" / "model" / "model.safetensors") for run in ("1", "2"))
    # Muon scales up gradients that are nearly 0, and with them their rounding.
    assert all((one[name] - two[name]).abs().max() < 1e-3 for name in one)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_go_on_from_a_checkpoint_of_one(sequence, config_file, tmp_path, records):
    path = config_file(sequence)
    assert main(["--config", path]) == 0
    of_two = run_on_two_ranks(path, tmp_path / "2.json", *resumption_of(tmp_path / "1", tmp_path / "resumed"))
    assert of_two[-2]["loss"] == pytest.approx(records[-2]["loss"], rel=1e-4)
    counted = [num_counted(folder / "checkpoint-5") for folder in (tmp_path / "1" / "finetune", tmp_path / "resumed")]
    assert counted[0] == counted[1]


@pytest.mark.slow  # three runs of two ranks through all stages
@pytest.mark.timeout(900)
def test_sharded_ranks_compute_what_whole_ones_do(sequence, config_file, tmp_path):
    """FSDP2 against DDP: losses, averages, revival of codes, the adversary; and resuming from a sharded checkpoint."""
    # An optimiser that is saved before its first step makes an empty one (torch), so the adversary plays before.
    sequence["logging"] |= {"checkpoint_every": 4, "validate_every": 2}
    stages = sequence["sequence"]
    stages["base"]["loss"] |= {"codebook_start": 2, "revive_every": 3}
    stages["distill"] |= {"loss": {"revive_every": 2}, "model": stages["distill"]["model"] | {"codebook_size": 64}}
    stages["finetune"]["loss"] |= {"revive_every": 2}
    path = config_file(sequence)
    of_whole = run_on_two_ranks(path, tmp_path / "whole.json", "--output_dir", str(tmp_path / "whole"))
    folder = tmp_path / "sharded"
    # Each stage from what the whole ranks made, so that roundings do not add up to other codes.
    overrides = ["--output_dir", str(folder)]
    for stage, start in (("distill", "base"), ("finetune", "distill")):
        overrides += [f"--sequence.{stage}.init_from", str(tmp_path / "whole" / start / "model")]
    of_sharded = run_on_two_ranks(path, tmp_path / "sharded.json", *overrides, script=SHARDED_RUN)
    assert len(of_sharded) == 3 * (5 + 3)
    for expected, found in zip(of_whole, of_sharded, strict=True):
        assert found | {"images_per_second": 0} == pytest.approx(
            expected | {"images_per_second": 0}, rel=1e-3, abs=1e-5
        )

    resumed = f"--sequence.finetune.resume={folder / 'finetune' / 'checkpoint-4'}"
    elsewhere = f"--sequence.finetune.output_dir={tmp_path / 'resumed'}"
    overrides += ["--resume", "latest", resumed, elsewhere]
    records = run_on_two_ranks(path, tmp_path / "resumed.json", *overrides, script=SHARDED_RUN)
    assert records[-2]["loss"] == of_sharded[-2]["loss"]
    assert records[-1] == of_sharded[-1]
    one, two = (
        load_file(place / "model" / "model.safetensors") for place in (folder / "finetune", tmp_path / "resumed")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.timeout(300)
def test_ctrl_c_stops_a_run_with_workers_and_pressed_again_ends_it_at_once(values, config_file, tmp_path):
    """SIGINT for the whole process group, as from a terminal, which workers must outlive up to the checkpoint."""
    fields = {"data__num_workers": 2, "optimization__max_steps": 10**6, "logging__log_every": 1}
    path = config_file(values("distill", **fields, output_dir=str(tmp_path / "run")))
    once = press_ctrl_c(path, "--output_dir", str(tmp_path / "once"), STOP_AT_STEP="3", PRESSES="1")
    assert once.returncode == EXIT_INTERRUPTED, once.stderr
    assert "train.py: Stopped by SIGINT after 4 of" in once.stderr
    assert "Traceback" not in once.stderr
    assert (tmp_path / "once" / "checkpoint-4").is_dir()
    twice = press_ctrl_c(path, "--output_dir", str(tmp_path / "twice"), STOP_AT_STEP="3", PRESSES="2")
    assert twice.returncode == -signal.SIGINT, twice.stderr
    assert "Traceback" not in twice.stderr
    assert not (tmp_path / "twice" / "checkpoint-4").exists()


def press_ctrl_c(path: str, *overrides: str, **environment: str) -> subprocess.CompletedProcess:
    return run([str(RECORDED_RUN), "--config", path, *overrides], start_new_session=True, **environment)


@pytest.fixture
def refusal(config_file, values, tmp_path, monkeypatch, capsys):
    """The one line by which a run that cannot start is refused: fields by dotted name, in a folder without photos."""
    monkeypatch.chdir(tmp_path)

    def make(*overrides: str) -> str:
        before = contents_of(tmp_path / "distill")
        capsys.readouterr()
        assert main(["--config", config_file(values("distill")), *overrides]) == EXIT_WRONG_USE
        error = capsys.readouterr().err
        assert contents_of(tmp_path / "distill") == before
        assert "Traceback" not in error
        (line,) = [line for line in error.splitlines() if line.startswith("train.py: error: ")]
        assert error.endswith(line + "\n")
        return line.removeprefix("train.py: error: ")

    return make


def contents_of(folder: Path) -> list[Path] | None:
    return sorted(folder.rglob("*")) if folder.exists() else None


def no_network(*_, **__):
    raise ConnectionError("Couldn't reach 'my/photos'\non the Hub")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("source", ["nophotos/", "../nophotos", "./nophotos", "my/photo.jpg", "my/*.jpg", "nophotos"])
def test_a_mistyped_source_is_refused_in_one_line(refusal, source, part, streaming):
    flags = ["--data.streaming", "--data.in_memory", "false"] if streaming else []
    line = refusal(f"--data.{part}", source, *flags)
    assert line == f"`data.{part}` is ['{source}']: {source} does not exist"


def test_one_missing_file_of_several_is_named(refusal, photo_folder):
    assert ": more/ does not exist" in refusal("--data.train", f"[{photo_folder}, more/]")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_source_that_the_hub_does_not_have_either_is_refused_in_one_line(refusal, monkeypatch, caplog, streaming):
    caplog.set_level("INFO")
    monkeypatch.setattr("datasets.load_dataset_builder", no_network)
    flags = ["--data.streaming", "--data.in_memory", "false"] if streaming else []
    assert refusal("--data.train", "my/photos", *flags) == (
        "`data.train` is ['my/photos']: my/photos is no file or folder, and from the Hub it cannot be loaded: "
        "Couldn't reach 'my/photos' on the Hub"
    )
    assert "data.train: there is no file or folder 'my/photos' here, asking the Hub" in caplog.messages


def test_a_folder_without_images_is_no_hub_id(refusal, tmp_path):
    (tmp_path / "my" / "photos").mkdir(parents=True)
    assert "the folder my/photos holds no pictures and no parquet files or tars" in refusal(
        "--data.train", "my/photos"
    )


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_file_that_is_no_image_is_refused_with_the_reason(refusal, tmp_path, part):
    for name in ("broken.jpg", "broken.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"no picture")
    line = refusal(f"--data.{part}", "broken.jpg")
    assert line.startswith(f"`data.{part}` is ['broken.jpg'], it must have images that can be decoded, the first one")
    assert line.endswith("broken.jpg is not a picture in a format that can be read.")
    line = refusal(f"--data.{part}", "broken.parquet")
    assert line.startswith(
        f"`data.{part}` is ['broken.parquet']: broken.parquet: no images can be read: broken.parquet: Parquet magic"
    )
    assert refusal(f"--data.{part}", "notes.txt").startswith(f"`data.{part}` is ['notes.txt'], it must have images")


def test_a_base_that_is_not_there_is_refused_in_one_line(refusal, tmp_path):
    (tmp_path / "nobase").mkdir()
    assert refusal("--init_from", "nobase").startswith("`init_from` is 'nobase', it must be")


def test_a_run_that_is_there_or_not_there_is_refused_in_one_line(refusal, config, tmp_path):
    train(config("distill", optimization__max_steps=1))
    assert "continue it by `--resume latest`" in refusal()
    assert refusal("--resume", "lastest").startswith("`resume` is 'lastest', it must be 'latest' or")


def test_exit_codes(values, config_file, tmp_path, monkeypatch, capsys):
    path = config_file(values("distill", data__train=[str(tmp_path / "nowhere.png")]))
    assert main(["--config", path, "--optimization.lerning_rate", "1"]) == EXIT_WRONG_USE
    assert "optimization.learning_rate" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "nowhere.yaml")]) == EXIT_WRONG_USE
    assert main(["--config", path]) == EXIT_WRONG_USE  # no such images

    path = config_file(values("distill"))

    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(
            "training.engine.loop.Trainer._set_learning_rate",
            lambda self: terminate() or setattr(self, "learning_rate", 0),
        )
        assert main(["--config", path]) == EXIT_INTERRUPTED
    with monkeypatch.context() as patch:
        capsys.readouterr()
        patch.setattr("training.engine.loop.TrainingImages", Mock(side_effect=KeyboardInterrupt))
        assert main(["--config", path, "--resume", "latest"]) == EXIT_ENDED_AT_ONCE
        assert capsys.readouterr().err.startswith("train.py: Stopped by SIGINT outside of steps")
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.Accelerator.save_state", lambda *_: (tmp_path / "no" / "folder").mkdir())
        assert main(["--config", path, "--resume", "latest"]) == EXIT_FAILED
    assert main(["--config", path, "--resume", "latest"]) == 0
