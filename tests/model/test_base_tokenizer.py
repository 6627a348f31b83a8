"""The base tokenizer: diffusers' autoencoders behind one interface."""

import pytest
import torch
from tiny_config import BASE_TOKENIZERS, tiny_config, tiny_images, tiny_model

from alit_hf.model.base_tokenizer import ALITBaseTokenizer


@pytest.fixture(params=["vqgan", "kl"])
def tokenizer(request) -> ALITBaseTokenizer:
    return tiny_model(request.param).base_tokenizer


@pytest.fixture
def vqgan() -> ALITBaseTokenizer:
    return tiny_model("vqgan").base_tokenizer


@pytest.fixture
def kl() -> ALITBaseTokenizer:
    return tiny_model("kl").base_tokenizer


@torch.no_grad()
def test_vqgan_latents_are_those_before_quantisation_and_are_not_quantised_by_decode(vqgan):
    pixel_values = tiny_images()
    latents = vqgan.encode(pixel_values)
    assert latents.shape == (2, 6, 8, 8)
    torch.testing.assert_close(latents, vqgan.model.quant_conv(vqgan.model.encoder(pixel_values)))
    torch.testing.assert_close(vqgan.decode(latents), vqgan.model.decoder(vqgan.model.post_quant_conv(latents)))
    assert not torch.allclose(vqgan.decode(latents), vqgan.model.decode(latents).sample)


@torch.no_grad()
def test_vqgan_codes_are_the_nearest_in_raster_order(vqgan):
    latents = vqgan.encode(tiny_images(height=32, width=48))
    codes = vqgan.codes(latents)
    assert codes.shape == (2, 8 * 12)
    assert codes.dtype == torch.int64
    distances = (latents.flatten(2).transpose(1, 2).unsqueeze(2) - vqgan.codebook).pow(2).sum(-1)
    assert torch.equal(codes, distances.argmin(-1))
    assert torch.equal(codes.flatten(), vqgan.model.quantize(latents)[2][2].flatten())


@torch.no_grad()
def test_certain_logits_stand_for_the_code_itself(vqgan):
    codes = torch.randint(0, 24, (2, 8 * 12))
    logits = torch.nn.functional.one_hot(codes, 24) * 1e4
    expected = vqgan.codebook[codes].view(2, 8, 12, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(vqgan.expected_latents(logits, (8, 12)), expected)


@torch.no_grad()
def test_uncertain_logits_stand_for_the_expected_code(vqgan):
    latents = vqgan.expected_latents(torch.zeros(1, 6, 24), (2, 3))
    torch.testing.assert_close(latents, vqgan.codebook.mean(0).view(1, 6, 1, 1).expand(1, 6, 2, 3))


def test_expected_codes_pass_gradient_to_logits_and_codebook(vqgan):
    logits = torch.randn(1, 6, 24, requires_grad=True)
    vqgan.decode(vqgan.expected_latents(logits, (2, 3))).sum().backward()
    assert logits.grad.abs().sum() > 0
    assert vqgan.codebook.grad.abs().sum() > 0


@torch.no_grad()
def test_kl_latents_are_the_posteriors_scaled_mode_and_decode_undoes_the_scale(kl):
    pixel_values = tiny_images()
    mean = kl.model.quant_conv(kl.model.encoder(pixel_values)).chunk(2, dim=1)[0]
    latents = kl.encode(pixel_values)
    assert latents.shape == (2, 5, 8, 8)
    torch.testing.assert_close(latents, 0.25 * mean)
    expected = kl.model.decoder(kl.model.post_quant_conv(mean))
    # One picture at a time is rounded otherwise than a batch, on AVX2 by up to 1.3e-5.
    torch.testing.assert_close(kl.decode(latents), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_converted_kl_checkpoints_decode_scaled_latents():
    model = tiny_model("kl", unscale_base_latents=False)
    latents = torch.randn(1, 5, 8, 8)
    expected = model.base_tokenizer.model.decode(latents).sample
    torch.testing.assert_close(model.base_tokenizer.decode(latents), expected)


@torch.no_grad()
def test_kl_outputs_are_latents_in_raster_order(kl):
    latents = torch.randn(2, 5, 8, 12)
    assert torch.equal(kl.expected_latents(latents.flatten(2).transpose(1, 2), (8, 12)), latents)


@torch.no_grad()
def test_results_on_a_cpu_do_not_depend_on_batch_mates_to_the_bit(tokenizer):
    # At this size torch takes one convolution algorithm for one image and another for more.
    pixel_values = tiny_images(17)
    latents = tokenizer.encode(pixel_values)
    pictures = tokenizer.decode(latents)
    for batch_size in (1, 2, 17):
        assert torch.equal(torch.cat([tokenizer.encode(batch) for batch in pixel_values.split(batch_size)]), latents)
        assert torch.equal(torch.cat([tokenizer.decode(batch) for batch in latents.split(batch_size)]), pictures)


@torch.no_grad()
def test_pixels_reach_the_base_unshifted(tokenizer):
    seen = []
    tokenizer.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixel_values = tiny_images()
    tokenizer.encode(pixel_values)
    assert torch.equal(torch.cat(seen), pixel_values)


@torch.no_grad()
def test_soft_codes_work_with_bases_that_look_up_ids():
    base = {**BASE_TOKENIZERS["vqgan"], "lookup_from_codebook": True}
    model = tiny_model(base_tokenizer_config=base)
    assert torch.equal(model(tiny_images()).reconstruction, tiny_model()(tiny_images()).reconstruction)


@pytest.mark.parametrize("base", ["vqgan", "kl"])
def test_fresh_weights_are_spread_as_diffusers_spreads_them(base):
    ours = ALITBaseTokenizer(tiny_config(base)).model
    theirs = type(ours)(**{key: value for key, value in BASE_TOKENIZERS[base].items() if not key.startswith("_")})
    for (name, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if weight.ndim > 1:
            assert weight.std().item() == pytest.approx(expected.std().item(), rel=0.5), name
            assert not torch.equal(weight, expected), name
        elif "norm" in name:
            assert torch.equal(weight, expected), name
        else:
            assert 0 < weight.abs().max() < 3 * expected.abs().max(), name


def test_codebook_is_a_parameter_of_the_vqgan_base(vqgan):
    assert isinstance(vqgan.codebook, torch.nn.Parameter)
    assert vqgan.codebook.shape == (24, 6)
