"""Pushing to a Hub that works, that fails and recovers, that vanishes, and that says no."""

import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from diffusers import VQModel
from hub_server import LFS_UPLOAD, NARROW_TOKEN, READ_TOKEN, TOKEN, HubServer, logged_in_hub
from huggingface_hub import HfApi, ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import save_tiny_model
from torch.utils.tensorboard import SummaryWriter

from alit_hf import ALITImageProcessor, ALITModel
from training.engine.loop import train
from training.hub import publishing
from training.hub.model_card import RunRecord, model_card
from training.hub.publishing import Publisher
from training.stages.registry import load_configs


REPO = "tester/tiny-alit"
COMMIT = "/commit/"
HOST = "machine-of-somebody"
NUM_KILLS = 6


@pytest.fixture
def hub(monkeypatch):
    """A Hub with this process logged in to it."""
    monkeypatch.setattr(publishing, "RETRY_DELAYS", (0.2, 0.2, 0.2, 0.2))
    monkeypatch.setattr("socket.gethostname", lambda: HOST)
    with logged_in_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def run_config(config):
    """Of a run that pushes; its fields can be overridden."""

    def make(stage: str = "distill", **fields):
        return config(stage, **{"push_to_hub": True, "hub_model_id": REPO, **fields})

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return Path(save_tiny_model(tmp_path_factory.mktemp("model")))


def steps(messages: list[str]) -> list[int]:
    return [int(message.rpartition(" ")[2]) for message in messages]


def environment(hub: HubServer, home: Path, **variables: str) -> dict[str, str]:
    """Of a process that knows this Hub only and has nothing in its cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "home"),
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def leftovers(config) -> list[Path]:
    return sorted(Path(config.output_dir).glob(f"{publishing.FOLDER}/*"))


def write_events(output_dir: str, loss: float, step: int) -> Path:
    """A TensorBoard file with a number, a picture and a text; its name has those of host and process."""
    folder = Path(output_dir) / "alit"
    before = set(folder.glob("*"))
    with SummaryWriter(folder) as writer:
        writer.add_scalar("loss", loss, step)
        writer.add_images("pictures", torch.rand(1, 3, 8, 8), step)
        writer.add_text("command", "python train.py --data /home/me/secret", step)
        writer.add_scalar("learning_rate", 0.5, step)
    (written,) = set(folder.glob("*")) - before
    return written


def scalars(content: bytes, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads from a file; it must hold nothing else."""
    path = folder / "events.out.tfevents.0"
    path.write_bytes(content)
    events = EventAccumulator(str(path)).Reload()
    tags = events.Tags()
    assert not any(tags[kind] for kind in tags if kind != "scalars")
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in tags["scalars"]}


def test_one_push_is_one_commit_with_everything(hub, run_config, model_folder, tmp_path):
    config = run_config()
    write_events(config.output_dir, 1.5, 3)
    publisher = Publisher(config)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert hub.messages(REPO) == ["distill: step 3"]
    files = hub.files(REPO)
    for path in model_folder.rglob("*"):
        assert files[path.name] == path.read_bytes()
    assert scalars(files["logs/distill/events.out.tfevents.0"], tmp_path) == {
        "loss": [(3, 1.5)],
        "learning_rate": [(3, 0.5)],
    }
    assert yaml.safe_load(files["training_config.yaml"])["stage"] == "distill"
    assert files["README.md"].startswith(b"---\n")
    for file, name in (("config.json", "AutoModel"), ("preprocessor_config.json", "AutoImageProcessor")):
        module = json.loads(files[file])["auto_map"][name].partition(".")[0]
        assert f"{module}.py" in files
    assert leftovers(config) == []


