import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from diffusers import VQModel
from PIL import Image
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from alit_hf import ALITImageProcessor, ALITModel
from training.engine.averaging import WeightAverage
from training.engine.checkpointing import CheckpointError, checkpoints
from training.engine.loop import InterruptedTrainingError, Trainer, train
from training.engine.monitoring import Display, NonFiniteLossError
from training.images.batches import UndecodableImagesError
from training.stages.base import BaseStage
from training.stages.distill import DistillStage
from training.stages.finetune import FinetuneStage


@pytest.fixture
def first_model(config, tmp_path) -> str:
    """An untrained model for `finetune` to start from."""
    folder = str(tmp_path / "first")
    DistillStage.build(config("distill")).model.save_pretrained(folder)
    return folder


@pytest.fixture
def scalars(monkeypatch) -> dict[int, dict[str, float]]:
    """What runs log, by step."""
    logged: dict[int, dict[str, float]] = {}
    original = Display.scalars

    def spy(self, values, step):
        logged.setdefault(step, {}).update(values)
        original(self, values, step)

    monkeypatch.setattr(Display, "scalars", spy)
    return logged


def contents(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds but times and speeds, flattened to tensors by name."""
    found = {}

    def add(name, value):
        if isinstance(value, dict):
            for key, part in value.items():
                add(f"{name}/{key}", part)
        elif isinstance(value, (list, tuple)):
            for key, part in enumerate(value):
                add(f"{name}/{key}", part)
        elif isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, (int, float)):
            found[name] = torch.tensor(value, dtype=torch.float64)

    for path in sorted(checkpoint.rglob("*")):
        if path.suffix == ".safetensors":
            add(str(path.relative_to(checkpoint)), load_file(path))
        elif path.suffix in (".bin", ".pkl"):
            add(path.name, torch.load(path, weights_only=False))
    return {name: value for name, value in found.items() if "second" not in name}


def assert_equal_checkpoints(one: Path, two: Path) -> None:
    first, second = contents(one), contents(two)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


CASES = {
    "base": {"loss__adversarial_weight": 0.5, "loss__adversarial_start": 3, "loss__discriminator_layers": 1},
    "distill": {"optimization__micro_batch_size": 2},
    "fixed": {"data__streaming": True, "data__in_memory": False, "data__shuffle_buffer": 7},
    "finetune": {"loss__adversarial_weight": 0.5, "loss__discriminator_layers": 1, "loss__revive_every": 2},
    "finetune with buckets": {
        "data__buckets": [32, [32, 48], [48, 32]],
        "data__crop_scale": 0.5,
        "loss__adversarial_weight": 0.5,
        "loss__discriminator_layers": 1,
    },
    # The codebook set at step 8 clusters latents from before and after the checkpoint at step 6.
    "distill with Muon": {
        "optimization__optimizer": "muon",
        "loss__rollouts": "drawn",
        "loss__halting": False,
        "loss__rollout_dropout": 0.5,
        "loss__quantize_from": 8,
        "loss__latent_noise": 0.1,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_one_that_went_through(config, tmp_path, first_model, case):
    name = case.split()[0]
    fields = {**CASES[case], "logging__checkpoint_every": 3, "logging__keep": 5, "optimization__max_steps": 10}
    if name == "finetune":
        fields["init_from"] = first_model
    train(config(name, **fields))
    through = tmp_path / name
    resumed = tmp_path / "resumed"
    shutil.copytree(through / "checkpoint-6", resumed / "checkpoint-6")
    train(config(name, **fields, output_dir=str(resumed), resume="latest"))
    assert [path.name for path in checkpoints(resumed)] == ["checkpoint-6", "checkpoint-9", "checkpoint-10"]
    assert_equal_checkpoints(through / "checkpoint-10", resumed / "checkpoint-10")
    early, late = (
        {key for key in contents(through / name) if "/logged/" not in key}
        for name in ("checkpoint-6", "checkpoint-10")
    )
    assert early == late
    moved = load_file(through / "checkpoint-6" / "model.safetensors")
    assert any(
        not torch.equal(value, moved[key])
        for key, value in load_file(through / "checkpoint-10" / "model.safetensors").items()
    )


def test_what_a_run_leaves_can_be_used(config, tmp_path, photo_folder, first_model):
    fields = {"data__validation": [str(photo_folder)], "data__validation_images": 3, "logging__pictures_every": 3}
    train(config("base", **fields))
    train(config("distill", **fields))
    train(
        config("finetune", **fields, init_from=str(tmp_path / "distill" / "model"), logging__trackers=["tensorboard"])
    )
    model = VQModel.from_pretrained(tmp_path / "base" / "model")
    assert model.config.num_vq_embeddings == 16
    for name in ("distill", "finetune"):
        folder = tmp_path / name / "model"
        model = ALITModel.from_pretrained(folder).eval()
        processor = ALITImageProcessor.from_pretrained(folder)
        picture = next(photo_folder.iterdir())
        with torch.no_grad():
            code = model.encode(**processor(str(picture), return_tensors="pt"), num_tokens=8)
        assert code.token_ids.shape == (1, 8)
        assert sorted(path.name for path in (tmp_path / name / "pictures").iterdir()) == [
            "00000003.png",
            "00000006.png",
        ]
        assert (tmp_path / name / "config.yaml").is_file()
        assert not list((tmp_path / name).glob(".unfinished*"))
    assert list((tmp_path / "finetune").rglob("events.out.tfevents*"))


def test_the_saved_model_is_the_average_of_the_whole_run(config, tmp_path, monkeypatch):
    """Against the definition by hand, over two epochs of five steps."""
    expected: list[torch.Tensor] = []
    original = WeightAverage.update
    steps = itertools.count(1)

    def spy(self):
        original(self)
        parameters = [parameter.detach().clone() for parameter in self._parameters]
        step = next(steps)
        decay = 0.0 if step == 1 else min(0.9, step / (step + 9))
        if not expected:
            expected.extend(parameters)
        for average, parameter in zip(expected, parameters, strict=True):
            average.copy_(decay * average + (1 - decay) * parameter)

    monkeypatch.setattr(WeightAverage, "update", spy)
    fields = {"optimization__max_steps": 0, "optimization__epochs": 2, "loss__revive_every": 0}
    train(config("distill", **fields))
    (checkpoint,) = checkpoints(tmp_path / "distill")
    assert checkpoint.name == "checkpoint-10"
    model = ALITModel.from_pretrained(checkpoint / "model")
    for parameter, average in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, average)


def test_micro_batches_add_up_to_the_batch(config, tmp_path, scalars):
    steps = {}
    for micro in (4, 1):
        fields = {
            "loss__halting": False,
            "logging__log_every": 1,
            "optimization__max_steps": 3,
            "loss__revive_every": 0,
        }
        folder = str(tmp_path / str(micro))
        train(config("distill", **fields, optimization__micro_batch_size=micro, output_dir=folder))
        steps[micro] = [(scalars[step]["loss"], scalars[step]["gradient_norm"]) for step in (1, 2, 3)]
    torch.testing.assert_close(torch.tensor(steps[1]), torch.tensor(steps[4]), rtol=1e-4, atol=1e-4)


def test_the_discriminator_is_only_moved_by_its_own_steps(config, monkeypatch, first_model):
    made = config("finetune", init_from=first_model, **CASES["finetune"] | {"loss__revive_every": 0})
    trainer = Trainer(made)
    stage = trainer.stage
    adversary = {key: value.clone() for key, value in stage.adversary.discriminator.state_dict().items()}
    order = []
    original = trainer.opponent.step

    def step(*batch):
        assert all(
            torch.equal(value, adversary[key]) for key, value in stage.adversary.discriminator.state_dict().items()
        )
        before = {key: value.clone() for key, value in stage.state_dict().items()}
        scalars = original(*batch)
        assert all(torch.equal(value, before[key]) for key, value in stage.state_dict().items())
        adversary.update({key: value.clone() for key, value in stage.adversary.discriminator.state_dict().items()})
        order.append("discriminator")
        return scalars

    monkeypatch.setattr(trainer.opponent, "step", step)
    for trainer.progress.steps in range(3):
        before = stage.model.encoder.layers[0].mlp.fc1.weight.detach().clone()
        discriminator = stage.adversary.discriminator.head.weight.detach().clone()
        trainer._step()
        assert not torch.equal(stage.model.encoder.layers[0].mlp.fc1.weight, before)
        assert not torch.equal(stage.adversary.discriminator.head.weight, discriminator)
    assert order == ["discriminator"] * 3  # one to each step of the generator
    trainer.close()


def test_dead_codes_are_revived_on_the_way_and_enter_the_average_as_they_are(config, monkeypatch):
    trainer = Trainer(config("distill", loss__revive_every=2, model__codebook_size=64))
    replaced = []
    original = trainer.stage.end_step
    monkeypatch.setattr(trainer.stage, "end_step", lambda: replaced.append(original()) or replaced[-1])
    for trainer.progress.steps in range(2):
        trainer._step()
    assert replaced[0] == []
    (revival,) = replaced[1]
    assert revival.rows.any()
    codebook = trainer.stage.model.quantizer.codebook.weight
    revived = codebook[revival.rows].clone()
    with trainer.average.applied():
        assert torch.equal(codebook[revival.rows], revived)
    trainer.close()


def test_deepspeed_is_told_the_batch_sizes_and_refused_an_adversary(config, first_model, monkeypatch):
    """As far as it goes where DeepSpeed is not installed: up to `Accelerator.prepare`."""
    plugin = SimpleNamespace(deepspeed_config={"train_micro_batch_size_per_gpu": "auto"}, enable_msamp=False)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", plugin)
    monkeypatch.setattr(Accelerator, "prepare", Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        Trainer(config("distill", optimization__micro_batch_size=2))
    assert plugin.deepspeed_config == {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(ValueError, match=r"`loss\.adversarial_weight` is 0\.5"):
        Trainer(config("finetune", init_from=first_model, loss__adversarial_weight=0.5))


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_muon_is_refused_where_weights_are_sharded(config, monkeypatch, kind):
    plugin = SimpleNamespace(deepspeed_config={}, enable_msamp=False)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", plugin)
    monkeypatch.setattr("training.engine.loop.prepare", Mock(side_effect=InterruptedError))
    with pytest.raises(ValueError, match=r"`optimization\.optimizer` is 'muon'.*sharded"):
        Trainer(config("distill", optimization__optimizer="muon"))
    with pytest.raises(InterruptedError):
        Trainer(config("distill"))


def test_muon_is_refused_where_there_are_no_transformer_layers(config):
    with pytest.raises(ValueError, match=r"`optimization\.optimizer` is 'muon'.*stage base"):
        config("base", optimization__optimizer="muon")


class Waiting(TorchDispatchMode):
    """Notes the operations whose result, on an accelerator, the host would have to wait for."""

    operations = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.equal,
        torch.ops.aten.masked_select,
        torch.ops.aten.nonzero,
        torch.ops.aten._unique2,
    )
    indexing = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)

    def __init__(self, monkeypatch):
        super().__init__()
        self.found: list[str] = []
        for name in ("tolist", "numpy", "cpu"):  # on a CPU these reach no operation
            monkeypatch.setattr(torch.Tensor, name, self._noting(name))

    def _noting(self, name):
        original = getattr(torch.Tensor, name)
        return lambda tensor, *arguments: self.found.append(name) or original(tensor, *arguments)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        by_mask = function.overloadpacket in self.indexing and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if by_mask or function.overloadpacket in self.operations:
            self.found.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", ["base", "distill", "finetune"])
def test_a_step_does_not_wait_for_the_device(config, first_model, monkeypatch, name):
    """With revival of codes, halting and, where there is one, the adversary; after the base's codebook was set."""
    fields = CASES[name] | ({"init_from": first_model} if name == "finetune" else {})
    fields |= {"optimization__micro_batch_size": 2, "loss__revive_every": 1}
    trainer = Trainer(config(name, **fields))
    trainer.batches = iter(list(itertools.islice(trainer.batches, 10)))
    waiting = Waiting(monkeypatch)
    for trainer.progress.steps in range(2, 7):
        with waiting:
            trainer._step()
    assert waiting.found == []
    with waiting:
        trainer._scalars()
    assert waiting.found
    trainer.close()


def test_old_checkpoints_are_pruned(config, tmp_path):
    train(config("distill", logging__checkpoint_every=1, logging__keep=2))
    assert [path.name for path in checkpoints(tmp_path / "distill")] == ["checkpoint-5", "checkpoint-6"]


def test_a_second_run_does_not_mix_with_the_first(config, tmp_path):
    fields = {"logging__checkpoint_every": 3, "optimization__max_steps": 4}
    train(config("distill", **fields))
    before = contents(tmp_path / "distill" / "checkpoint-4")
    with pytest.raises(ValueError, match="--resume latest"):
        train(config("distill", **fields))
    after = contents(tmp_path / "distill" / "checkpoint-4")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(ValueError, match="`resume` is 'nowhere'"):
        train(config("distill", **fields, resume="nowhere"))


def test_resuming_nothing_starts_anew_and_a_finished_run_ends_at_once(config, tmp_path, scalars, monkeypatch):
    train(config("distill", resume="latest"))
    assert (tmp_path / "distill" / "model").is_dir()
    shutil.rmtree(tmp_path / "distill" / "model")
    scalars.clear()
    train(config("distill", resume="latest"))
    assert not scalars
    assert (tmp_path / "distill" / "model").is_dir()
    # With its model there, not even the data are opened.
    monkeypatch.setattr("training.engine.loop.TrainingImages", Mock(side_effect=AssertionError))
    train(config("distill", resume="latest"))
    with pytest.raises(ValueError, match=r"`data\.train` is \['nowhere/'\]"):
        train(config("distill", resume="latest", data__train=["nowhere/"]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(config, tmp_path, monkeypatch, number):
    original = BaseStage.training_loss

    def training_loss(self, pixel_values):
        if self.step == 3:
            os.kill(os.getpid(), number)
        return original(self, pixel_values)

    handler = signal.getsignal(number)
    monkeypatch.setattr(BaseStage, "training_loss", training_loss)
    with pytest.raises(InterruptedTrainingError, match=f"by {number.name} after 4 of 6 steps"):
        train(config("base"))
    assert signal.getsignal(number) == handler
    monkeypatch.setattr(BaseStage, "training_loss", original)
    train(config("base", resume="latest"))
    through = tmp_path / "through"
    train(config("base", output_dir=str(through)))
    assert_equal_checkpoints(tmp_path / "base" / "checkpoint-6", through / "checkpoint-6")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_loss_stops_the_run_and_says_where(config, tmp_path, monkeypatch, where):
    original = BaseStage.training_loss

    def training_loss(self, pixel_values):
        loss, logs = original(self, pixel_values)
        if self.step == 4 and where == "loss":
            loss = loss * float("nan")
            logs = {**logs, "loss": loss.detach()}
        if self.step == 4 and where == "gradient":
            loss = loss + (self.model.decoder.conv_out.bias.sum() * 0).sqrt() * 0
        return loss, logs

    monkeypatch.setattr(BaseStage, "training_loss", training_loss)
    fields = {"logging__checkpoint_every": 2, "logging__log_every": 6}
    with pytest.raises(
        NonFiniteLossError, match="Step 5: .*gradient_norm" if where == "gradient" else "Step 5: .*loss"
    ):
        train(config("base", **fields))
    assert [path.name for path in checkpoints(tmp_path / "base")] == ["checkpoint-2", "checkpoint-4"]
    good = contents(tmp_path / "base" / "checkpoint-4")
    assert all(value.isfinite().all() for value in good.values() if value.is_floating_point())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_leaves_older_checkpoints(config, tmp_path, monkeypatch, error):
    original = Accelerator.save_state

    def save_state(self, output_dir):
        original(self, output_dir)
        if output_dir.endswith("checkpoint-4"):
            raise error

    monkeypatch.setattr(Accelerator, "save_state", save_state)
    with pytest.raises(CheckpointError, match="step 4 could not be written"):
        train(config("distill", logging__checkpoint_every=2))
    (kept,) = checkpoints(tmp_path / "distill")
    assert kept.name == "checkpoint-2"
    assert not list((tmp_path / "distill").glob(".unfinished*"))
    monkeypatch.setattr(Accelerator, "save_state", original)
    train(config("distill", resume="latest"))


def test_too_many_undecodable_images_stop_the_run(config, tmp_path, photo_folder, scalars):
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    (folder / "00.png").write_bytes(b"no picture")
    fields = {"data__train": [str(folder)], "data__in_memory": False, "optimization__max_steps": 5}
    train(config("distill", **fields))
    assert scalars[5]["undecodable"] == 1
    progress = json.loads((tmp_path / "distill" / "checkpoint-5" / "progress.json").read_text())
    assert progress["undecodable"] == 1
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UndecodableImagesError, match="None of the 20"):
        train(config("distill", **fields, output_dir=str(tmp_path / "other")))


def test_a_run_can_be_limited_in_time(config, tmp_path, scalars):
    """The learning rate is annealed to the end, wherever that is."""
    train(config("distill", optimization__max_steps=10**6, optimization__max_minutes=0.02, logging__log_every=1))
    rates = [scalars[step]["learning_rate"] for step in sorted(scalars)]
    assert 2 < len(rates) < 1000
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]
    assert (tmp_path / "distill" / "model").is_dir()


def test_validation_scores_the_average(config, photo_folder, scalars, monkeypatch):
    fields = {"data__validation": [str(photo_folder)], "data__validation_images": 5, "optimization__max_steps": 3}
    trainer = Trainer(config("base", **fields))
    trainer.run()
    found = scalars[3]["validation/l1"]
    (held_out,) = trainer.held_out.values()
    assert held_out.shape == (5, 3, 32, 32)
    model = VQModel.from_pretrained(Path(trainer.config.output_dir) / "model").eval()
    originals = held_out.float() / 255
    with torch.no_grad():
        reconstruction = model(originals).sample.clamp(0, 1)
    assert found == pytest.approx(float((reconstruction - originals).abs().mean()), rel=1e-4)
    trainer.close()


def test_a_run_with_buckets_trains_on_all_and_validates_at_each(
    config, tmp_path, photo_folder, first_model, scalars, monkeypatch
):
    """Its pictures of the other sizes are those of the saved model with `interpolate_pos_encoding`."""
    seen = []
    original = FinetuneStage.training_loss
    monkeypatch.setattr(
        FinetuneStage,
        "training_loss",
        lambda self, pixel_values: (seen.append(tuple(pixel_values.shape[2:])), original(self, pixel_values))[1],
    )
    fields = {"data__buckets": [[48, 32], 32, [32, 48]], "data__validation": [str(photo_folder)]}
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate([(56, 48), (30, 50), (50, 30)] * 4):
        Image.linear_gradient("L").resize(size).convert("RGB").save(photos / f"{number:02d}.png")
    run = config("finetune", init_from=first_model, data__train=[str(photos)], data__validation_images=4, **fields)
    trainer = Trainer(run)
    trainer.run()
    assert set(seen) == {(32, 32), (48, 32), (32, 48)}
    model = ALITModel.from_pretrained(tmp_path / "finetune" / "model").eval()
    assert model.config.image_height_width == (32, 32)
    for size, name in (((32, 32), "validation"), ((48, 32), "validation-48x32"), ((32, 48), "validation-32x48")):
        originals = trainer.held_out[size].float() / 255
        with torch.no_grad():
            (*_, last) = model.rollouts(originals, interpolate_pos_encoding=True)
        expected = float((last.reconstruction.clamp(0, 1) - originals).abs().mean())
        assert scalars[6][f"{name}/l1/{last.num_tokens}"] == pytest.approx(expected, rel=1e-4)
    assert Image.open(tmp_path / "finetune" / "pictures" / "00000006.png").width == 5 * 32
    trainer.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"optimization__mixed_precision": "bf16"},
        {"optimization__channels_last": True, "optimization__gradient_checkpointing": True},
        # Compiling takes minutes.
        pytest.param({"optimization__compile": True}, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
    ids=["bf16", "layout and recomputation", "compile"],
)
@pytest.mark.parametrize("name", ["base", "distill", "finetune"])
def test_economies_change_no_more_than_rounding(config, tmp_path, scalars, first_model, name, fields):
    start = {"init_from": first_model} if name == "finetune" else {}
    plain = {"logging__log_every": 1, "optimization__max_steps": 2, **start}
    plain |= {"distill": {"loss__halting": False}, "base": {"loss__codebook_start": 0}}.get(name, {})
    losses = []
    for folder, extra in (("plain", {}), ("changed", fields)):
        scalars.clear()
        AcceleratorState._reset_state(True)
        torch._dynamo.reset()
        counters.clear()
        train(config(name, **plain, **extra, output_dir=str(tmp_path / folder)))
        assert (counters["stats"]["unique_graphs"] > 0) == ("optimization__compile" in extra)
        losses.append([scalars[step]["loss"] for step in (1, 2)])
    tolerance = 3e-2 if "optimization__mixed_precision" in fields else 1e-4
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


@pytest.mark.parametrize(
    ("precision", "is_native", "is_said"), [("bf16", False, True), ("bf16", True, False), ("no", False, False)]
)
def test_precision_that_the_processor_emulates_is_said(config, monkeypatch, caplog, precision, is_native, is_said):
    monkeypatch.setattr("training.engine.loop.computes_bfloat16", lambda device: is_native)
    Trainer(config("distill", optimization__mixed_precision=precision)).close()
    assert ("`optimization.mixed_precision` is 'bf16', but this cpu is not known" in caplog.text) is is_said
