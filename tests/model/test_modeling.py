"""ALITModel as transformers expects a model to be."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from same_weights import assert_same_weights
from tiny_config import VARIANT_NAMES, VARIANTS, tiny_config, tiny_images, tiny_model
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alit_hf import ALITConfig, ALITForImageClassification, ALITImageProcessor, ALITModel


all_variants = pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)
both_bases = pytest.mark.parametrize("base", ["vqgan", "kl"])


# Saving and loading


@all_variants
def test_one_safetensors_file_holds_the_whole_model_to_the_bit(tmp_path, base, quantize):
    model = tiny_model(base, quantize)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(model.state_dict())

    loaded, report = ALITModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert not loaded.training
    assert_same_weights(loaded, model)
    with torch.no_grad():
        expected, output = model(tiny_images()), loaded(tiny_images())
    assert torch.equal(output.reconstruction, expected.reconstruction)
    assert torch.equal(output.latents, expected.latents)


@all_variants
def test_state_dict_has_the_documented_parts(base, quantize):
    names = tiny_model(base, quantize).state_dict().keys()
    parts = {name.split(".")[0] for name in names}
    documented = {"base_tokenizer", "embeddings", "latent_tokens", "encoder", "latent_projection", "decoder"}
    assert parts == documented | ({"quantizer"} if quantize else set())
    assert ("base_tokenizer.model.quantize.embedding.weight" in names) == (base == "vqgan")


def test_auto_classes_know_the_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    ALITImageProcessor(size=32, crop_size=32).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ALITConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is ALITModel
    assert type(AutoModel.from_config(model.config)) is ALITModel
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ALITImageProcessor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@all_variants
def test_half_precision_loads_and_runs_with_a_float32_quantizer(tmp_path, base, quantize, dtype):
    model = tiny_model(base, quantize)
    model.save_pretrained(tmp_path)
    half = ALITModel.from_pretrained(tmp_path, dtype=dtype)
    kept = {name for name, weight in half.named_parameters() if weight.dtype != dtype}
    assert kept == ({"quantizer.codebook.weight"} if quantize else set())

    pixel_values = tiny_images(3)
    with torch.no_grad():
        expected = model(pixel_values)
        output = half(pixel_values)
        code = half.encode(pixel_values, threshold=0.3, return_reconstruction=True)
        tokens = {"token_ids": code.token_ids} if quantize else {"latents": code.latents}
        decoded = half.decode(**tokens, num_tokens=code.num_tokens)
    assert output.reconstruction.dtype == code.reconstruction.dtype == dtype
    assert code.score.dtype == torch.float32
    torch.testing.assert_close(decoded.pixel_values, code.reconstruction, atol=0.05, rtol=0)
    # Most tokens keep their id, since these are compared in float32.
    if quantize:
        assert (output.token_ids == expected.token_ids).float().mean() > 0.6
    error = (output.last_hidden_state.float() - expected.last_hidden_state).abs().mean()
    assert error < 0.05 * expected.last_hidden_state.abs().mean()


def test_half_precision_pixels_are_taken(tmp_path):
    model = tiny_model()
    pixel_values = tiny_images()
    with torch.no_grad():
        expected = model.encode(pixel_values.double())
        assert torch.equal(model.encode(pixel_values).token_ids, expected.token_ids)
        assert model.encode(pixel_values.half(), num_tokens=3).token_ids.shape == (2, 3)


def test_autocast_runs_and_keeps_the_quantizer_in_float32():
    model = tiny_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tiny_images())
        loss = output.reconstruction.float().pow(2).mean() + output.quantizer_loss.mean()
    assert output.latents.dtype == torch.float32
    loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


# Initial weights


@all_variants
def test_initial_weights_are_set_in_every_part_and_repeat_under_a_seed(base, quantize):
    first, second, other = (tiny_model(base, quantize, seed=seed) for seed in (1, 1, 2))
    assert_same_weights(first, second)
    # The published scale of class, mask, position and latent embeddings.
    of_embeddings = first.config.hidden_size**-0.5
    embeddings = ("cls_token", "mask_token", "position_embeddings", "rollout_embeddings", "latent_tokens.tokens")
    for (name, weight), changed in zip(first.named_parameters(), other.parameters(), strict=True):
        assert weight.isfinite().all(), name
        if name.startswith("base_tokenizer"):
            continue  # as diffusers does: test_base_tokenizer.py
        if "layernorm" in name:
            assert (weight == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (weight == 0).all(), name
        else:
            expected = of_embeddings if name.endswith(embeddings) else first.config.initializer_range
            expected = 1 if "codebook" in name else expected
            assert weight.std().item() == pytest.approx(expected, rel=0.35), name
            assert abs(weight.mean().item()) < expected / 2, name
            assert not torch.equal(weight, changed), name


@pytest.fixture
def poisoned_memory():
    """Memory that nobody initialises is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@all_variants
