import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from PIL import Image
from random_lpips import random_lpips
from safetensors.torch import load_file

from alit_hf import ALITImageProcessor, ALITModel
from alit_hf.conversion import load_original
from training.configuration import OptimizationConfig
from training.engine.optimization import optimizers
from training.stages.distill import DistillStage
from training.stages.finetune import FinetuneStage
from training.stages.loss_config import DistillLossConfig
from training.stages.registry import STAGES


FIXTURE = Path(__file__).parents[1] / "fixtures" / "alit_vqgan_quantized"
HALF_AS_DEEP = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32)


@pytest.fixture
def build(config, tmp_path):
    """Makes a stage; `finetune` starts from an untrained model, or from the given one."""

    def make(name, /, **fields):
        if name == "finetune" and "init_from" not in fields:
            fields["init_from"] = str(tmp_path / "first")
            make("distill").model.save_pretrained(fields["init_from"])
        made = config(name, **fields)
        torch.manual_seed(0)
        return STAGES[name].build(made).train()

    return make


def gradients(stage, pixels) -> dict[str, torch.Tensor | None]:
    stage.zero_grad()
    loss, _ = stage.training_loss(pixels)
    loss.backward()
    return {name: parameter.grad for name, parameter in stage.named_parameters()}


def moved(stage, pixels, steps: int = 1) -> set[str]:
    """Names of the parameters that training steps move."""
    optimizer = torch.optim.SGD([parameter for parameter in stage.parameters() if parameter.requires_grad], lr=1.0)
    before = {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}
    for _ in range(steps):
        loss, _ = stage.training_loss(pixels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, parameter in stage.named_parameters() if not torch.equal(parameter, before[name])}


def test_first_stage_losses_are_the_published_ones():
    """Smoothing 0 and halting off, as the fixture was computed."""
    expected = json.loads((FIXTURE / "meta.json").read_text())["stage1"]
    model = load_original(FIXTURE / "original_state_dict.safetensors", num_attention_heads=4)
    pixels = load_file(FIXTURE / "expected.safetensors")["pixels_uint8"].float() / 255
    stage = DistillStage(model, DistillLossConfig(label_smoothing=0, halting=False)).train()
    with torch.no_grad():
        loss, logs = stage.training_loss(pixels)
    assert float(loss) == pytest.approx(expected["total_loss"], rel=1e-4)
    for index, terms in enumerate(expected["per_rollout"]):
        length = 32 * (index + 1)
        assert float(logs[f"nll/{length}"]) == pytest.approx(terms[f"nll_loss_{index}"], rel=1e-4)
        assert float(logs[f"code/{length}"]) == pytest.approx(terms[f"code_loss_{index}"], rel=1e-4)
        assert float(logs[f"quantization/{length}"]) == pytest.approx(terms[f"quantization_loss_{index}"], rel=1e-4)


@pytest.mark.parametrize("base", ["vq_base", "kl_base"])
def test_distillation_trains_all_but_the_base(build, pixels, request, base):
    stage = build("distill", init_from=request.getfixturevalue(base))
    names = moved(stage, pixels, steps=3)
    assert not [name for name in names if "base_tokenizer" in name]
    rest = {name for name, _ in stage.named_parameters() if "base_tokenizer" not in name}
    # Only where a position was halted the mask token is seen.
    assert rest - names <= {"model.embeddings.mask_token"}
    assert not any(module.training for module in stage.model.base_tokenizer.modules())
    assert stage.model.encoder.training


def test_every_trained_parameter_gets_a_gradient(build, pixels):
    """Distributed training would otherwise wait for ever, or need `find_unused_parameters`."""
    cases = [
        ("distill", {}),
        ("fixed", {}),
        ("base", {"loss__codebook_start": 0}),
        ("base", {"loss__codebook_start": 1}),
        ("finetune", {}),
    ]
    for name, fields in cases:
        stage = build(name, **fields)
        for rollout in range(3 if name == "finetune" else 1):
            stage.drawn_rollout = lambda rollout=rollout: rollout
            found = gradients(stage, pixels)
            trained = {key for key, parameter in stage.named_parameters() if parameter.requires_grad}
            assert not [key for key in trained if found[key] is None], (name, rollout)


def test_halting_is_on_in_the_first_stage_and_off_elsewhere(build, pixels, monkeypatch):
    thresholds = []
    original = ALITModel._start

    def spy(self, pixel_values, halting_threshold, *others):
        thresholds.append(halting_threshold)
        return original(self, pixel_values, halting_threshold, *others)

    monkeypatch.setattr(ALITModel, "_start", spy)
    for name, fields in (
        ("distill", {}),
        ("distill", {"loss__halting_threshold": 0.3}),
        ("distill", {"loss__halting": False}),
        ("fixed", {}),
        ("finetune", {}),
    ):
        build(name, **fields).training_loss(pixels)
    assert thresholds == [0.55, 0.3, None, None, None]
    stage = build("distill")
    thresholds.clear()
    stage.eval().score(pixels)
    assert thresholds == [None]