def test_nothing_goes_up_but_what_is_listed(hub, run_config, model_folder, tmp_path, photo_folder, vq_base, caplog):
    """Whatever else lies in the folders of run and model; and no name of host, process or folder in any of it."""
    caplog.set_level(logging.INFO)
    secret = b"of this machine"
    model = tmp_path / "model-of-the-run"
    shutil.copytree(model_folder, model)
    strangers = ("optimizer.bin", "notes.txt", ".hidden", "photo.png", "training_args.bin", "model.bin", "config.yaml")
    for name in strangers:
        (model / name).write_bytes(secret)
    (model / "data").mkdir()
    (model / "data" / "config.json").write_bytes(secret)
    config = run_config(
        data__validation=[str(photo_folder)], data__cache_dir=str(tmp_path / "cache"), init_from=vq_base
    )
    events = write_events(config.output_dir, 1.5, 3)
    assert HOST in events.name
    output_dir = Path(config.output_dir)
    (output_dir / "pictures").mkdir()
    for name in ("pictures/00000003.png", "config.yaml", "notes.txt", "alit/hparams.yml"):
        (output_dir / name).write_bytes(secret)
    with open(events, "ab") as file:
        file.write(b"\x40" + bytes(11) + b"an event that is still being written")

    publisher = Publisher(config)
    publisher.push(model, RunRecord(steps=3))
    publisher.finish()
    files = hub.files(REPO)
    code = {path.name for path in model_folder.glob("*.py")}
    assert set(files) == code | {
        ".gitattributes",
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "README.md",
        "training_config.yaml",
        "logs/distill/events.out.tfevents.0",
    }
    hidden = ["of this machine", "secret", HOST, str(tmp_path.parent)]
    assert not [(name, text) for name, content in files.items() for text in hidden if text.encode() in content]
    (said,) = [message for message in caplog.messages if REPO in message and "README.md" in message]
    assert f"at the end, to {REPO} (private): config.json, " in said
    assert "logs/distill/ (scalars)" in said
    assert "pictures" not in said


def test_pictures_go_up_if_asked_for(hub, run_config, model_folder, caplog):
    caplog.set_level(logging.INFO)
    config = run_config(hub_pictures=True)
    folder = Path(config.output_dir) / "pictures"
    folder.mkdir(parents=True)
    for name in ("00000003.png", "notes.txt"):
        (folder / name).write_bytes(b"pixels")
    publisher = Publisher(config)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert [name for name in hub.files(REPO) if name.startswith("pictures/")] == ["pictures/distill/00000003.png"]
    assert "pictures/distill/ (images of data.validation)" in caplog.text


def test_logs_of_earlier_versions_are_taken_away(hub, run_config, model_folder):
    HfApi().create_repo(REPO)
    kept = ["logs/base/events.out.tfevents.0", "weights/model.safetensors", "model-card.txt"]
    for name in ("logs/distill/events.out.tfevents.1.host.7.0", *kept):
        HfApi().upload_file(path_or_fileobj=b"more than scalars", path_in_repo=name, repo_id=REPO)
    config = run_config()
    write_events(config.output_dir, 1.5, 3)
    publisher = Publisher(config)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    files = hub.files(REPO)
    assert [name for name in files if name.startswith("logs/distill/")] == ["logs/distill/events.out.tfevents.0"]
    assert set(kept) <= set(files)


def test_a_run_pushes_on_the_way_and_at_its_end(hub, run_config, photo_folder):
    config = run_config(
        push_every=4,
        logging__checkpoint_every=2,
        logging__validate_every=4,
        logging__pictures_every=0,
        logging__keep=1,
        logging__trackers=["tensorboard"],
        data__validation=[str(photo_folder)],
        data__validation_images=4,
    )
    hub.fail("POST", COMMIT, delay=0.5)
    train(config)
    # 4 steps and the end; not 2, which is a checkpoint only.
    assert steps(hub.messages(REPO)) == [4, 6]
    exported = Path(config.output_dir) / "model" / "model.safetensors"
    assert hub.files(REPO)["model.safetensors"] == exported.read_bytes()
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert {result.metric_type for result in card.data.eval_results} == {"ids", "l1", "psnr", "r2", "spread"}
    assert "logs/distill/events.out.tfevents.0" in hub.files(REPO)
    assert not [name for name in hub.files(REPO) if HOST in name]