def test_weights_missing_from_a_checkpoint_start_as_in_a_new_model(tmp_path, base, quantize, poisoned_memory):
    model = ALITModel(tiny_config(base, quantize))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if "conv_in" in name or "layers.0.mlp" in name}
    save_file(kept, file, metadata={"format": "pt"})

    loaded, report = ALITModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(model.state_dict()) - set(kept)
    for (name, weight), fresh in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert weight.isfinite().all(), name
        if name in kept:
            assert torch.equal(weight, kept[name]), name
        elif weight.numel() >= 64:
            assert weight.std().item() == pytest.approx(fresh.std().item(), rel=0.5, abs=1e-6), name
        elif "norm" in name:
            assert torch.equal(weight, fresh), name


# Attention and recorded outputs


@all_variants
def test_sdpa_equals_eager(tmp_path, base, quantize):
    model = tiny_model(base, quantize)
    model.save_pretrained(tmp_path)
    assert model.config._attn_implementation == "sdpa"
    eager = ALITModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    with torch.no_grad():
        expected, output = model(tiny_images()), eager(tiny_images())
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction)


def test_attention_goes_through_the_attention_interface():
    calls = []

    def counting_attention(module, query, key, value, attention_mask, **kwargs):
        calls.append(tuple(query.shape))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS["counting"] = counting_attention
    try:
        model = tiny_model()
        model.set_attn_implementation("counting")
        model.encode(tiny_images(), num_tokens=6)
    finally:
        del ALL_ATTENTION_FUNCTIONS["counting"]
    # In both layers for each image alone.
    assert calls == [(1, 4, 1 + 64 + 3, 8)] * 4 + [(1, 4, 1 + 64 + 6, 8)] * 4


def test_every_attention_implementation_is_declared():
    model = tiny_model()
    for module in (model, model.base_tokenizer):
        assert module._supports_sdpa
        assert module._supports_flash_attn
        assert module._supports_flex_attn
        assert module._supports_attention_backend


@both_bases
def test_hidden_states_are_recorded_for_every_layer_of_every_rollout(base):
    model = tiny_model(base)
    with torch.no_grad():
        output = model(tiny_images(), num_tokens=9, output_hidden_states=True, output_decoder_hidden_states=True)
    lengths = [65 + 3] * 3 + [65 + 6] * 2 + [65 + 9] * 2  # the first layer's input, then 2 layers a rollout
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, length, 32) for length in lengths]
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert [tuple(state.shape) for state in output.decoder_hidden_states] == [(2, 65 + 9, 32)]
    steps = model.rollouts(tiny_images(), num_tokens=9)
    for recorded, step in zip(output.hidden_states[2::2], steps, strict=True):
        torch.testing.assert_close(recorded, step.last_hidden_state)
    assert output.attentions is None


def test_attentions_are_recorded_and_are_distributions():
    model = tiny_model(num_decoder_layers=2)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(tiny_images(), output_attentions=True, output_decoder_attentions=True)
    lengths = [65 + 3 * rollout for rollout in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, n, n) for n in lengths]
    assert [tuple(weights.shape) for weights in output.decoder_attentions] == [(2, 4, 77, 77)] * 2
    for weights in output.attentions + output.decoder_attentions:
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("flag", ["output_attentions", "output_decoder_attentions"])
def test_attentions_that_sdpa_does_not_have_are_refused(flag):
    with pytest.raises(ValueError, match=rf"{flag}.*sdpa.*eager"):
        tiny_model()(tiny_images(), **{flag: True})