def test_the_base_encodes_each_image_once(build, pixels):
    stage = build("distill")
    encoded = []
    stage.model.base_tokenizer.model.encoder.register_forward_pre_hook(lambda _, inputs: encoded.extend(inputs[0]))
    stage.training_loss(pixels)
    assert len(encoded) == len(pixels)


def test_a_halting_threshold_of_kl_is_in_latent_units(build, kl_base):
    assert build("distill", init_from=kl_base).halting_threshold == 0.025


def test_label_smoothing_changes_the_loss(build, pixels):
    plain, smooth = (build("distill", loss__halting=False, loss__label_smoothing=value) for value in (0.0, 0.5))
    losses = [stage.training_loss(pixels)[0].item() for stage in (plain, smooth)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_loss_on_the_last_rollout_only(build, pixels):
    every, last = (build("distill", loss__halting=False, loss__last_rollout_only=value) for value in (False, True))
    (total, logs), (alone, last_logs) = every.training_loss(pixels), last.training_loss(pixels)
    assert {name.partition("/")[2] for name in last_logs if "/" in name} == {"12"}
    assert float(last_logs["nll/12"]) == pytest.approx(float(logs["nll/12"]))
    # Weighted as the third rollout, not as the first.
    expected = 1.5 * logs["nll/12"] + logs["code/12"] + logs["quantization/12"]
    assert alone.item() == pytest.approx(float(expected), rel=1e-5)
    assert total.item() > alone.item()


def test_a_fixed_length_is_one_rollout_of_weight_one(build, pixels):
    stage = build("fixed", model__tokens_per_rollout=12)
    loss, logs = stage.training_loss(pixels)
    expected = logs["nll/12"] + logs["code/12"] + logs["quantization/12"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_finetuning_trains_everything(build, pixels):
    stage = build("finetune")
    stage.drawn_rollout = lambda: 2
    found = gradients(stage, pixels)
    silent = {name for name, gradient in found.items() if gradient is None or not gradient.abs().sum() > 0}
    assert silent == {"model.embeddings.mask_token"}
    assert found["model.base_tokenizer.model.quantize.embedding.weight"].abs().sum() > 0


def test_finetuning_computes_the_drawn_rollout_and_no_further(build, pixels):
    stage = build("finetune")
    passes = {"encoder": 0, "decoder": 0, "base": 0}

    def count(name):
        def hook(*_):
            passes[name] += 1

        return hook

    stage.model.encoder.register_forward_hook(count("encoder"))
    stage.model.decoder.register_forward_hook(count("decoder"))
    stage.model.base_tokenizer.model.decoder.register_forward_pre_hook(count("base"))
    for rollout in range(3):
        stage.drawn_rollout = lambda rollout=rollout: rollout
        for name in passes:
            passes[name] = 0
        _, logs = stage.training_loss(pixels)
        assert f"l1/{4 * (rollout + 1)}" in logs
        assert passes["encoder"] == rollout + 1
        assert passes["decoder"] == 1
        assert passes["base"] in (1, len(pixels))  # on a CPU the base decodes image by image


def test_all_rollouts_are_drawn_equally_often(build):
    stage = build("finetune")
    drawn = []
    for stage.step in range(600):
        drawn.append(stage.drawn_rollout())
    assert np.bincount(drawn).min() > 160
    assert np.bincount(drawn).size == 3


@pytest.mark.parametrize("regularizer", ["none", "lecam", "r1"])
@pytest.mark.parametrize("name", ["base", "finetune"])
def test_neither_side_moves_the_other(build, pixels, name, regularizer):
    fields = {"loss__adversarial_weight": 1.0, "loss__regularizer": regularizer, "loss__discriminator_layers": 1}
    stage = build(name, **fields)
    stage.step = 2
    adversary = stage.adversary
    assert not [key for key, _ in stage.named_parameters() if "discriminator" in key]
    before = {key: value.clone() for key, value in adversary.discriminator.state_dict().items()}
    assert moved(stage, pixels, steps=2)
    assert all(parameter.grad is None for parameter in adversary.parameters())
    assert all(torch.equal(value, before[key]) for key, value in adversary.discriminator.state_dict().items())
    assert all(parameter.requires_grad for parameter in adversary.parameters())

    before = {key: value.clone() for key, value in stage.state_dict().items()}
    stage.zero_grad()
    loss, _ = adversary(*stage.adversary_batch)
    loss.backward()
    assert all(parameter.grad is None for parameter in stage.parameters())
    assert all(torch.equal(value, before[key]) for key, value in stage.state_dict().items())
    # One discriminator for all rollouts: there is none that this one leaves out.
    assert all(parameter.grad is not None for parameter in adversary.parameters())


def test_the_adversary_waits_for_its_start(build, pixels):
    stage = build("finetune", loss__adversarial_weight=1.0, loss__adversarial_start=4, loss__discriminator_layers=1)
    for step, plays in ((3, False), (4, True), (5, True)):
        stage.step = step
        _, logs = stage.training_loss(pixels)
        assert (stage.adversary_batch is not None) == plays
        assert ("adversarial" in logs) == plays


def test_perceptual_loss_starts_when_told(build, pixels):
    stage = build("base", loss__perceptual_start=1, loss__perceptual_weight=0.5)
    assert "lpips" not in stage.training_loss(pixels)[1]
    stage.step = 1
    loss, logs = stage.training_loss(pixels)
    assert float(loss) == pytest.approx(float(logs["l1"] + 0.5 * logs["lpips"]), rel=1e-5)


def test_the_yardstick_is_in_no_checkpoint(build):
    for name in ("base", "finetune"):
        stage = build(name, loss__adversarial_weight=1.0, loss__discriminator_layers=1)
        names = {key.partition(".")[0] for key in (*stage.state_dict(), *dict(stage.named_parameters()))}
        assert names == {"model", "codebook_care"}


def test_the_yardstick_sees_pixels_in_its_range_and_never_trains(build, pixels):
    for name in ("base", "finetune"):
        lpips = build(name).train().pixel_loss.lpips
        assert not any(module.training for module in lpips.modules())
        assert torch.equal(lpips(pixels, 1 - pixels), lpips(pixels, 1 - pixels))
        expected = random_lpips("alex", normalize=False)(pixels * 2 - 1, 1 - pixels * 2)
        torch.testing.assert_close(lpips(pixels, 1 - pixels), expected)


@pytest.mark.parametrize("name", ["base", "distill", "fixed", "finetune"])
def test_every_stage_measures_its_codebook(build, pixels, name):
    stage = build(name, **({"loss__codebook_start": 0} if name == "base" else {}))
    stage.training_loss(pixels)
    summary = stage.summary()
    assert 0 < summary["codebook/usage"] <= 1
    assert summary["codebook/perplexity"] >= 1


def test_the_base_codebook_starts_from_latents(build, pixels):
    stage = build("base", loss__codebook_start=2, loss__revive_every=0)
    codebook = stage.model.quantize.embedding.weight
    before = codebook.detach().clone()
    stage.training_loss(pixels)
    assert stage.end_step() == []
    assert torch.equal(codebook, before)
    stage.step = 1
    stage.training_loss(pixels)
    (replaced,) = stage.end_step()
    assert replaced.rows.all()
    assert_means_of_clusters(codebook.detach(), stage.codebook_care.recent[: int(stage.codebook_care.num_collected)])
    stage.step = 2
    _, logs = stage.training_loss(pixels)
    assert "codebook_loss" in logs
    assert stage.summary()["codebook/usage"] > 0.2


def test_dead_codes_are_revived_and_reported(build, pixels):
    stage = build("distill", loss__revive_every=2, model__codebook_size=64)
    codebook = stage.model.quantizer.codebook.weight
    stage.training_loss(pixels)
    assert stage.end_step() == []
    usage = float(stage.summary()["codebook/usage"])
    assert 0 < usage < 1
    stage.step = 1
    before = codebook.detach().clone()
    stage.training_loss(pixels)
    (replaced,) = stage.end_step()
    assert replaced.parameter is codebook
    assert replaced.rows.any()
    changed = (codebook != before).any(dim=1)
    assert torch.equal(changed, replaced.rows)


def test_commitment_cost_is_on_the_encoder(build):
    """diffusers' default has it on the codebook."""
    stage = build("base")
    latents = torch.randn(1, 4, 2, 2, requires_grad=True)
    _, loss, _ = stage.model.quantize(latents)
    loss.backward()
    codebook = stage.model.quantize.embedding.weight
    ratio = latents.grad.abs().sum() / codebook.grad.abs().sum()
    assert float(ratio) == pytest.approx(0.25, rel=0.3)


@pytest.mark.parametrize("name", ["base", "distill", "finetune"])
def test_a_few_steps_lower_the_loss(build, pixels, name):
    stage = build(name, loss__revive_every=0)
    stage.drawn_rollout = lambda: 1
    stage.step = 5
    (optimizer,) = optimizers(stage, OptimizationConfig(learning_rate=3e-3, max_steps=1))
    losses = []
    for _ in range(15):
        loss, _ = stage.training_loss(pixels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert np.mean(losses[-3:]) < 0.95 * losses[0]


@pytest.mark.parametrize("base", ["vq_base", "kl_base"])
def test_scores_and_pictures_of_every_length(build, pixels, request, base):
    stage = build("distill", init_from=request.getfixturevalue(base)).eval()
    with torch.no_grad():
        scores, columns = stage.score(pixels), stage.pictures(pixels)
    assert all(len(value) == 2 for value in scores.values())
    found = stage.validation({name: value.mean(dim=0) for name, value in scores.items()}, len(pixels))
    for kind in ("l1", "psnr", "r2", "spread", "ids"):
        assert [name for name in found if name.startswith(f"{kind}/")] == [f"{kind}/4", f"{kind}/8", f"{kind}/12"]
    assert list(columns) == ["base", "4", "8", "12"]
    reconstruction = columns["8"].clamp(0, 1)
    assert found["l1/8"] == pytest.approx(float((reconstruction - pixels).abs().mean()), rel=1e-4)


@pytest.mark.parametrize("base", ["vq_base", "kl_base"])
def test_validation_by_hand(build, pixels, request, base):
    """R², different ids and spread over a batch, from their definitions, whatever batches the pictures come in."""
    stage = build("distill", init_from=request.getfixturevalue(base)).eval()
    pixels = torch.cat([pixels, torch.rand(3, 3, 32, 32)])
    model, length = stage.model, stage.model.config.tokens_per_rollout
    with torch.no_grad():
        parts = [stage.score(part) for part in pixels.split(2)]
        rollouts = list(model.rollouts(pixels))
        true = model.base_tokenizer.encode(pixels)
        if model.config.base_type == "vqgan":
            true = model.base_tokenizer.codebook[model.base_tokenizer.codes(true)]
            true = true.transpose(1, 2).unflatten(2, model.config.grid_size)
    means = {name: torch.cat([part[name] for part in parts]).mean(dim=0) for name in parts[0]}
    found = stage.validation(means, len(pixels))
    vectors = true.transpose(0, 1).flatten(1)
    variance = (vectors - vectors.mean(dim=1, keepdim=True)).square().mean()
    for rollout in rollouts:
        soft = model.base_tokenizer.expected_latents(rollout.decoder_output, rollout.grid_size)
        expected = 1 - (soft - true).square().mean() / variance
        assert found[f"r2/{rollout.num_tokens}"] == pytest.approx(float(expected), rel=1e-3)
        assert found[f"ids/{rollout.num_tokens}"] == len(rollout.token_ids.unique())
        directions = rollout.latents[:, -length:]
        spread = directions.var(dim=0).sum(dim=-1).mean()
        assert found[f"spread/{rollout.num_tokens}"] == pytest.approx(float(spread), abs=1e-5)


DRAWN = {"loss__rollouts": "drawn", "loss__halting": False}


def test_the_limit_of_drawn_rollouts_grows(build):
    stage = build("distill", **DRAWN, loss__rollout_growth=[0.25, 0.75])
    limits = []
    for stage.share_done in (0, 0.25, 0.49, 0.5, 0.74, 0.75, 1):
        limits.append(stage.rollout_limit)
    assert limits == [1, 1, 1, 2, 2, 3, 3]
    stage.share_done = 0.8
    drawn = []
    for stage.step in range(600):
        shown = stage.drawn_rollouts()
        assert shown.all()
        drawn.append(len(shown))
    counts = np.bincount(drawn, minlength=4)
    # The limit in 60 % of the steps, and its share of the rest.
    assert counts[0] == 0
    assert counts[3] / 600 == pytest.approx(0.6 + 0.4 / 3, abs=0.06)
    assert min(counts[1:]) / 600 == pytest.approx(0.4 / 3, abs=0.05)


def test_rollout_dropout_shows_random_rollouts_and_fades(build):
    stage = build("distill", **DRAWN, loss__rollout_growth=[0, 0.5], loss__rollout_dropout=0.8)
    shares = {}
    for stage.share_done in (0.5, 0.75, 0.999):
        several = []
        for stage.step in range(800):
            shown = stage.drawn_rollouts()
            assert shown.any()
            if len(shown) > 1:
                several.append(shown)
        shares[stage.share_done] = np.mean([not shown.all() for shown in several])
    # Of three rollouts all stay in one of eight draws, of two in one of four.
    assert shares[0.5] == pytest.approx(0.8 * 0.86, abs=0.06)
    assert shares[0.75] == pytest.approx(0.4 * 0.86, abs=0.06)
    assert shares[0.999] < 0.02


def test_a_drawn_step_decodes_once_and_only_what_is_shown(build, pixels):
    stage = build("distill", **DRAWN)
    given = []
    stage.model.decoder.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    passes = []
    stage.model.encoder.register_forward_hook(lambda *_: passes.append(1))
    stage.drawn_rollouts = lambda: np.array([True, False, True])
    loss, logs = stage.training_loss(pixels)
    assert len(passes) == 3
    ((latents, _, positions),) = given
    assert positions.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    with torch.no_grad():
        output = stage.model(pixels, return_reconstruction=False)
        torch.testing.assert_close(latents, output.latents[:, positions])
        decoder = stage.model.decoder
        alone = decoder(output.latents[:, positions], output.grid_size, positions)
        assert not torch.allclose(alone, decoder(output.latents[:, positions], output.grid_size))
    codes = stage.model.base_tokenizer.codes(stage.frozen_outputs(pixels))
    smoothed = torch.nn.functional.cross_entropy(alone.flatten(0, 1), codes.flatten(), label_smoothing=0.1)
    assert float(logs["nll/12"]) == pytest.approx(float(smoothed), rel=1e-4)
    # Weight 1, whatever was drawn.
    assert float(loss) == pytest.approx(float(logs["nll/12"] + logs["code/12"] + logs["quantization/12"]), rel=1e-5)


@pytest.mark.parametrize("base", ["vq_base", "kl_base"])
def test_every_parameter_of_a_drawn_step_gets_a_gradient(build, pixels, request, base):
    for quantize_from in (0, 5):
        stage = build("distill", init_from=request.getfixturevalue(base), **DRAWN, loss__quantize_from=quantize_from)
        for shown in ([True], [False, True], [True, False, True]):
            stage.drawn_rollouts = lambda shown=shown: np.array(shown)
            found = gradients(stage, pixels)
            trained = {key for key, parameter in stage.named_parameters() if parameter.requires_grad}
            assert not [key for key in trained if found[key] is None]


LATE = {**DRAWN, "loss__quantize_from": 3, "loss__latent_noise": 0.2, "loss__revive_every": 0}


def test_latents_are_noisy_unit_vectors_until_they_are_quantised(build, pixels):
    stage = build("distill", **LATE)
    stage.drawn_rollouts = lambda: np.array([True])
    given, raw = [], []
    stage.model.decoder.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0].detach()))
    stage.model.latent_projection.register_forward_hook(lambda _, inputs, output: raw.append(output.detach()))
    stage.training_loss(pixels)
    stage.training_loss(pixels)
    directions = torch.nn.functional.normalize(raw[0], dim=-1)
    for latents in given:
        torch.testing.assert_close(latents.norm(dim=-1), torch.ones(latents.shape[:-1]))
        # On the sphere noise of length s·√D turns a direction by an angle of tangent s·√(D - 1), in the mean about.
        angle = torch.arccos((latents * directions).sum(dim=-1).clamp(max=1)).tan().mean()
        assert float(angle) == pytest.approx(0.2 * (directions.shape[-1] - 1) ** 0.5, rel=0.35)
    assert not torch.equal(*given)
    stage.eval()
    with torch.no_grad():
        torch.testing.assert_close(stage.model.encode(pixels, num_tokens=4).latents, directions)
        assert not [name for name in stage.score(pixels) if name.startswith("ids/")]
        stage.step = 3
        code = stage.model.encode(pixels, num_tokens=4)
        assert torch.equal(code.latents, stage.model.quantizer.from_ids(code.token_ids))