def test_the_base_stage_pushes_a_vqmodel(hub, run_config, tmp_path, vq_base):
    config = run_config("base", init_from=vq_base, model={}, optimization__max_steps=3)
    train(config)
    files = hub.files(REPO)
    # diffusers writes down where a model was loaded from.
    assert not [name for name, content in files.items() if vq_base.encode() in content]
    assert json.loads(files["config.json"])["_class_name"] == "VQModel"
    assert ModelCard(files["README.md"].decode()).data.library_name == "diffusers"
    pulled = VQModel.from_pretrained(HfApi().snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    local = VQModel.from_pretrained(Path(config.output_dir) / "model")
    assert all(torch.equal(value, local.state_dict()[name]) for name, value in pulled.state_dict().items())


def test_the_second_stage_starts_from_the_first_on_the_hub(hub, run_config, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    publisher = Publisher(run_config())
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    train(run_config("finetune", init_from=REPO, hub_model_id="tester/second", optimization__max_steps=2))
    files = hub.files("tester/second")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_alit.py"} <= set(files)
    assert files["model.safetensors"] != hub.files(REPO)["model.safetensors"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == REPO
    assert "second stage" in card.text


def test_the_second_stage_replaces_weights_in_other_shards(hub, run_config, model_folder, tmp_path):
    sharded = tmp_path / "sharded"
    ALITModel.from_pretrained(model_folder).save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    for folder, count in ((sharded, 1), (model_folder, 2)):
        publisher = Publisher(run_config())
        publisher.push(folder, RunRecord(steps=count))
        publisher.finish()
    weights = [path for path in hub.files(REPO) if "safetensors" in path]
    assert weights == ["model.safetensors"]


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("POST", COMMIT, {"status": 500}),
        ("POST", COMMIT, {"status": 500, "times": 3}),
        ("POST", COMMIT, {"status": 429, "headers": {"Retry-After": "1"}}),
        ("PUT", LFS_UPLOAD, {"status": 500, "times": 8}),
        ("PUT", LFS_UPLOAD, {"status": 429, "headers": {"Retry-After": "1"}}),
        ("PUT", LFS_UPLOAD, {"status": 0}),
        ("POST", "preupload", {"status": 503}),
        ("POST", "/api/repos/create", {"status": 502}),
    ],
)
def test_a_push_survives_a_hub_that_recovers(hub, run_config, model_folder, method, path, fault, caplog):
    caplog.set_level(logging.INFO)
    config = run_config()
    publisher = Publisher(config)
    hub.fail(method, path, **fault)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert hub.faults == []
    assert hub.messages(REPO) == ["distill: step 3"]
    assert hub.files(REPO)["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
    assert "pushed step 3" in caplog.text
    assert leftovers(config) == []


def test_the_pause_that_the_hub_asks_for_is_kept(hub, run_config, model_folder):
    publisher = Publisher(run_config())
    hub.fail("POST", COMMIT, status=429, headers={"Retry-After": "2"})
    started = time.monotonic()
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert time.monotonic() - started > 2
    assert hub.messages(REPO) == ["distill: step 3"]


def test_training_goes_on_while_the_hub_is_slow(hub, run_config, model_folder):
    publisher = Publisher(run_config())
    hub.fail("PUT", LFS_UPLOAD, delay=1.5)
    started = time.monotonic()
    publisher.push(model_folder, RunRecord(steps=3))
    assert time.monotonic() - started < 1
    publisher.finish()
    assert time.monotonic() - started > 1.5
    assert hub.messages(REPO) == ["distill: step 3"]


def test_of_waiting_pushes_the_newest_wins(hub, run_config, model_folder):
    config = run_config()
    publisher = Publisher(config)
    hub.fail("POST", COMMIT, delay=1.0)
    for step in (1, 2, 3):
        publisher.push(model_folder, RunRecord(steps=step))
        time.sleep(0.2)
    publisher.finish()
    assert steps(hub.messages(REPO)) == [1, 3]
    assert leftovers(config) == []


def test_a_push_that_waits_to_be_tried_again_gives_way_to_a_newer_one(hub, run_config, model_folder, monkeypatch):
    monkeypatch.setattr(publishing, "RETRY_DELAYS", (60.0,))
    config = run_config()
    publisher = Publisher(config)
    hub.fail("POST", COMMIT, status=500)
    publisher.push(model_folder, RunRecord(steps=1))
    while hub.faults:
        time.sleep(0.05)
    started = time.monotonic()
    publisher.push(model_folder, RunRecord(steps=2))
    publisher.finish()
    assert time.monotonic() - started < 30
    assert steps(hub.messages(REPO)) == [2]
    assert leftovers(config) == []


def test_what_is_pushed_was_set_aside_first(hub, run_config, tmp_path):
    """A checkpoint may be pruned, and a log grow, before their turn."""
    folder = Path(save_tiny_model(tmp_path / "checkpoint-3"))
    weights = (folder / "model.safetensors").read_bytes()
    config = run_config()
    log = write_events(config.output_dir, 1.5, 3)
    publisher = Publisher(config)
    hub.fail("POST", "/api/repos/create", delay=0.5)
    publisher.push(folder, RunRecord(steps=3))
    for path in folder.iterdir():
        path.unlink()
    write_events(config.output_dir, 1.0, 4).rename(log)
    publisher.finish()
    assert hub.files(REPO)["model.safetensors"] == weights
    assert scalars(hub.files(REPO)["logs/distill/events.out.tfevents.0"], tmp_path)["loss"] == [(3, 1.5)]


def test_a_run_outlives_a_hub_that_vanishes_in_an_upload(hub, run_config, caplog):
    """The push on the way is lost or late, the run trains on, and the final push reaches the Hub that is back."""
    config = run_config(push_every=2, logging__checkpoint_every=2, logging__pictures_every=0)
    hub.fail("PUT", LFS_UPLOAD, vanish=True)
    original = Publisher.finish

    def finish(publisher):
        while hub.is_up:
            time.sleep(0.05)
        assert hub.messages(REPO) == []  # nothing half-pushed
        hub.start()
        original(publisher)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "RETRY_DELAYS", (0.5,) * 20)
        patch.setattr(Publisher, "finish", finish)
        train(config)
    assert steps(hub.messages(REPO))[-1] == 6
    exported = Path(config.output_dir) / "model"
    assert hub.files(REPO)["model.safetensors"] == (exported / "model.safetensors").read_bytes()
    assert ALITModel.from_pretrained(exported) is not None


def test_a_push_that_never_succeeds_is_reported_and_kept(hub, run_config, model_folder, caplog):
    config = run_config()
    publisher = Publisher(config)
    hub.fail("PUT", LFS_UPLOAD, vanish=True)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    (kept,) = leftovers(config)
    assert (kept / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()
    assert "step 3 was not pushed" in caplog.text
    assert f"hf upload {REPO} {kept} ." in caplog.text
    hub.start()
    assert hub.messages(REPO) == []


def test_of_failed_pushes_one_is_kept(hub, run_config, model_folder, monkeypatch, caplog):
    config = run_config()
    publisher = Publisher(config)
    monkeypatch.setattr(publishing, "RETRY_DELAYS", ())
    hub.fail("POST", COMMIT, status=500, times=2)
    for step in (1, 2):
        publisher.push(model_folder, RunRecord(steps=step))
        while f"step {step} was not pushed" not in caplog.text:
            time.sleep(0.05)
    assert [path.name for path in leftovers(config)] == ["step-2"]
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert hub.messages(REPO) == ["distill: step 3"]
    assert leftovers(config) == []


def test_a_login_that_ends_during_the_run_is_reported(hub, run_config, model_folder, monkeypatch, caplog):
    publisher = Publisher(run_config())
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert "step 3 was not pushed" in caplog.text
    assert "Invalid user token" in caplog.text
    # Asking again would not help.
    assert hub.requests.count("GET /api/whoami-v2") == 2


def test_a_full_disk_does_not_end_the_run(hub, run_config, model_folder, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    config = run_config()
    publisher = Publisher(config)
    monkeypatch.setattr(publishing, "_link_or_copy", full)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert "No space left on device" in caplog.text
    assert leftovers(config) == []


def test_a_hub_that_never_answers_is_given_up(hub, run_config, model_folder, monkeypatch, caplog):
    publisher = Publisher(run_config())
    monkeypatch.setattr(publishing, "_ATTEMPT_LIMIT", 0.3)
    monkeypatch.setattr(publishing, "RETRY_DELAYS", ())
    hub.fail("POST", "/api/repos/create", delay=2)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert "no answer" in caplog.text


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_wrong", REPO, "Invalid user token"),
        (None, REPO, "hf auth login"),
        (TOKEN, "someone-else/model", "don't have the rights"),
        (READ_TOKEN, REPO, "don't have the rights"),
        (NARROW_TOKEN, REPO, "don't have the rights"),
        # These exist, and may be read.
        (TOKEN, "someone-else/public", "may not write to someone-else/public: use a token with write access"),
        (READ_TOKEN, "tester/private", "may not write to tester/private"),
        (READ_TOKEN, "tester/public", "may not write to tester/public"),
        (NARROW_TOKEN, "tester/public", "may not write to tester/public"),
    ],
)
def test_a_login_that_cannot_push_is_an_error_before_training(hub, run_config, monkeypatch, token, repo, message):
    for existing in ("tester/private", "tester/public", "tester/narrow", "someone-else/public"):
        hub.add(existing, private=existing == "tester/private")
    hub.narrow = {"tester/narrow"}
    before = set(hub.repos)
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    config = run_config(hub_model_id=repo)
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not Path(config.output_dir).exists()
    assert set(hub.repos) == before


def test_a_token_for_one_repository_is_enough(hub, run_config, model_folder, monkeypatch):
    hub.add("tester/narrow", private=True)
    hub.narrow = {"tester/narrow"}
    monkeypatch.setenv("HF_TOKEN", NARROW_TOKEN)
    publisher = Publisher(run_config(hub_model_id="tester/narrow"))
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert hub.messages("tester/narrow") == ["distill: step 3"]


def test_a_right_that_is_taken_away_during_the_run_is_reported(hub, run_config, model_folder, monkeypatch, caplog):
    publisher = Publisher(run_config())
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert f"step 3 was not pushed: PermissionError: this login may not write to {REPO}" in caplog.text


def test_offline_mode_is_an_error_before_training(run_config):
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        Publisher(run_config())


def test_a_hub_that_is_down_at_the_start_does_not_stop_the_run(hub, run_config, model_folder, caplog):
    hub.stop()
    caplog.set_level(logging.INFO)
    publisher = Publisher(run_config())
    assert "cannot be reached" in caplog.text
    assert f"to {REPO} (private if it is new): config.json" in caplog.text
    hub.start()
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()
    assert hub.messages(REPO) == ["distill: step 3"]


@pytest.mark.parametrize(
    ("fields", "existing", "private"),
    [
        ({}, None, True),
        ({"hub_private": False}, None, False),
        # What exists stays as it is, and is called what it is.
        ({}, False, False),
        ({"hub_private": False}, True, True),
    ],
)
def test_a_new_repository_is_private_unless_asked(hub, run_config, caplog, fields, existing, private):
    caplog.set_level(logging.INFO)
    if existing is not None:
        hub.add(REPO, private=existing)
    Publisher(run_config(**fields))
    assert hub.repos[REPO].private == private
    assert f"to {REPO} ({'private' if private else 'public'}): config.json" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hub_model_id", "", "`hub_model_id` is ''"),
        ("hub_model_id", "model", "ORG/NAME"),
        ("hub_model_id", "a/b/c", "ORG/NAME"),
        ("hub_model_id", "org/na me", "ORG/NAME"),
        ("push_every", -2, "`push_every` is -2"),
        ("push_every", 3, "multiple of logging.checkpoint_every, which is 2"),
    ],
)
def test_impossible_fields_are_errors(run_config, field, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_config(**{"logging__checkpoint_every": 2, field: value})


def test_the_command_line_of_the_issue(values, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values("distill")), encoding="utf-8")
    (config,) = load_configs(path, ["--push_to_hub", "--hub_model_id", "org/name"])
    assert config.push_to_hub is True
    assert config.hub_model_id == "org/name"
    (config,) = load_configs(path, ["--hub_model_id", "org/name", "--push_to_hub"])
    assert config.push_to_hub is True
    (config,) = load_configs(path, ["--push_to_hub", "false", "--hub_model_id", "org/name"])
    assert config.push_to_hub is False


