import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch._subclasses import FakeTensorMode

from alit_hf.conversion import load_original
from alit_hf.losses.distillation import code_distillation_loss, latent_distillation_loss, rollout_weights
from alit_hf.model.modeling_alit import ALITRolloutOutput


FIXTURE = Path(__file__).parents[1] / "fixtures" / "alit_vqgan_quantized"
B, N, C, E = 2, 6, 10, 4


def rollout(number, decoder_output, quantizer_loss=None):
    latents = torch.zeros(B, 32 * (number + 1), 12)
    return ALITRolloutOutput(latents=latents, decoder_output=decoder_output, quantizer_loss=quantizer_loss)


def vq_rollouts(num_rollouts, quantize=True):
    return [rollout(k, torch.randn(B, N, C), torch.rand(B) if quantize else None) for k in range(num_rollouts)]


@pytest.fixture
def codes():
    return torch.randint(C, (B, N))


@pytest.fixture
def codebook():
    return torch.randn(C, E)


def test_first_stage_numbers_of_the_published_model():
    """Smoothing 0, halting off: every term of every rollout, and the total."""
    stage1 = json.loads((FIXTURE / "meta.json").read_text())["stage1"]
    model = load_original(FIXTURE / "original_state_dict.safetensors", num_attention_heads=4)
    model.config.halting_threshold = None
    expected = load_file(FIXTURE / "expected.safetensors")
    pixels = expected["pixels_uint8"].float() / 255
    with torch.no_grad():
        total, logs = code_distillation_loss(
            model.rollouts(pixels, return_reconstruction=False),
            expected["base_indices"],
            model.base_tokenizer.codebook,
        )
    assert total.item() == pytest.approx(stage1["total_loss"], rel=1e-4)
    for k, terms in enumerate(stage1["per_rollout"]):
        for published, name in (("nll_loss", "nll"), ("code_loss", "code"), ("quantization_loss", "quantization")):
            assert logs[f"{name}/{32 * (k + 1)}"].item() == pytest.approx(terms[f"{published}_{k}"], rel=1e-4)
    assert len(logs) == 24


def test_the_published_total_weights_the_cross_entropy_alone():
    """The same from the published numbers, to more digits than the model's arithmetic allows."""
    stage1 = json.loads((FIXTURE / "meta.json").read_text())["stage1"]
    total = sum(
        weight * terms[f"nll_loss_{k}"] + terms[f"code_loss_{k}"] + terms[f"quantization_loss_{k}"]
        for k, (weight, terms) in enumerate(zip(rollout_weights(8), stage1["per_rollout"], strict=True))
    )
    assert total == pytest.approx(stage1["total_loss"], rel=5e-7)


@pytest.mark.parametrize(
    ("num_rollouts", "weights"),
    [
        (1, (2.5,)),
        (3, (2.5, 2.0, 1.5)),
        (8, (2.5, 2.0, 1.5, 1.25, 1, 1, 1, 1)),
        (10, (2.5, 2.0, 1.5, 1.25) + (1,) * 6),
    ],
)
def test_rollout_weights(num_rollouts, weights):
    assert rollout_weights(num_rollouts) == weights


def test_code_loss_by_hand(codes, codebook):
    rollouts = vq_rollouts(2)
    total, logs = code_distillation_loss(iter(rollouts), codes, codebook)
    expected = 0.0
    for weight, output in zip((2.5, 2.0), rollouts, strict=True):
        nll = code = 0.0
        for b in range(B):
            for n in range(N):
                p = output.decoder_output[b, n].softmax(0)
                nll -= math.log(p[codes[b, n]]) / (B * N)
                soft = sum(p[c] * codebook[c] for c in range(C))
                code += float((soft - codebook[codes[b, n]]).square().sum()) / (B * N * E)
        assert logs[f"nll/{output.num_tokens}"].item() == pytest.approx(nll, rel=1e-5)
        assert logs[f"code/{output.num_tokens}"].item() == pytest.approx(code, rel=1e-5)
        assert logs[f"quantization/{output.num_tokens}"] == output.quantizer_loss.mean()
        expected += weight * nll + code + float(output.quantizer_loss.mean())
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_label_smoothing_moves_its_share_of_the_target_to_all_codes(codes, codebook, smoothing):
    (output,) = vq_rollouts(1)
    plain, _ = code_distillation_loss([output], codes, codebook)
    smoothed, logs = code_distillation_loss([output], codes, codebook, label_smoothing=smoothing)
    log_p = output.decoder_output.log_softmax(-1)
    nll = -log_p.gather(-1, codes.unsqueeze(-1)).mean()
    change = smoothing * (-log_p.mean() - nll)
    assert abs(change) > 1e-3
    torch.testing.assert_close(logs["nll/32"], nll + change)
    # The total changes by λ_1 times that; the other terms know nothing of smoothing.
    torch.testing.assert_close(smoothed - plain, 2.5 * change)