def assert_means_of_clusters(codes, latents) -> None:
    """Each code is about the mean of the latents that it is the nearest to."""
    nearest = torch.cdist(latents, codes).argmin(dim=1)
    assert len(nearest.unique()) > len(codes) / 2
    spread = latents.std(dim=0).mean()
    for code in nearest.unique().tolist():
        assert (latents[nearest == code].mean(dim=0) - codes[code]).abs().max() < 0.5 * spread


def test_the_codebook_starts_from_clusters_of_latents_of_several_lengths(build, pixels):
    stage = build("distill", **LATE)
    codebook = stage.model.quantizer.codebook.weight
    before = codebook.detach().clone()
    stage.drawn_rollouts = Mock(side_effect=[np.ones(number, dtype=bool) for number in (1, 2, 3, 3)])
    for stage.step in range(3):
        stage.training_loss(pixels)
        assert torch.equal(codebook, before)
        replaced = stage.end_step()
    assert replaced[0].parameter is codebook
    assert replaced[0].rows.all()
    care = stage.codebook_care
    # Of each step, of 8, 16 and 24 latents, as many as there are codes.
    assert int(care.num_collected) == 8 + 16 + 16
    latents = torch.nn.functional.normalize(care.recent[: int(care.num_collected)], dim=-1)
    assert_means_of_clusters(codebook.detach(), latents)
    stage.step = 3
    _, logs = stage.training_loss(pixels)
    assert logs["quantization/12"] > 0
    assert stage.summary()["codebook/usage"] > 0.2