def test_runs_one_after_another_push_to_repositories_of_their_own(values, tmp_path):
    run = values("base")
    shared = {name: run[name] for name in ("data", "optimization", "logging")}
    path = tmp_path / "runs.yaml"
    sequence = {name: {key: values(name).get(key, {}) for key in ("model", "loss")} for name in ("base", "distill")}
    path.write_text(yaml.safe_dump({"output_dir": "out", **shared, "sequence": sequence}), encoding="utf-8")
    configs = load_configs(path, ["--push_to_hub", "--hub_model_id", "org/name"])
    assert [config.hub_model_id for config in configs] == ["org/name-base", "org/name-distill"]


@pytest.mark.slow
@pytest.mark.parametrize(("token", "code"), [(TOKEN, 0), ("hf_wrong", 2)])
def test_the_command_line_pushes(hub, values, tmp_path, token, code):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values("distill")), encoding="utf-8")
    train_file = Path(__file__).parents[2] / "training" / "train.py"
    command = [sys.executable, str(train_file), "--config", str(path), "--push_to_hub", "--hub_model_id", REPO]
    done = subprocess.run(command, env=environment(hub, tmp_path, HF_TOKEN=token), capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    if code == 0:
        assert "Hub: step 6 is at" in done.stderr
        assert "model.safetensors" in hub.files(REPO)
    else:
        assert "Invalid user token" in done.stderr
        assert hub.repos == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_moment_nothing_is_lost_and_nothing_pushed_twice(hub, values, config, tmp_path, photo_folder):
    """SIGKILL between the start and the end of the last push, again and again, always the same command after it."""
    random.seed(0)
    fields = {"optimization__max_steps": 60, "logging__checkpoint_every": 3, "logging__trackers": ["tensorboard"]}
    fields |= {"data__validation": [str(photo_folder)], "data__validation_images": 4, "logging__validate_every": 10}
    path = tmp_path / "run.yaml"
    pushed = {"push_to_hub": True, "hub_model_id": REPO, "push_every": 3, "resume": "latest"}
    path.write_text(yaml.safe_dump(values("distill", **fields, **pushed)), encoding="utf-8")
    train_file = Path(__file__).parents[2] / "training" / "train.py"
    command = [sys.executable, str(train_file), "--config", str(path)]
    of_this_hub = environment(hub, tmp_path, HF_TOKEN=TOKEN)
    log = tmp_path / "stderr"
    kills = 0
    while True:
        with open(log, "w") as stderr:
            run = subprocess.Popen(command, env=of_this_hub, stderr=stderr)
        while run.poll() is None and "steps of" not in log.read_text():
            time.sleep(0.05)
        try:
            assert run.wait(random.uniform(0, 1.5) if kills < NUM_KILLS else None) == 0, log.read_text()[-3000:]
            break
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            kills += 1
    assert kills > 3
    folder = tmp_path / "distill"
    train(config("distill", **fields, output_dir=str(tmp_path / "through")))
    name = "model/model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "through" / name).read_bytes()
    assert hub.files(REPO)["model.safetensors"] == (folder / name).read_bytes()
    assert "| 4 |" in hub.files(REPO)["README.md"].decode()
    order = steps(hub.messages(REPO))
    assert order[-1] == 60
    assert order == sorted(set(order)), "a step was pushed twice, or after a later one"
    assert sorted(one.name for one in folder.iterdir() if one.name.startswith(".") or one.name == "hub") == []


SCORES = {"validation/l1/4": 0.21, "validation/psnr/4": 12.0, "validation/l1/12": 0.125, "validation/psnr/12": 16.5}


def card_of(config, folder, **values) -> ModelCard:
    return model_card(config, folder, RunRecord(steps=300, seconds=90, undecodable=2, values=values))


@pytest.mark.parametrize("stage", ["distill", "finetune", "fixed"])
def test_the_card_states_what_the_run_measured(run_config, model_folder, stage):
    config = run_config(
        stage,
        data__validation=["held-out.parquet"],
        **({"init_from": "org/first-stage"} if stage == "finetune" else {}),
    )
    scores = {name: (value, 250) for name, value in SCORES.items()}
    card = card_of(config, model_folder, **scores, loss=(1.25, 290))
    metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)[1])
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-feature-extraction"
    assert {"alit", stage} <= set(metadata["tags"])
    assert metadata["metrics"] == ["l1", "psnr"]
    assert metadata.get("base_model") == ("org/first-stage" if stage == "finetune" else None)
    (index,) = metadata["model-index"]
    assert index["name"] == "tiny-alit"
    (results,) = index["results"]
    assert results["dataset"]["name"] == "held-out.parquet"
    measured = {(metric["name"], metric["value"]) for metric in results["metrics"]}
    assert measured == {
        ("L1 at 4 tokens", 0.21),
        ("PSNR at 4 tokens", 12.0),
        ("L1 at 12 tokens", 0.125),
        ("PSNR at 12 tokens", 16.5),
    }
    text = card.text
    assert "| 4 | 0.21 | 12 |" in text
    assert "| 12 | 0.125 | 16.5 |" in text
    assert "weights of step 250 (the\nweights here are those of step 300)" in text
    assert "| `loss` | 1.25 |" in text
    assert "1,200 crops seen, 2 undecodable images skipped" in text
    assert "300 steps of 4 images, 1.5 minutes" in text
    count = ALITModel.from_pretrained(model_folder).num_parameters()
    assert f"| parameters | {count / 1e6:.2f} M |" in text
    assert REPO in text


