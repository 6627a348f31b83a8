"""Stage `lengths`: it learns the model's own scores, calibrates on held-out images and changes nothing else."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from random_lpips import random_lpips
from safetensors.torch import load_file
from tiny_config import tiny_model

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.model import selection
from alit_hf.model.selection import l1
from training.engine.loop import Trainer, train
from training.engine.monitoring import Display
from training.images.batches import load_validation
from training.stages.registry import config_from_dict


@pytest.fixture
def finished(tmp_path) -> str:
    folder = str(tmp_path / "finished")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Dark to bright pictures, on which a random model's errors are very different."""
    for name, count in (("train", 48), ("held-out", 24)):
        (tmp_path / name).mkdir()
        for number in range(count):
            random = np.random.default_rng((len(name), number))
            coarse = np.uint8(random.uniform(0, 200) + 50 * random.random((4, 4, 3)))
            picture = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
            picture.save(tmp_path / name / f"{number:02d}.png")
    return {"data__train": [str(tmp_path / "train")], "data__validation": [str(tmp_path / "held-out")]}


@pytest.fixture
def fields(finished, photos) -> dict:
    return {
        **photos,
        "init_from": finished,
        "loss": {"criterion": "l1"},
        "data__cached_crops": 1,
        "optimization__batch_size": 16,
        "optimization__learning_rate": 0.01,
        "optimization__max_steps": 300,
        "logging__log_every": 300,
        "logging__pictures_every": 0,
    }


@torch.no_grad()
def true_logs(model: ALITModel, pixel_values: torch.Tensor) -> torch.Tensor:
    return torch.stack([l1(one.reconstruction, pixel_values) for one in model.rollouts(pixel_values)], dim=1).log()


def test_it_learns_the_models_scores_and_promises_them(config, fields, finished, tmp_path, monkeypatch):
    logged: dict[str, float] = {}
    monkeypatch.setattr(Display, "scalars", lambda _, values, step: logged.update(values))
    run = config("lengths", **fields)
    train(run)
    model = ALITModel.from_pretrained(tmp_path / "lengths" / "model")
    held_out = load_validation(run.data).float() / 255
    true = true_logs(model, held_out)

    spread = (true - true.mean(dim=0)).square().mean().sqrt()
    assert logged["validation/error"] < 0.5 * spread
    # Calibrated on these images, each bound holds on the share that was promised, at all lengths at once.
    shortfalls = model.config.length_shortfalls
    assert len(shortfalls) == 24
    for confidence in (0.5, 0.9):
        for threshold in true.exp().quantile(torch.tensor([0.2, 0.5, 0.8])).tolist():
            with torch.no_grad():
                code = model.encode(held_out, threshold=threshold, confidence=confidence)
            scores = true.gather(1, code.num_tokens.unsqueeze(1) // model.config.tokens_per_rollout - 1).squeeze(1)
            kept = (scores.exp() < threshold) | (code.num_tokens == model.config.max_tokens)
            assert kept.float().mean() >= confidence - 1e-6
    assert logged["validation/margin/0.9"] == pytest.approx(shortfalls[22])
    ALITImageProcessor.from_pretrained(tmp_path / "lengths" / "model")

    before, after = (load_file(f"{folder}/model.safetensors") for folder in (finished, tmp_path / "lengths" / "model"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(name.startswith("length_predictor.") for name in set(after) - set(before))


def test_a_resumed_run_equals_one_that_went_through(config, fields, tmp_path):
    fields |= {"optimization__max_steps": 6, "logging__checkpoint_every": 3, "logging__keep": 5}
    train(config("lengths", **fields))
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "lengths" / "checkpoint-3", resumed / "checkpoint-3")
    train(config("lengths", **fields, output_dir=str(resumed), resume="latest"))
    one, two = (ALITModel.from_pretrained(tmp_path / run / "model") for run in ("lengths", "resumed"))
    assert one.config.length_shortfalls == two.config.length_shortfalls is not None
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_a_run_killed_before_its_export_keeps_the_calibration(config, fields, tmp_path):
    fields |= {"optimization__max_steps": 3}
    train(config("lengths", **fields))
    expected = ALITModel.from_pretrained(tmp_path / "lengths" / "model").config.length_shortfalls
    shutil.rmtree(tmp_path / "lengths" / "model")
    train(config("lengths", **fields, resume="latest"))
    assert ALITModel.from_pretrained(tmp_path / "lengths" / "model").config.length_shortfalls == expected


def test_a_calibration_is_only_of_the_weights_beside_it(config, fields, tmp_path):
    """Checkpoints between validations have none."""
    fields |= {"optimization__max_steps": 4, "logging__checkpoint_every": 1, "logging__keep": 5}
    train(config("lengths", **fields, logging__validate_every=2))
    shortfalls = [
        ALITModel.from_pretrained(tmp_path / "lengths" / f"checkpoint-{step}" / "model").config.length_shortfalls
        for step in (1, 2, 3, 4)
    ]
    assert [one is not None for one in shortfalls] == [False, True, False, True]
    assert shortfalls[1] != shortfalls[3]


def test_a_further_finetune_takes_a_stale_predictor_away(config, fields, tmp_path):
    train(config("lengths", **fields | {"optimization__max_steps": 2}))
    tuned = {"init_from": str(tmp_path / "lengths" / "model"), "optimization__max_steps": 2}
    train(config("finetune", **tuned))
    model = ALITModel.from_pretrained(tmp_path / "finetune" / "model")
    assert model.length_predictor is None
    assert model.config.length_criterion is None
    assert model.config.length_shortfalls is None


@pytest.mark.parametrize("criterion", ["psnr", "l2", "lpips"])
def test_other_criteria(config, fields, tmp_path, criterion, monkeypatch):
    monkeypatch.setitem(selection._FACTORIES, "lpips", lambda: random_lpips("alex", normalize=True))
    fields |= {"optimization__max_steps": 2, "loss": {"criterion": criterion}}
    train(config("lengths", **fields))
    model = ALITModel.from_pretrained(tmp_path / "lengths" / "model")
    assert model.config.length_criterion == criterion
    with torch.no_grad():
        code = model.encode(torch.rand(2, 3, 32, 32), threshold=1.0, confidence=0.9, criterion=criterion)
    assert code.score_is_bound.all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss", {"criterion": "L1"}, r"`loss.criterion` is 'L1', it must be one of \['l1'"),
        ("data__validation", [], "`data.validation` is .*, it must be the images to calibrate on"),
        ("init_from", "", "`init_from` is '', it must be"),
        ("model", {"hidden_size": 8}, "`model` is .*, it must be empty"),
        ("optimization__mixed_precision", "bf16", "`optimization.mixed_precision` is 'bf16', it must be 'no'"),
        ("optimization__optimizer", "muon", "`optimization.optimizer` is 'muon', it must be 'adamw'"),
    ],
)
def test_runs_that_cannot_be_are_refused(values, fields, field, value, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(values("lengths", **fields | {field: value}))


def test_only_the_predictor_trains(config, fields):
    trainer = Trainer(config("lengths", **fields))
    names = [name for name, parameter in trainer.stage.named_parameters() if parameter.requires_grad]
    assert names
    assert all(name.startswith("model.length_predictor.") for name in names)
    trainer.close()