def test_too_few_latents_for_a_codebook_are_an_error(build, pixels):
    """Of several ranks each has a part of the batch only."""
    stage = build("distill", **LATE, model__codebook_size=48)
    stage.drawn_rollouts = lambda: np.array([True])
    stage.step = 2
    stage.training_loss(pixels)
    with pytest.raises(ValueError, match="3 steps before quantisation gave 8 latents for 48 codes"):
        stage.end_step()


def test_only_the_last_latents_are_clustered(build):
    care = build("distill", **LATE).codebook_care
    size, dim = care.recent.shape
    for value in range(1 + size // 16):
        care.observe(torch.full((99, dim), float(value)), torch.zeros(99, dtype=torch.long), step=0)
    assert not (care.recent == 0).any()
    assert (care.recent == size // 16).all(dim=1).sum() == 16


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"loss__rollout_growth": [0.5]}, "loss.rollout_growth"),
        ({"loss__rollout_growth": [0.5, 0.2]}, "loss.rollout_growth"),
        ({"loss__rollout_dropout": 0.5}, "loss.rollout_dropout"),
        ({"loss__rollouts": "drawn"}, "loss.halting"),
        ({**DRAWN, "loss__rollout_dropout": 1.5}, "loss.rollout_dropout"),
        ({**DRAWN, "loss__last_rollout_only": True}, "loss.last_rollout_only"),
        ({"loss__rollouts": "some"}, "loss.rollouts"),
        ({"loss__quantize_from": -1}, "loss.quantize_from"),
        ({"loss__quantize_from": 6}, r"loss.quantize_from` is 6, it must be below optimization.max_steps, which is 6"),
        ({"loss__quantize_from": 3, "optimization__max_minutes": 1.0}, "loss.quantize_from.*max_minutes"),
        ({"loss__quantize_from": 3, "model__quantize": False}, "loss.quantize_from.*model.quantize"),
        ({"loss__quantize_from": 1, "model__codebook_size": 64}, "loss.quantize_from.*16 latents for 64 codes"),
        ({"loss__latent_noise": -0.1}, "loss.latent_noise"),
        ({"loss__latent_noise": 0.1}, "loss.latent_noise.*loss.quantize_from"),
    ],
)
def test_fields_of_the_short_form_that_do_not_fit_are_named(config, fields, named):
    with pytest.raises(ValueError, match=named):
        config("distill", **fields)