def test_the_card_without_measurements_claims_none(run_config, model_folder):
    card = card_of(run_config(), model_folder)
    assert "has measured nothing" in card.text
    assert card.data.eval_results is None
    # An infinite PSNR, of identical images, is no result that the Hub could show.
    assert card_of(run_config(), model_folder, **{"validation/psnr/4": (float("inf"), 1)}).data.eval_results is None


@pytest.mark.parametrize("stage", ["base", "distill", "finetune", "fixed"])
def test_the_card_has_no_gaps(run_config, model_folder, vq_base, stage, tmp_path):
    fields = {"init_from": str(model_folder)} if stage == "finetune" else {}
    config = run_config(stage, data__validation=["held-out.parquet"], **fields)
    scores = {name: (value, 300) for name, value in SCORES.items()} | {"validation/lpips/4": (0.5, 300)}
    folder = Path(vq_base) if stage == "base" else model_folder
    if stage in ("distill", "fixed"):
        del scores["validation/lpips/4"]
    text = str(card_of(config, folder, **scores))
    for gap in ("{{", "}}", "{%", "More Information", "TODO", "None", "``", "| |"):
        assert gap not in text.replace("```", ""), gap
    # Paths of the machine stay there.
    assert str(tmp_path.parent) not in text
    assert "\n\n\n" not in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(code, "README.md", "exec")
    assert ("LPIPS is" in text) == (stage in ("base", "finetune"))