def test_tuples_instead_of_outputs():
    model = tiny_model()
    with torch.no_grad():
        output = model(tiny_images())
        as_tuple = model(tiny_images(), return_dict=False)
        code = model.encode(tiny_images(), num_tokens=3, return_dict=False)
        decoded = model.decode(token_ids=code[0], return_dict=False)
    assert torch.equal(output[0], output.last_hidden_state)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.last_hidden_state)
    assert isinstance(code, tuple)
    assert code[0].shape == (2, 3)
    assert isinstance(decoded, tuple)
    assert decoded[0].shape == (2, 3, 32, 32)


# Training


def gradients(model: ALITModel) -> dict[str, torch.Tensor]:
    output = model(tiny_images())
    loss = (output.reconstruction - tiny_images()).pow(2).mean() + output.last_hidden_state.pow(2).mean()
    (loss + (output.quantizer_loss.mean() if model.config.quantize else 0)).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@all_variants
def test_gradient_reaches_every_weight_that_forward_uses(base, quantize):
    found = gradients(tiny_model(base, quantize).train())
    # Halting is off, so nothing is masked on the encoder's side.
    assert {name for name, gradient in found.items() if gradient is None} == {"embeddings.mask_token"}
    zero = {name for name, gradient in found.items() if gradient is not None and not gradient.any()}
    # A key's bias adds the same to every attention logit of a query, in exact arithmetic.
    assert not {name for name in zero if "k_proj.bias" not in name}


@both_bases
def test_gradient_checkpointing_changes_no_gradient(base):
    model = tiny_model(base).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    assert checkpointed.is_gradient_checkpointing
    calls = []
    for layer in checkpointed.encoder.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    expected, found = gradients(model), gradients(checkpointed)
    assert len(calls) == 2 * 2 * 4  # layers, rollouts, each run again in the backward pass
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@all_variants
def test_training_steps_lower_the_error(base, quantize):
    model = tiny_model(base, quantize).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    errors = []
    for _ in range(8):
        output = model(tiny_images(), num_tokens=6)
        error = (output.reconstruction - tiny_images()).abs().mean()
        errors.append(error.item())
        optimizer.zero_grad()
        (error + (0.1 * output.quantizer_loss.mean() if quantize else 0)).backward()
        optimizer.step()
    assert errors[-1] < 0.8 * errors[0]


def test_attention_dropout_acts_in_training_only():
    model = tiny_model(attention_dropout=0.5)
    with torch.no_grad():
        assert torch.equal(model(tiny_images()).last_hidden_state, model(tiny_images()).last_hidden_state)
        model.train()
        assert not torch.equal(model(tiny_images()).last_hidden_state, model(tiny_images()).last_hidden_state)


def test_config_of_a_saved_model_is_plain_json(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "alit"
    assert config["architectures"] == ["ALITModel"]
    assert config["base_tokenizer_config"] == tiny_config().base_tokenizer_config


# What tools ask of a model


def test_input_embeddings_are_the_patch_embedding():
    model = tiny_model()
    assert model.get_input_embeddings() is model.embeddings.patch_embeddings
    classifier = ALITForImageClassification(tiny_config())
    assert classifier.get_input_embeddings() is classifier.alit.embeddings.patch_embeddings


def test_an_attention_mask_may_be_none():
    model = tiny_model()
    with torch.no_grad():
        expected = model(tiny_images()).last_hidden_state
        assert torch.equal(model(tiny_images(), attention_mask=None).last_hidden_state, expected)
        ALITForImageClassification(tiny_config())(tiny_images(), attention_mask=None)
    with pytest.raises(ValueError, match="`attention_mask` is given"):
        model(tiny_images(), attention_mask=torch.ones(2, 65))


@pytest.mark.parametrize("num_tokens", [3, 9, None])
def test_hidden_states_are_selected_among_those_of_all_rollouts(num_tokens):
    model = tiny_model()
    with torch.no_grad():
        everything = model(tiny_images(), num_tokens=num_tokens, output_hidden_states=True)
        last = model(tiny_images(), num_tokens=num_tokens, output_hidden_states=-1)
        two = model(tiny_images(), num_tokens=num_tokens, output_hidden_states=[1, -2])
    assert torch.equal(last.hidden_states[-1], last.last_hidden_state)
    assert {index for index, state in enumerate(last.hidden_states) if state is not None} == {
        len(everything.hidden_states) - 1
    }
    for index in (1, -2):
        assert torch.equal(two.hidden_states[index], everything.hidden_states[index])