def test_warnings_name_cause_and_cure(build):
    """Not in the warm-up, when no latents can say anything yet, and not of a few pictures."""
    equal = {"r2/4": 0.0, "spread/4": 0.9, "spread/8": 0.01, "ids/4": 12, "ids/8": 12}
    healthy = {"l1/4": 0.1, "spread/4": 0.9, "spread/8": 0.4, "ids/4": 12, "ids/8": 12}
    cases = [({}, "loss.quantize_from"), (LATE, "loss.rollout_dropout"), ({**LATE, "loss__rollout_dropout": 0.5}, "")]
    for fields, cure in cases:
        stage = build("distill", **fields, **({} if fields else {"model__codebook_size": 64}))
        assert stage.warnings(equal, 16) == {}
        stage.warmed_up = True
        assert stage.warnings(equal, 7) == {}
        found = stage.warnings(equal, 16)
        assert list(found) == ["spread"]
        assert "codes of 8 are nearly the same for all pictures" in found["spread"]
        assert (cure or "learning rate") in found["spread"]
        assert stage.warnings(healthy, 16) == {}


@pytest.mark.parametrize(
    ("codes", "pictures", "ids", "warns"),
    [
        (64, 16, 3, True),
        (64, 16, 4, False),
        (4096, 48, 3, True),
        (4096, 1000, 79, True),
        (4096, 1000, 83, False),
        (2, 16, 1, True),
        (2, 16, 2, False),
    ],
)
def test_a_handful_of_ids_is_told_whatever_the_codebook(build, codes, pictures, ids, warns):
    stage = build("distill", model__codebook_size=codes)
    stage.warmed_up = True
    found = stage.warnings({"spread/4": 0.9, "ids/4": ids}, pictures)
    assert list(found) == (["ids"] if warns else [])
    assert not warns or f"have {ids} different ids over {pictures} held-out pictures" in found["ids"]