@pytest.mark.parametrize("pixel_range", [[0, 1], [-1, 1]], ids=str)
def test_the_card_of_a_base_says_which_pixels_it_takes(
    run_config, vq_base, photo_folder, tmp_path, monkeypatch, pixel_range
):
    model = VQModel.from_pretrained(vq_base)
    model.register_to_config(_pixel_range=pixel_range)
    model.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    shutil.copy(photo_folder / "00.png", "photo.jpg")
    text = str(card_of(run_config("base"), tmp_path / "base"))
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace(REPO, "base"), names)
    low, high = pixel_range
    with torch.no_grad():
        expected = model(names["inputs"] * (high - low) + low).sample
    torch.testing.assert_close(names["pixels"] * (high - low) + low, expected)


PULL = """
import sys
if sys.argv[1] == "without":
    # As if it were not installed.
    sys.modules["alit_hf"] = None
else:
    import alit_hf
import torch
from transformers import AutoImageProcessor, AutoModel

trust = sys.argv[1] == "without"
model = AutoModel.from_pretrained(sys.argv[2], trust_remote_code=trust).eval()
processor = AutoImageProcessor.from_pretrained(sys.argv[2], trust_remote_code=trust)
assert ("alit_hf." in type(model).__module__) != trust, type(model)
assert ("alit_hf." in type(processor).__module__) != trust, type(processor)
pixels = torch.load(sys.argv[3])
inputs = processor(list(pixels), return_tensors="pt")
with torch.no_grad():
    code = model.encode(**inputs, num_tokens=8)
    image = model.decode(token_ids=code.token_ids, num_tokens=code.num_tokens).pixel_values
torch.save((code.token_ids, image), sys.argv[4])
"""


