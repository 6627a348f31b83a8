"""The factorised latent codebook: nearest code by cosine, in float32, with a straight-through gradient."""

import pytest
import torch
import torch.nn.functional as F
from tiny_config import tiny_config

from alit_hf.model.quantizer import ALITVectorQuantizer, straight_through


@pytest.fixture
def quantizer() -> ALITVectorQuantizer:
    quantizer = ALITVectorQuantizer(tiny_config(codebook_size=200, codebook_dim=6))
    # Codes of very different lengths, of which only the direction counts.
    with torch.no_grad():
        quantizer.codebook.weight.mul_(torch.logspace(-2, 2, 200).unsqueeze(1))
    return quantizer


def test_the_nearest_code_is_the_one_of_highest_cosine(quantizer):
    latents = torch.randn(2, 7, 6) * torch.tensor([[[0.01]], [[100.0]]])
    quantized, ids, _ = quantizer(latents)
    cosine = F.cosine_similarity(latents.unsqueeze(2), quantizer.codebook.weight, dim=-1)
    torch.testing.assert_close(ids, cosine.argmax(dim=-1))
    assert ids.dtype == torch.int64
    torch.testing.assert_close(quantized, F.normalize(quantizer.codebook.weight, dim=-1)[ids])
    torch.testing.assert_close(quantized.norm(dim=-1), torch.ones(2, 7))


def test_codes_looked_up_from_ids_equal_the_quantised_output_to_the_bit(quantizer):
    quantized, ids, _ = quantizer(torch.randn(3, 50, 6))
    assert torch.equal(quantizer.from_ids(ids), quantized)


def test_a_code_quantises_to_itself(quantizer):
    ids = torch.arange(200).view(4, 50)
    assert torch.equal(quantizer(quantizer.from_ids(ids))[1], ids)


def test_gradient_passes_straight_through_the_choice(quantizer):
    latents = torch.randn(2, 5, 6, requires_grad=True)
    weights = torch.randn(2, 5, 6)
    (quantizer(latents)[0] * weights).sum().backward()
    expected = torch.autograd.grad((F.normalize(latents, dim=-1) * weights).sum(), latents)[0]
    torch.testing.assert_close(latents.grad, expected)
    assert quantizer.codebook.weight.grad is None


def test_loss_pulls_codes_fully_and_latents_by_the_commitment_cost(quantizer):
    latents = torch.randn(2, 5, 6, requires_grad=True)
    _, ids, loss = quantizer(latents)
    directions, codes = F.normalize(latents, dim=-1), F.normalize(quantizer.codebook.weight, dim=-1)[ids]
    distance = F.mse_loss(codes, directions, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(loss, 1.25 * distance)
    distance, loss = distance.mean(), loss.mean()
    grads = torch.autograd.grad(loss, [latents, quantizer.codebook.weight])
    expected = torch.autograd.grad(distance, [latents, quantizer.codebook.weight])
    torch.testing.assert_close(grads[0], 0.25 * expected[0])
    torch.testing.assert_close(grads[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_latents_are_compared_in_float32(quantizer, dtype):
    latents = torch.randn(1, 500, 6).to(dtype)
    quantized, ids, loss = quantizer(latents)
    assert torch.equal(ids, quantizer(latents.float())[1])
    assert quantized.dtype == loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(latents)[1], ids)


def test_straight_through_keeps_values_to_the_bit():
    values, source = torch.randn(1000), torch.randn(1000, requires_grad=True) * 1e4
    assert torch.equal(straight_through(values, gradient_of=source), values)