def test_before_quantisation_nothing_is_logged_of_the_codebook(build, pixels):
    stage = build("distill", **LATE)
    for stage.step in (2, 3):
        _, logs = stage.training_loss(pixels)
        logged = {name.partition("/")[0] for name in (*logs, *stage.summary())}
        assert ("quantization" in logged) == ("codebook" in logged) == (stage.step == 3)


def test_codes_are_revived_counting_from_their_start(build, pixels):
    stage = build("distill", **{**LATE, "loss__revive_every": 2})
    replaced = []
    for stage.step in range(7):
        stage.training_loss(pixels)
        replaced.append(len(stage.end_step()))
    assert replaced == [0, 0, 1, 0, 1, 0, 1]


def test_attention_is_eager_on_a_cpu_unless_told_otherwise(build):
    for name in ("distill", "finetune"):
        assert build(name).model.config._attn_implementation == "eager"
        assert build(name, optimization__attention="sdpa").model.config._attn_implementation == "sdpa"


def test_a_missing_or_foreign_start_is_named(build, tmp_path, vq_base):
    with pytest.raises(ValueError, match="init_from"):
        build("distill", init_from=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="init_from"):
        build("finetune", init_from=str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "block_out_channels": [8]}))
    with pytest.raises(ValueError, match="UNet2DModel"):
        build("distill", init_from=str(tmp_path))