@pytest.mark.parametrize("alit_hf", ["with", "without"])
def test_a_pushed_model_is_pulled_into_an_empty_cache(hub, run_config, model_folder, tmp_path, alit_hf):
    publisher = Publisher(run_config())
    publisher.push(model_folder, RunRecord(steps=3))
    publisher.finish()

    model = ALITModel.from_pretrained(model_folder).eval()
    pixels = torch.randint(256, (2, 3, 40, 36), dtype=torch.uint8)
    torch.save(pixels, tmp_path / "pixels.pt")
    inputs = ALITImageProcessor.from_pretrained(model_folder)(list(pixels), return_tensors="pt")
    with torch.no_grad():
        code = model.encode(**inputs, num_tokens=8)
        image = model.decode(token_ids=code.token_ids, num_tokens=code.num_tokens).pixel_values

    script = tmp_path / "pull.py"
    script.write_text(PULL, encoding="utf-8")
    command = [sys.executable, str(script), alit_hf, REPO, str(tmp_path / "pixels.pt"), str(tmp_path / "code.pt")]
    of_this_hub = environment(hub, tmp_path, HF_TOKEN=READ_TOKEN)
    done = subprocess.run(command, env=of_this_hub, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ids, pulled_image = torch.load(tmp_path / "code.pt")
    assert torch.equal(ids, code.token_ids)
    torch.testing.assert_close(pulled_image, image, atol=1e-5, rtol=0)