def test_smoothed_loss_is_least_at_the_smoothed_distribution(codes, codebook):
    """The gradient vanishes where the probabilities are 1 - s + s/C and s/C, and only there."""
    smoothing = 0.2
    target = F.one_hot(codes, C) * (1 - smoothing) + smoothing / C
    logits = target.log().requires_grad_(True)
    code_distillation_loss([rollout(0, logits)], codes, torch.zeros_like(codebook), smoothing)[0].backward()
    assert logits.grad.abs().max() < 1e-6
    code_distillation_loss([rollout(0, logits)], codes, torch.zeros_like(codebook), 0.0)[0].backward()
    assert logits.grad.abs().max() > 1e-3


def test_gradient_reaches_logits_and_quantizer_and_not_the_base_codebook(codes, codebook):
    logits = torch.randn(B, N, C, requires_grad=True)
    quantizer_loss = torch.rand(B, requires_grad=True)
    codebook.requires_grad_(True)
    total, logs = code_distillation_loss([rollout(0, logits, quantizer_loss)], codes, codebook)
    total.backward()
    assert logits.grad.abs().sum() > 0
    assert (quantizer_loss.grad == 1 / B).all()
    assert codebook.grad is None
    assert not any(term.requires_grad for term in logs.values())


def test_squared_error_alone_reaches_the_logits(codes, codebook):
    logits = torch.randn(B, N, C, requires_grad=True)
    code_distillation_loss([rollout(0, logits)], codes, codebook, weights=[0.0])[0].backward()
    assert logits.grad.abs().sum() > 0


def test_last_rollout_alone_with_its_own_weight(codes, codebook):
    rollouts = vq_rollouts(8)
    total, logs = code_distillation_loss(rollouts[-1:], codes, codebook, weights=rollout_weights(8)[-1:])
    torch.testing.assert_close(total, logs["nll/256"] + logs["code/256"] + logs["quantization/256"])


def test_continuous_latents_have_no_quantization_term(codes, codebook):
    _, logs = code_distillation_loss(vq_rollouts(1, quantize=False), codes, codebook)
    assert set(logs) == {"nll/32", "code/32"}


def test_latent_loss_by_hand():
    latents = torch.randn(B, E, 2, 3, requires_grad=True)
    rows_first = latents.detach().permute(0, 2, 3, 1).reshape(B, N, E)
    rollouts = [rollout(k, rows_first + offset, torch.tensor(0.5)) for k, offset in enumerate((1.0, 3.0))]
    rollouts[0].decoder_output.requires_grad_(True)
    total, logs = latent_distillation_loss(iter(rollouts), latents)
    assert logs["latent/32"].item() == pytest.approx(1.0, rel=1e-5)
    assert logs["latent/64"].item() == pytest.approx(9.0, rel=1e-5)
    assert total.item() == pytest.approx(2.5 * 1 + 2 * 9 + 2 * 0.5, rel=1e-5)
    total.backward()
    assert latents.grad is None
    torch.testing.assert_close(rollouts[0].decoder_output.grad, torch.full((B, N, E), 2.5 * 2 / (B * N * E)))


def test_half_precision_logits_give_float32_terms(codes, codebook):
    logits = torch.randn(B, N, C).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = code_distillation_loss([rollout(0, logits)], codes, codebook)
    reference, _ = code_distillation_loss([rollout(0, logits.float())], codes, codebook)
    torch.testing.assert_close(total, reference)


def test_does_not_wait_for_the_device(codes, codebook):
    """Fake tensors have no values: whoever reads one fails."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = vq_rollouts(2)
        total, logs = code_distillation_loss(outputs, codes, codebook, label_smoothing=0.1)
        assert total.shape == ()
        assert all(not term.requires_grad for term in logs.values())
        assert latent_distillation_loss(outputs, torch.randn(B, C, 2, 3))[0].shape == ()
        with pytest.raises(RuntimeError):
            total.item()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_impossible_smoothing(codes, codebook, smoothing):
    with pytest.raises(ValueError, match=r"`label_smoothing` is .*\[0, 1\)"):
        code_distillation_loss(vq_rollouts(1), codes, codebook, label_smoothing=smoothing)


@pytest.mark.parametrize(("num_rollouts", "weights"), [(2, [1.0]), (1, [1.0, 1.0]), (0, None)])
def test_one_weight_a_rollout(codes, codebook, num_rollouts, weights):
    with pytest.raises(ValueError, match=f"`weights` .* {num_rollouts} rollouts"):
        code_distillation_loss(vq_rollouts(num_rollouts), codes, codebook, weights=weights)


def test_shapes_that_do_not_fit(codes, codebook):
    with pytest.raises(ValueError, match=r"32 tokens .*\(2, 6, 10\).*\(2, 6, 9\)"):
        code_distillation_loss(vq_rollouts(1), codes, codebook[:-1])
    with pytest.raises(ValueError, match=r"\(2, 6, 10\).*`latents` need \(2, 6, 4\)"):
        latent_distillation_loss(vq_rollouts(1), torch.randn(B, E, 2, 3))