@pytest.mark.parametrize("size", [48, [32, 40]])
def test_finetuning_starts_from_a_model_of_another_size(build, tmp_path, size):
    """By its position tables, interpolated once as `interpolate_pos_encoding` does in every call."""
    before = build("finetune").model
    before.set_length_criterion("l1")
    before.save_pretrained(tmp_path / "first")
    model = build("finetune", init_from=str(tmp_path / "first"), data__image_size=size).model
    assert model.config.image_size == size
    height, width = model.config.image_height_width
    pixel_values = torch.rand(2, 3, height, width)
    one, two = (each.eval()(pixel_values, interpolate_pos_encoding=True) for each in (before, model))
    assert torch.equal(one.token_ids, two.token_ids)
    torch.testing.assert_close(two.reconstruction, one.reconstruction)
    assert model.decoder.position_embeddings.shape == (1, 1 + height * width // 16, 32)
    others = {name: value for name, value in model.state_dict().items() if "position_embeddings" not in name}
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in others.items())


def test_a_model_of_another_size_says_so_where_it_is_saved(build, tmp_path):
    build("finetune")
    stage = build("finetune", init_from=str(tmp_path / "first"), data__image_size=[32, 40])
    stage.save_pretrained(str(tmp_path / "saved"), stage.model.state_dict())
    assert ALITModel.from_pretrained(tmp_path / "saved").config.image_height_width == (32, 40)
    processor = ALITImageProcessor.from_pretrained(tmp_path / "saved")
    assert processor(Image.new("RGB", (90, 70)), return_tensors="pt").pixel_values.shape == (1, 3, 32, 40)


@pytest.mark.parametrize("base", ["vq_base", "kl_base"])
def test_finetuning_may_replace_the_base(build, tmp_path, request, base):
    """By one with a decoder of another size, too: what ALIT sees of it is the same."""
    start = request.getfixturevalue(base)
    before = build("distill", init_from=start).model
    # Not what its kind has where nothing is said.
    pixel_range = [-1, 1] if base == "vq_base" else [0, 1]
    before.config.base_tokenizer_config["_pixel_range"] = pixel_range
    before.save_pretrained(tmp_path / "first")
    torch.manual_seed(2)
    kind = VQModel if base == "vq_base" else AutoencoderKL
    kind.from_config({**kind.load_config(start), "layers_per_block": 2}).save_pretrained(tmp_path / "other")
    stage = build("finetune", init_from=str(tmp_path / "first"), base_from=str(tmp_path / "other"))
    stage.save_pretrained(str(tmp_path / "saved"), stage.model.state_dict())
    model = ALITModel.from_pretrained(tmp_path / "saved")
    assert model.config.base_tokenizer_config.get("_pixel_range", [0, 1]) == pixel_range
    assert model.config.base_tokenizer_config["layers_per_block"] == 2
    other = kind.from_pretrained(tmp_path / "other").state_dict()
    assert all(torch.equal(value, other[name]) for name, value in model.base_tokenizer.model.state_dict().items())
    first = ALITModel.from_pretrained(tmp_path / "first").state_dict()
    kept = [name for name in first if not name.startswith("base_tokenizer.")]
    assert all(torch.equal(model.state_dict()[name], first[name]) for name in kept)
    assert gradients(stage, torch.rand(2, 3, 32, 32))["model.base_tokenizer.model.decoder.conv_in.weight"].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_out_channels": [8, 16], **HALF_AS_DEEP}, "the downsampling factor of the one .*, 4, it has 2"),
        ({"vq_embed_dim": 6}, "the number of latent channels of the one .*, 4, it has 6"),
        ({"num_vq_embeddings": 32}, "the number of codes of the one .*, 16, it has 32"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_before_any_work(build, config, tmp_path, vq_base, fields, message):
    build("finetune")
    VQModel.from_config({**VQModel.load_config(vq_base), **fields}).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"`base_from` is .*{message}"):
        config("finetune", init_from=str(tmp_path / "first"), base_from=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__image_size": 50}, r"`data\.image_size` has the size 50: .*multiple of `patch_size` \(4\)"),
        ({"data__image_size": [32, 50]}, r"`data\.image_size` has the size \[32, 50\]: .*multiple"),
        ({"data__buckets": [32, [24, 50]]}, r"`data\.buckets` has the size \[24, 50\]: .*multiple of `patch_size`"),
        ({"data__buckets": [[24, 40], [40, 24]]}, r"`data\.buckets` is .* with `data\.image_size`, \(32, 32\), in it"),
        ({"data__buckets": [32, [32, 32]]}, r"`data\.buckets` is .* sizes that differ"),
        (
            {"data__buckets": [32, [24, 40, 3]]},
            r"`data\.buckets` is \[24, 40, 3\], it must be one number",
        ),
        ({"data__buckets": 32, "data__streaming": True, "data__in_memory": False}, "empty for a stream"),
        ({"base_from": "nowhere"}, "`base_from` is 'nowhere', it must be the folder or Hub id of a base tok"),
    ],
)
def test_sizes_and_bases_that_cannot_be_are_refused_before_any_work(build, config, tmp_path, fields, message):
    build("finetune")
    with pytest.raises(ValueError, match=message):
        config("finetune", init_from=str(tmp_path / "first"), **fields)


def test_a_base_is_no_model_to_finetune(config, vq_base):
    with pytest.raises(ValueError, match=r"`init_from` is .*, it must be an ALIT model, its type is None"):
        config("finetune", init_from=vq_base)


@pytest.mark.parametrize("name", ["base", "distill", "fixed", "lengths"])
@pytest.mark.parametrize(("field", "value"), [("data__buckets", [32, [24, 40]]), ("base_from", "base")])
def test_other_stages_take_neither_buckets_nor_another_base(config, name, field, value):
    with pytest.raises(ValueError, match=f"`{field.replace('__', '.')}` is .*, it must be empty in stage {name}"):
        config(name, **{field: value}, **({"loss": {}} if name == "lengths" else {}))


@pytest.mark.parametrize("name", ["base", "distill"])
def test_other_stages_take_any_one_size(build, name):
    stage = build(name, data__image_size=[32, 48])
    loss, _ = stage.training_loss(torch.rand(2, 3, 32, 48))
    assert loss.isfinite()
    if name == "distill":
        assert stage.model.config.image_height_width == (32, 48)
        assert stage.frozen_outputs(torch.rand(1, 3, 32, 48)).shape[1:] == stage.frozen_shape


@pytest.mark.parametrize("name", ["base", "finetune"])
def test_sizes_that_lpips_cannot_see_are_refused(build, name):
    with pytest.raises(ValueError, match=r"`data\.image_size` is \[48, 24\], it must be at least 31 on each side"):
        build(name, data__image_size=[48, 24])
    build(name, data__image_size=[48, 24], loss__perceptual_weight=0)


def test_a_bucket_that_lpips_cannot_see_is_refused(build):
    with pytest.raises(ValueError, match=r"`data\.buckets` is .*, it must be at least 31 on each side"):
        build("finetune", data__buckets=[32, [24, 48]])


def test_a_base_to_continue_has_its_size_checked_too(build, vq_base):
    with pytest.raises(ValueError, match=r"`data\.image_size` is 50, it must be a multiple of 4"):
        build("base", init_from=vq_base, model={}, data__image_size=50)


def test_a_finetuned_stage_saves_what_it_is_given(build, tmp_path):
    stage = build("finetune")
    assert isinstance(stage, FinetuneStage)
    weights = {name: torch.zeros_like(value) for name, value in stage.model.state_dict().items()}
    stage.save_pretrained(str(tmp_path / "saved"), weights)
    loaded = ALITModel.from_pretrained(tmp_path / "saved")
    assert all((parameter == 0).all() for parameter in loaded.parameters())
    assert (stage.model.encoder.layers[0].mlp.fc1.weight != 0).any()


def test_no_stage_saves_the_folder_that_it_started_from(build, tmp_path):
    weights = build("base").model.state_dict()
    build("base").save_pretrained(str(tmp_path / "start"), weights)
    build("base", init_from=str(tmp_path / "start"), model={}).save_pretrained(str(tmp_path / "base"), weights)
    distill = build("distill", init_from=str(tmp_path / "base"))
    distill.save_pretrained(str(tmp_path / "distill"), distill.model.state_dict())
    for name in ("base", "distill"):
        for file in (tmp_path / name).glob("*.json"):
            assert str(tmp_path) not in file.read_text(), file
