"""What encode, decode, rollouts and forward compute, and that they do no more work than they must."""

import collections
import contextlib
import io
import itertools
import pickle
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tiny_config import VARIANT_NAMES, VARIANTS, tiny_images, tiny_model
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTEmbeddings

from alit_hf import ALITModel
from alit_hf.model.outputs import ALITEncoderOutput
from alit_hf.model.selection import resolve_criterion


all_variants = pytest.mark.parametrize(("base", "quantize"), VARIANTS, ids=VARIANT_NAMES)
both_bases = pytest.mark.parametrize("base", ["vqgan", "kl"])


@pytest.fixture(autouse=True)
def no_grad(request) -> Iterator[None]:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@contextlib.contextmanager
def counted(model: ALITModel) -> Iterator[dict[str, list[int]]]:
    """The batch size of each pass through the model's four networks. The base tokenizer's are per image on a CPU."""
    networks = {
        "encoder": model.encoder,
        "decoder": model.decoder,
        "base encoder": model.base_tokenizer.model.encoder,
        "base decoder": model.base_tokenizer.model.decoder,
    }
    passes = {name: [] for name in networks}
    handles = [
        network.register_forward_pre_hook(lambda _, inputs, name=name: passes[name].append(len(inputs[0])))
        for name, network in networks.items()
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def no_module_runs() -> Iterator[None]:
    ran = []
    handle = register_module_forward_pre_hook(lambda module, _: ran.append(type(module).__name__))
    try:
        yield
    finally:
        handle.remove()
    assert not ran


def scores_of_all_rollouts(model: ALITModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """L1 of each image alone at each rollout, `(B, K)`."""
    return torch.stack(
        [
            torch.stack([(step.reconstruction - image).abs().mean() for step in model.rollouts(image)])
            for image in pixel_values.split(1)
        ]
    )


def thresholds_for(scores: torch.Tensor, rollouts: list[int]) -> torch.Tensor:
    """A threshold for each image that it meets first at its own rollout (counted from 1; beyond the last: never)."""
    thresholds = []
    for row, rollout in zip(scores, rollouts, strict=True):
        before = row[: rollout - 1].min() if rollout > 1 else row.max() + 1
        at = row[rollout - 1] if rollout <= len(row) else row.min() - 1
        assert at < before, "this image has no threshold that ends at this rollout"
        thresholds.append((at + before) / 2)
    return torch.stack(thresholds)


def possible_exits(scores: torch.Tensor) -> list[list[int]]:
    """The rollouts (counted from 1) at which each image can be the first time below some threshold."""
    best = scores.cummin(dim=1).values
    falls = torch.cat([torch.ones_like(best[:, :1], dtype=torch.bool), best[:, 1:] < best[:, :-1]], dim=1)
    return [(row.nonzero().flatten() + 1).tolist() for row in falls]


def batch_with_different_exits(model: ALITModel) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Eight images, a threshold for each, and the rollouts at which they leave (one never: K + 1)."""
    pixel_values = tiny_images(8)
    scores = scores_of_all_rollouts(model, pixel_values)
    exits = [options[row % len(options)] for row, options in enumerate(possible_exits(scores))]
    exits[3] = model.config.max_rollouts + 1
    assert len(set(exits)) >= 3, "the model of this test is degenerate"
    assert exits != sorted(exits), "the order of leaving should not be that of the batch"
    return pixel_values, thresholds_for(scores, exits), exits


# The recurrence


def reference_rollouts(model: ALITModel, pixel_values: torch.Tensor):
    """Section 2 of the paper, written out: hidden states, ids, latents, decoder output and picture of each rollout."""
    config, weights = model.config, model.state_dict()
    base, base_config = model.base_tokenizer.model, model.config.base_tokenizer_config
    width, heads, size, count = (
        config.hidden_size,
        config.num_attention_heads,
        config.tokens_per_rollout,
        config.num_positions,
    )

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def layer_norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def transformer(x, name, layers):
        for layer in (f"{name}.layers.{index}" for index in range(layers)):
            normed = layer_norm(x, f"{layer}.layernorm_before")
            query, key, value = (
                linear(normed, f"{layer}.attention.{part}_proj").unflatten(-1, (heads, -1)) for part in "qkv"
            )
            logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / (width / heads) ** 0.5
            attended = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), value).flatten(2)
            x = x + linear(attended, f"{layer}.attention.o_proj")
            normed = layer_norm(x, f"{layer}.layernorm_after")
            x = x + linear(F.gelu(linear(normed, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
        return x

    def per_image(vector):
        return vector.expand(len(pixel_values), -1, -1)

    if config.base_type == "vqgan":
        z = base.quant_conv(base.encoder(pixel_values))
    else:
        z = base.quant_conv(base.encoder(pixel_values)).chunk(2, dim=1)[0] * base_config["scaling_factor"]
    patches = F.conv2d(
        pixel_values,
        weights["embeddings.patch_embeddings.weight"],
        weights["embeddings.patch_embeddings.bias"],
        stride=config.patch_size,
    )
    t = torch.cat([z, patches], dim=1).flatten(2).transpose(1, 2)
    t = t / t.norm(dim=-1, keepdim=True)
    t = torch.cat([per_image(weights["embeddings.cls_token"]), t], dim=1) + weights["embeddings.position_embeddings"]

    fresh = weights["latent_tokens.tokens"] + weights["latent_tokens.position_embeddings"]
    mask = weights["decoder.mask_token"].expand(1, count, width)
    h = t
    for rollout in range(config.max_rollouts):
        norm = "encoder.layernorm_rollout" if rollout else "encoder.layernorm_pre"
        new = fresh + weights["latent_tokens.rollout_embeddings"][rollout]
        h = transformer(layer_norm(torch.cat([h, per_image(new)], dim=1), norm), "encoder", config.num_encoder_layers)
        latents = linear(layer_norm(h[:, 1 + count :], "encoder.layernorm_post"), "latent_projection")
        ids = None
        if config.quantize:
            codebook = weights["quantizer.codebook.weight"]
            ids = F.cosine_similarity(latents.unsqueeze(2), codebook, dim=-1).argmax(-1)
            latents = codebook[ids] / codebook[ids].norm(dim=-1, keepdim=True)

        tokens = linear(latents, "decoder.latent_projection")
        tokens = tokens + weights["decoder.latent_position_embeddings"][: (rollout + 1) * size]
        grid = torch.cat([weights["decoder.cls_token"], mask], dim=1) + weights["decoder.position_embeddings"]
        y = layer_norm(torch.cat([per_image(grid), tokens], dim=1), "decoder.layernorm_pre")
        y = layer_norm(transformer(y, "decoder", config.num_decoder_layers), "decoder.layernorm_post")
        y = linear(linear(y[:, 1 : 1 + count], "decoder.head.fc1").tanh(), "decoder.head.fc2")
        if config.base_type == "vqgan":
            codes = y.softmax(-1) @ base.quantize.embedding.weight
        else:
            codes = y / base_config["scaling_factor"]
        codes = codes.transpose(1, 2).unflatten(2, config.grid_size)
        yield h, ids, latents, y, base.decoder(base.post_quant_conv(codes))


@all_variants
def test_rollouts_are_the_papers_recurrence(base, quantize):
    model = tiny_model(base, quantize, image_size=[32, 24])
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:  # all norms are the same at first, and all biases zero
            weight.add_(0.3 * torch.randn(weight.shape))
    pixel_values = tiny_images(3, 32, 24)
    steps = list(model.rollouts(pixel_values))
    assert len(steps) == 4
    for rollout, (step, expected) in enumerate(zip(steps, reference_rollouts(model, pixel_values), strict=True), 1):
        hidden_states, ids, latents, decoder_output, picture = expected
        assert step.num_tokens == 3 * rollout
        assert step.grid_size == (8, 6)
        torch.testing.assert_close(step.last_hidden_state, hidden_states, rtol=1e-4, atol=1e-4)
        assert (step.token_ids is None) == (not quantize)
        assert not quantize or torch.equal(step.token_ids, ids)
        torch.testing.assert_close(step.latents, latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(step.decoder_output, decoder_output, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(step.reconstruction, picture, rtol=1e-4, atol=1e-5)


@all_variants
def test_encode_and_forward_agree_with_rollouts_at_every_length(base, quantize):
    model = tiny_model(base, quantize)
    pixel_values = tiny_images(3)
    for step in model.rollouts(pixel_values):
        code = model.encode(pixel_values, num_tokens=step.num_tokens, return_reconstruction=True)
        output = model(pixel_values, num_tokens=step.num_tokens)
        assert code.num_tokens.tolist() == [step.num_tokens] * 3
        assert code.num_tokens.dtype == torch.int64
        assert code.score is None
        assert code.satisfied is None
        for result in (code, output):
            assert torch.equal(result.latents, step.latents)
            assert torch.equal(result.reconstruction, step.reconstruction)
            assert (result.token_ids is None) if not quantize else torch.equal(result.token_ids, step.token_ids)
        assert torch.equal(output.last_hidden_state, step.last_hidden_state)
        assert torch.equal(output.decoder_output, step.decoder_output)
        assert output.num_tokens == step.num_tokens
    full = model.encode(pixel_values)
    assert torch.equal(full.latents, step.latents)
    assert torch.equal(model(pixel_values).latents, step.latents)


def test_every_rollout_rewrites_the_code():
    codes = [step.token_ids for step in tiny_model().rollouts(tiny_images())]
    for shorter, longer in itertools.pairwise(codes):
        assert not torch.equal(longer[:, : shorter.shape[1]], shorter)


# No more work than needed


@all_variants
def test_a_fixed_length_decodes_nothing(base, quantize):
    model = tiny_model(base, quantize)
    with counted(model) as passes:
        model.encode(tiny_images(2), num_tokens=9)
    assert passes["encoder"] == [2, 2, 2]
    assert sum(passes["base encoder"]) == 2
    assert passes["decoder"] == passes["base decoder"] == []


def test_a_fixed_length_with_reconstruction_decodes_once():
    model = tiny_model()
    with counted(model) as passes:
        model.encode(tiny_images(2), num_tokens=9, return_reconstruction=True)
    assert passes["encoder"] == [2, 2, 2]
    assert passes["decoder"] == [2]
    assert sum(passes["base decoder"]) == 2


def test_forward_runs_the_encoder_up_to_its_length_and_the_decoder_once():
    model = tiny_model()
    with counted(model) as passes:
        model(tiny_images(2), num_tokens=6)
        model(tiny_images(2), num_tokens=6, return_reconstruction=False)
    assert passes["encoder"] == [2, 2] * 2
    assert passes["decoder"] == [2] * 2
    assert sum(passes["base decoder"]) == 2


@both_bases
def test_an_image_that_is_satisfied_at_rollout_k_takes_k_passes(base):
    model = tiny_model(base)
    pixel_values = tiny_images(8)
    scores = scores_of_all_rollouts(model, pixel_values)
    seen = set()
    for image, row, options in zip(pixel_values.split(1), scores, possible_exits(scores), strict=True):
        for rollout in options:
            with counted(model) as passes:
                code = model.encode(image, threshold=thresholds_for(row[None], [rollout]).item())
            assert code.num_tokens.item() == 3 * rollout
            assert code.token_ids.shape == (1, 3 * rollout)
            assert code.satisfied.item()
            torch.testing.assert_close(code.score, row[rollout - 1 : rollout])
            assert passes["encoder"] == passes["decoder"] == passes["base decoder"] == [1] * rollout
            seen.add(rollout)
    assert seen == {1, 2, 3, 4}


@both_bases
def test_satisfied_images_leave_the_batch_at_once(base):
    model = tiny_model(base)
    pixel_values, thresholds, exits = batch_with_different_exits(model)
    with counted(model) as passes:
        code = model.encode(pixel_values, threshold=thresholds)
    left = collections.Counter(exits)
    sizes = [sum(left[later] for later in range(rollout, 6)) for rollout in range(1, 5)]
    assert passes["encoder"] == passes["decoder"] == sizes
    assert sum(passes["base decoder"]) == sum(sizes)
    assert sum(passes["base encoder"]) == 8
    assert code.num_tokens.tolist() == [3 * min(rollout, 4) for rollout in exits]


def test_rollouts_run_when_they_are_asked_for():
    model = tiny_model()
    with counted(model) as passes:
        steps = model.rollouts(tiny_images(1))
        assert not any(passes.values())
        for rollout in (1, 2):
            next(steps)
            assert passes["encoder"] == passes["decoder"] == passes["base decoder"] == [1] * rollout
        steps.close()
    assert len(passes["encoder"]) == 2


def test_rollouts_stop_at_a_length_and_need_no_pictures():
    model = tiny_model()
    with counted(model) as passes:
        steps = list(model.rollouts(tiny_images(1), num_tokens=6, return_reconstruction=False))
    assert [step.num_tokens for step in steps] == [3, 6]
    assert all(step.reconstruction is None for step in steps)
    assert passes["base decoder"] == []


@both_bases
def test_rollouts_take_base_latents_that_are_known_already(base):
    model = tiny_model(base)
    pixel_values = tiny_images(2)
    latents = model.base_tokenizer.encode(pixel_values)
    plain = list(model.rollouts(pixel_values))
    with counted(model) as passes:
        given = list(model.rollouts(pixel_values, base_latents=latents))
    assert passes["base encoder"] == []
    for one, two in zip(plain, given, strict=True):
        assert torch.equal(one.last_hidden_state, two.last_hidden_state)
        assert torch.equal(one.reconstruction, two.reconstruction)
    changed = next(model.rollouts(pixel_values, base_latents=latents + 1))
    assert not torch.equal(changed.last_hidden_state, plain[0].last_hidden_state)


@pytest.mark.parametrize("wrong", [lambda latents: latents[:1], lambda latents: latents[..., 1:], lambda _: [1.0]])
def test_base_latents_of_another_shape_are_refused(wrong):
    model = tiny_model()
    pixel_values = tiny_images(2)
    with pytest.raises(ValueError, match="`base_latents` is"):
        model.rollouts(pixel_values, base_latents=wrong(model.base_tokenizer.encode(pixel_values)))


# One threshold for each image


@all_variants
def test_a_batch_equals_its_images_alone(base, quantize):
    model = tiny_model(base, quantize)
    pixel_values, thresholds, exits = batch_with_different_exits(model)
    batch = model.encode(pixel_values, threshold=thresholds, return_reconstruction=True)
    assert batch.latents.shape == (8, 12, 5)
    assert batch.satisfied.tolist() == [rollout <= 4 for rollout in exits]
    for row, (image, threshold) in enumerate(zip(pixel_values.split(1), thresholds.tolist(), strict=True)):
        alone = model.encode(image, threshold=threshold, return_reconstruction=True)
        length = int(alone.num_tokens)
        assert batch.num_tokens[row] == length
        assert batch.satisfied[row] == alone.satisfied[0]
        # To the bit, as the score of one may be another's threshold.
        assert torch.equal(batch.score[row : row + 1], alone.score)
        assert torch.equal(batch.latents[row : row + 1, :length], alone.latents)
        assert not batch.latents[row, length:].any()
        assert torch.equal(batch.reconstruction[row : row + 1], alone.reconstruction)
        if quantize:
            assert torch.equal(batch.token_ids[row : row + 1, :length], alone.token_ids)
            assert (batch.token_ids[row, length:] == -1).all()
        else:
            assert batch.token_ids is alone.token_ids is None


@all_variants
def test_fixed_lengths_do_not_depend_on_batch_mates(base, quantize):
    model = tiny_model(base, quantize)
    pixel_values = tiny_images(8)
    batch = model.encode(pixel_values, return_reconstruction=True)
    for row, image in enumerate(pixel_values.split(1)):
        alone = model.encode(image, return_reconstruction=True)
        assert torch.equal(batch.latents[row : row + 1], alone.latents)
        assert torch.equal(batch.reconstruction[row : row + 1], alone.reconstruction)
        assert not quantize or torch.equal(batch.token_ids[row : row + 1], alone.token_ids)


@all_variants
@pytest.mark.parametrize("criterion", ["l1", "l2", "psnr"])
def test_an_image_whose_threshold_is_its_own_score_gets_one_code_in_any_batch(base, quantize, criterion):
    model = tiny_model(base, quantize)
    pixel_values = tiny_images(7)
    measure = resolve_criterion(criterion)
    scores = torch.stack([measure(step.reconstruction, pixel_values) for step in model.rollouts(pixel_values)], dim=1)
    # Random weights give less than 0 dB.
    thresholds = scores[torch.arange(7), torch.arange(7) % 4].clamp(min=0)
    codes = {
        size: torch.cat(
            [
                F.pad(code.latents, (0, 0, 0, 12 - code.latents.shape[1]))
                for batch, own in zip(pixel_values.split(size), thresholds.split(size), strict=True)
                for code in [model.encode(batch, threshold=own, criterion=criterion)]
            ]
        )
        for size in (1, 2, 7)
    }
    assert torch.equal(codes[1], codes[2])
    assert torch.equal(codes[1], codes[7])


class BatchSizes(TorchFunctionMode):
    """The batch sizes that functions get which may round by them."""

    functions = (F.linear, F.conv2d, F.gelu, F.scaled_dot_product_attention, torch.Tensor.matmul, torch.Tensor.mean)

    def __init__(self):
        self.found = collections.defaultdict(set)

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function in self.functions and (function is not torch.Tensor.matmul or arguments[0].ndim > 2):
            self.found[function].add(len(arguments[0]))
        return function(*arguments, **(options or {}))


@all_variants
def test_what_rounds_by_the_size_of_a_batch_gets_each_image_alone_on_a_cpu(base, quantize):
    model = tiny_model(base, quantize)
    with BatchSizes() as sizes:
        model.decode(model.encode(tiny_images(3), threshold=0.0))
    assert {F.linear, F.conv2d, F.gelu, F.scaled_dot_product_attention, torch.Tensor.mean} <= set(sizes.found)
    assert set.union(*sizes.found.values()) == {1}


def test_training_computes_whole_batches():
    model = tiny_model().train()
    with BatchSizes() as sizes:
        model(tiny_images(3), return_reconstruction=False)
    assert sizes.found[F.linear] == sizes.found[F.gelu] == {3}


def test_the_batch_is_as_wide_as_its_longest_code():
    model = tiny_model()
    pixel_values = tiny_images(4)
    code = model.encode(pixel_values, threshold=float("inf"))
    assert code.token_ids.shape == (4, 3)
    assert code.satisfied.all()


def test_an_image_that_no_length_satisfies_gets_the_full_length():
    code = tiny_model().encode(tiny_images(3), threshold=torch.tensor([1e9, 0.0, 1e9]))
    assert code.num_tokens.tolist() == [3, 12, 3]
    assert code.satisfied.tolist() == [True, False, True]
    expected = (next(tiny_model().rollouts(tiny_images(3))).reconstruction - tiny_images(3)).abs().mean((1, 2, 3))
    torch.testing.assert_close(code.score[[0, 2]], expected[[0, 2]])


def test_a_score_equal_to_the_threshold_does_not_satisfy():
    def constant(reconstruction, original):
        return torch.full((len(original),), 0.25)

    model = tiny_model()
    code = model.encode(tiny_images(2), threshold=0.25, criterion=constant)
    assert code.num_tokens.tolist() == [12, 12]
    assert not code.satisfied.any()
    above = torch.nextafter(torch.tensor(0.25), torch.tensor(1.0))
    assert model.encode(tiny_images(2), threshold=above, criterion=constant).num_tokens.tolist() == [3, 3]


def test_a_criterion_sees_the_images_that_are_left():
    model = tiny_model()
    pixel_values = tiny_images(4)
    pictures = [step.reconstruction for step in model.rollouts(pixel_values)]
    leaves_after = {0: 2, 1: 1, 2: 4, 3: 1}
    remaining = [[0, 1, 2, 3], [0, 2], [2], [2]]
    calls = []

    def scripted(reconstruction, original):
        rollout = len(calls)
        rows = remaining[rollout]
        assert torch.equal(original, pixel_values[rows])
        torch.testing.assert_close(reconstruction, pictures[rollout][rows], rtol=0, atol=1e-5)
        calls.append(rows)
        return torch.tensor([float(leaves_after[row] - rollout) for row in rows])

    code = model.encode(pixel_values, threshold=1.5, criterion=scripted)
    assert calls == remaining
    assert code.num_tokens.tolist() == [6, 3, 12, 3]
    assert code.score.tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("criterion", ["l2", "psnr"])
def test_named_criteria_choose_by_their_own_scores(criterion):
    model, image = decent_model(), tiny_images(1)
    errors = torch.stack([(step.reconstruction - image).pow(2).mean() for step in model.rollouts(image)])
    scores = -10 * errors.log10() if criterion == "psnr" else errors
    for threshold in (scores[1:] + scores[:-1]) / 2:
        code = model.encode(image, threshold=threshold, criterion=criterion)
        met = scores > threshold if criterion == "psnr" else scores < threshold
        first = int(met.nonzero()[0])
        assert code.num_tokens.item() == 3 * (first + 1)
        assert code.satisfied.item()
        torch.testing.assert_close(code.score[0], scores[first])


def decent_model() -> ALITModel:
    """A model whose pictures are of a few dB, as those of random weights are not."""
    model = tiny_model()
    model.base_tokenizer.model.decoder.conv_out.weight.mul_(0.1)
    return model


def test_decibels_that_no_length_reaches():
    code = decent_model().encode(tiny_images(2), threshold=torch.tensor([60.0, 1.0]), criterion="psnr")
    assert code.num_tokens.tolist() == [12, 3]
    assert code.satisfied.tolist() == [False, True]
    assert ((code.score > 1) & (code.score < 60)).all()


def test_a_callable_says_whether_higher_is_better():
    calls = []

    def similarity(reconstruction, original):
        calls.append(len(original))
        return torch.full((len(original),), len(calls) / 10)

    model, pixel_values = tiny_model(), tiny_images(1)
    assert model.encode(pixel_values, threshold=0.25, criterion=similarity).num_tokens.tolist() == [3]
    calls.clear()
    similarity.higher_is_better = True
    code = model.encode(pixel_values, threshold=0.25, criterion=similarity)
    assert code.num_tokens.tolist() == [9]
    assert code.score.tolist() == pytest.approx([0.3])
    calls.clear()
    # Strictly above.
    assert model.encode(pixel_values, threshold=0.4, criterion=similarity).satisfied.tolist() == [False]


# Decoding


@all_variants
def test_ids_latents_and_the_reconstruction_give_the_same_picture_to_the_bit(base, quantize):
    model = tiny_model(base, quantize)
    code = model.encode(tiny_images(3), num_tokens=6, return_reconstruction=True)
    assert torch.equal(model.decode(latents=code.latents).pixel_values, code.reconstruction)
    if quantize:
        assert torch.equal(model.decode(token_ids=code.token_ids).pixel_values, code.reconstruction)
        assert torch.equal(model.decode(code.token_ids, num_tokens=6).pixel_values, code.reconstruction)
        assert torch.equal(model.decode(code.token_ids.to(torch.uint16)).pixel_values, code.reconstruction)


@all_variants
def test_codes_of_mixed_length_are_decoded_each_at_its_own(base, quantize):
    model = tiny_model(base, quantize)
    pixel_values, thresholds, _ = batch_with_different_exits(model)
    code = model.encode(pixel_values, threshold=thresholds, return_reconstruction=True)
    codes = {"token_ids": code.token_ids} if quantize else {"latents": code.latents}
    with counted(model) as passes:
        pixels = model.decode(**codes, num_tokens=code.num_tokens).pixel_values
    torch.testing.assert_close(pixels, code.reconstruction, rtol=0, atol=1e-5)
    assert sum(passes["decoder"]) == 8
    assert len(passes["decoder"]) == len(code.num_tokens.unique())
    assert passes["encoder"] == passes["base encoder"] == []
    if quantize:
        assert torch.equal(model.decode(code.token_ids).pixel_values, pixels)
        assert torch.equal(model.decode(latents=code.latents, num_tokens=code.num_tokens).pixel_values, pixels)


def test_padded_latents_need_their_lengths():
    model = tiny_model()
    code = model.encode(tiny_images(2), num_tokens=9)
    padded = torch.cat([code.latents, torch.zeros_like(code.latents[:, :3])], dim=1)
    with pytest.raises(ValueError, match="give `num_tokens`"):
        model.decode(latents=padded)
    expected = model.decode(latents=code.latents).pixel_values
    torch.testing.assert_close(model.decode(latents=padded, num_tokens=code.num_tokens).pixel_values, expected)


def test_latents_that_are_not_finite_are_refused():
    latents = torch.full((1, 3, 5), float("nan"))
    with pytest.raises(ValueError, match="`latents` has NaN"):
        tiny_model().decode(latents=latents)


def test_a_criterion_that_works_in_place_spoils_no_reconstruction():
    model, images = tiny_model(), tiny_images(2)

    def criterion(reconstruction: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        return reconstruction.zero_().flatten(1).mean(dim=1)

    code = model.encode(images, threshold=1.0, criterion=criterion, return_reconstruction=True)
    decoded = model.decode(token_ids=code.token_ids, num_tokens=code.num_tokens).pixel_values
    torch.testing.assert_close(code.reconstruction, decoded)


def test_what_is_behind_the_last_latent_is_ignored():
    model = tiny_model("kl", quantize=False)
    latents = model.encode(tiny_images()).latents
    lengths = torch.tensor([6, 12])
    expected = model.decode(latents=latents, num_tokens=lengths).pixel_values
    latents[0, 6:] = float("nan")
    assert torch.equal(model.decode(latents=latents, num_tokens=lengths).pixel_values, expected)


def test_latents_carry_gradient_to_a_picture():
    model = tiny_model(quantize=False)
    latents = torch.randn(2, 6, 5, requires_grad=True)
    model.decode(latents=latents).pixel_values.sum().backward()
    assert latents.grad.abs().sum() > 0


# Gradients (section 2: the second stage of training)


def test_gradient_reaches_the_base_codebook_through_the_picture():
    model = tiny_model("vqgan")
    model(tiny_images()).reconstruction.sum().backward()
    assert model.base_tokenizer.codebook.grad.abs().sum() > 0


@all_variants
def test_gradient_passes_the_quantizer_to_the_encoder_and_the_base(base, quantize):
    model = tiny_model(base, quantize)
    model(tiny_images(), num_tokens=6).reconstruction.sum().backward()
    for part in (model.latent_tokens.tokens, model.base_tokenizer.model.encoder.conv_in.weight):
        assert part.grad.abs().sum() > 0


def test_gradient_flows_through_every_rollout():
    model = tiny_model()
    total = sum(
        step.decoder_output.pow(2).mean() for step in model.rollouts(tiny_images(), return_reconstruction=False)
    )
    total.backward()
    used = model.latent_tokens.rollout_embeddings.grad.abs().sum((1, 2))
    assert (used > 0).all()


# Other sizes than the trained one


@all_variants
@pytest.mark.parametrize(("height", "width"), [(48, 32), (24, 40), (4, 64)])
def test_other_sizes_and_aspect_ratios(base, quantize, height, width):
    model = tiny_model(base, quantize)
    pixel_values = tiny_images(2, height, width)
    with pytest.raises(ValueError, match="interpolate_pos_encoding"):
        model.encode(pixel_values)
    code = model.encode(pixel_values, num_tokens=6, return_reconstruction=True, interpolate_pos_encoding=True)
    assert code.grid_size == (height // 4, width // 4)
    assert code.reconstruction.shape == pixel_values.shape
    decoded = model.decode(latents=code.latents, grid_size=code.grid_size).pixel_values
    assert torch.equal(decoded, code.reconstruction)
    adaptive = model.encode(pixel_values, threshold=0.0, interpolate_pos_encoding=True)
    assert adaptive.grid_size == code.grid_size
    output = model(pixel_values, interpolate_pos_encoding=True)
    assert output.last_hidden_state.shape == (2, 1 + height * width // 16 + 12, 32)
    for step in model.rollouts(pixel_values, interpolate_pos_encoding=True):
        assert step.reconstruction.shape == pixel_values.shape
        assert step.grid_size == code.grid_size


# Ids alone do not tell their grid


@all_variants
def test_a_whole_output_is_decoded_with_its_own_grid_and_lengths(base, quantize):
    model = tiny_model(base, quantize)
    for height, width in ((32, 32), (24, 40)):
        pixel_values = tiny_images(3, height, width)
        options = {"return_reconstruction": True, "interpolate_pos_encoding": True}
        fixed = model.encode(pixel_values, num_tokens=6, **options)
        mixed = model.encode(pixel_values, threshold=torch.tensor([1e9, 0.0, 1e9]), **options)
        assert mixed.num_tokens.tolist() == [3, 12, 3]
        rollout = next(model.rollouts(pixel_values, interpolate_pos_encoding=True))
        output = model(pixel_values, interpolate_pos_encoding=True)
        for code in (fixed, mixed, rollout, output):
            decoded = model.decode(code).pixel_values
            assert type(decoded) is torch.Tensor
            assert torch.equal(decoded, code.reconstruction)


def test_ids_that_were_changed_in_an_output_are_decoded_as_they_are():
    model = tiny_model()
    code = model.encode(tiny_images(1), num_tokens=3)
    code.token_ids = (code.token_ids + 1) % 64
    assert torch.equal(model.decode(code).pixel_values, model.decode(code.token_ids).pixel_values)


AS_PEOPLE_HANDLE_TENSORS = {
    "as they are": lambda codes: codes,
    "a row": lambda codes: codes[:1],
    "a copy": lambda codes: codes.clone().cpu().contiguous(),
    "rows put together": lambda codes: torch.stack([codes[1], codes[0]]),
    "behind others": lambda codes: torch.cat([torch.ones_like(codes).as_subclass(torch.Tensor), codes]),
    "another dtype": lambda codes: codes.to(torch.int32 if codes.dtype == torch.int64 else torch.float64),
    "unpickled": lambda codes: pickle.loads(pickle.dumps(codes)),
    "saved": lambda codes: saved_and_loaded(codes),
}


def saved_and_loaded(tensor: torch.Tensor) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("handle", AS_PEOPLE_HANDLE_TENSORS.values(), ids=AS_PEOPLE_HANDLE_TENSORS)
@pytest.mark.parametrize("name", ["token_ids", "latents"])
@pytest.mark.parametrize("height_width", [(24, 40), (64, 64)])
def test_codes_of_another_grid_are_not_decoded_without_it(height_width, name, handle):
    model = tiny_model()
    pixel_values = tiny_images(2, *height_width)
    rollout = next(model.rollouts(pixel_values, interpolate_pos_encoding=True))
    code = model.encode(pixel_values, num_tokens=3, interpolate_pos_encoding=True)
    for output in (code, rollout, model.encode(pixel_values, threshold=1e9, interpolate_pos_encoding=True)):
        codes = {name: handle(output[name])}
        with no_module_runs(), pytest.raises(ValueError, match=r"`grid_size` is None.*\(8, 8\).*whole output"):
            model.decode(**codes)
        decoded = model.decode(**codes, grid_size=output.grid_size).pixel_values
        assert type(decoded) is torch.Tensor
        assert decoded.shape[2:] == height_width


def test_a_model_of_wide_pictures_decodes_bare_ids_of_wide_pictures_only():
    model = tiny_model(image_size=[32, 48])
    wide = model.encode(tiny_images(1, 32, 48), num_tokens=3, return_reconstruction=True)
    assert type(wide.token_ids) is type(wide.latents) is torch.Tensor
    assert torch.equal(model.decode(wide.token_ids).pixel_values, wide.reconstruction)
    tall = model.encode(tiny_images(1, 48, 32), num_tokens=3, interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"`grid_size` is None.*\(8, 12\)"):
        model.decode(tall.token_ids)


@pytest.mark.parametrize("beside", [{"num_tokens": 6}, {"grid_size": (8, 8)}, {"latents": torch.rand(2, 6, 5)}])
def test_nothing_is_given_beside_a_whole_output(beside):
    model = tiny_model()
    code = model.encode(tiny_images(2), num_tokens=6)
    with no_module_runs(), pytest.raises(ValueError, match=f"`{next(iter(beside))}` is given beside a whole ALITEnc"):
        model.decode(code, **beside)


def test_an_output_without_base_latents_has_no_grid():
    model = tiny_model()
    code = model.encode(tiny_images(2), num_tokens=6)
    with no_module_runs(), pytest.raises(ValueError, match="has no `base_latents`, whose shape tells the grid"):
        model.decode(ALITEncoderOutput(token_ids=code.token_ids, num_tokens=code.num_tokens))


def test_positions_are_interpolated_as_in_vit():
    model = tiny_model()
    vit = ViTEmbeddings(ViTConfig(hidden_size=32, image_size=32, patch_size=4))
    vit.position_embeddings.data = model.embeddings.position_embeddings.data
    expected = vit.interpolate_pos_encoding(torch.zeros(1, 1 + 12 * 5, 32), height=48, width=20)
    torch.testing.assert_close(model.embeddings.positions((12, 5)), expected)


def test_the_trained_size_is_not_interpolated():
    model = tiny_model(image_size=[32, 48])
    pixel_values = tiny_images(2, 32, 48)
    code = model.encode(pixel_values, interpolate_pos_encoding=True)
    assert torch.equal(code.token_ids, model.encode(pixel_values).token_ids)
    assert torch.equal(model.embeddings.positions((8, 12)), model.embeddings.position_embeddings)
    turned = model.encode(pixel_values.transpose(2, 3), interpolate_pos_encoding=True)
    assert turned.grid_size == (12, 8)


@pytest.mark.parametrize("image_size", [64, (48, 20), [24, 32]])
@all_variants
def test_a_model_of_another_size_computes_what_interpolation_in_every_call_does(base, quantize, image_size, tmp_path):
    model = tiny_model(base, quantize, halting_threshold=0.3)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    pixel_values = tiny_images(2, height, width)

    def encode(model, **kwargs):
        generator = torch.Generator().manual_seed(0)
        code = model.encode(pixel_values, generator=generator, **kwargs)
        return code.latents.as_subclass(torch.Tensor), model.decode(code).pixel_values

    expected = encode(model, interpolate_pos_encoding=True)
    model.set_image_size(image_size)
    assert model.config.image_height_width == (height, width)
    assert all(torch.equal(one, two) for one, two in zip(encode(model), expected, strict=True))
    model.save_pretrained(tmp_path)
    loaded = ALITModel.from_pretrained(tmp_path).eval()
    assert all(torch.equal(one, two) for one, two in zip(encode(loaded), expected, strict=True))


def test_a_model_of_another_size_trains_its_tables_and_keeps_what_is_frozen():
    model = tiny_model()
    model.decoder.position_embeddings.requires_grad_(False)
    model.set_image_size([24, 40])
    with torch.enable_grad():
        model(tiny_images(2, 24, 40)).reconstruction.sum().backward()
    assert model.embeddings.position_embeddings.grad.shape == (1, 1 + 60, 32)
    assert model.decoder.position_embeddings.grad is None


def test_the_length_predictor_goes_with_the_size_that_it_was_calibrated_for():
    model = tiny_model()
    model.set_length_criterion("l1")
    model.config.length_shortfalls = [0.0] * 9
    weights = model.state_dict()
    model.set_image_size([32, 32])  # the same
    assert all(model.state_dict()[name].data_ptr() == weight.data_ptr() for name, weight in weights.items())
    assert model.config.length_shortfalls == [0.0] * 9
    model.set_image_size(24)
    assert model.length_predictor is model.config.length_criterion is model.config.length_shortfalls is None


@pytest.mark.parametrize("image_size", [30, [32, 30], [32], "32", 0, True, 4 * 10**6, None])
def test_a_size_that_cannot_be_leaves_the_model_as_it_is(image_size):
    model = tiny_model()
    before = model.config.to_dict()
    with pytest.raises(ValueError, match="image_size"):
        model.set_image_size(image_size)
    assert model.config.to_dict() == before
    model.encode(tiny_images(1), num_tokens=3)


# Errors, before any work


WITH_NAN = tiny_images(2)
WITH_NAN[1, 0, 5, 5] = float("nan")
WITH_INFINITY = tiny_images(2)
WITH_INFINITY[0, 2, 0, 0] = float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": tiny_images(2, 32, 36)}, r"\(2, 3, 32, 36\).*\(32, 32\)"),
        ({"pixel_values": tiny_images(2, 30, 32), "interpolate_pos_encoding": True}, "multiple of 4"),
        ({"pixel_values": torch.rand(2, 3, 0, 32), "interpolate_pos_encoding": True}, "multiple of 4"),
        ({"pixel_values": torch.rand(2, 1, 32, 32)}, r"\(batch, 3, height, width\)"),
        ({"pixel_values": torch.rand(3, 32, 32)}, r"\(batch, 3, height, width\)"),
        ({"pixel_values": torch.rand(0, 3, 32, 32)}, r"\(0, 3, 32, 32\)"),
        ({"pixel_values": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, "uint8.*floating point"),
        ({"pixel_values": tiny_images(2).numpy()}, "ndarray.*floating point tensor"),
        ({"num_tokens": 0}, "0.*multiple of 3 between 3 and 12"),
        ({"num_tokens": -3}, "multiple of 3 between 3 and 12"),
        ({"num_tokens": 4}, "4.*multiple of 3 between 3 and 12"),
        ({"num_tokens": 15}, "15.*multiple of 3 between 3 and 12"),
        ({"num_tokens": 6.0}, "6.0.*integer"),
        ({"num_tokens": True}, "True.*integer"),
        ({"pixel_values": WITH_NAN}, "`pixel_values` has NaN"),
        ({"pixel_values": WITH_INFINITY}, "`pixel_values` has NaN or infinite"),
        ({"pixel_values": tiny_images(2) * 255}, r"`pixel_values` has values from .* to 2\d\d.*\[0, 1\].*Processor"),
        ({"pixel_values": tiny_images(2) * 2 - 1, "num_tokens": 6}, r"`pixel_values` has values from -0\.9.* to 1,"),
        ({"pixel_values": (tiny_images(2) - 0.45) / 0.22}, r"`pixel_values` has values from -2"),
        ({"pixel_values": (tiny_images(2) * 255).bfloat16()}, r"`pixel_values` has values from"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "rollouts", "forward"])
def test_wrong_pictures_and_lengths_are_refused_before_any_work(method, arguments, message):
    model = tiny_model()
    with no_module_runs(), pytest.raises(ValueError, match=message) as error:
        getattr(model, method)(**{"pixel_values": tiny_images(2), **arguments})
    name = "pixel_values" if "pixel_values" in arguments else "num_tokens"
    assert f"`{name}`" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 6, "threshold": 0.1}, "`num_tokens` is 6 and `threshold` is 0.1"),
        ({"threshold": float("nan")}, "`threshold`.*nan.*NaN"),
        ({"threshold": torch.tensor([0.1, float("nan")])}, "`threshold`.*NaN"),
        ({"threshold": torch.tensor([0.1, 0.1, 0.1])}, r"`threshold` has shape \(3,\).*\(2,\)"),
        ({"threshold": torch.tensor([[0.1], [0.1]])}, r"`threshold` has shape \(2, 1\)"),
        ({"threshold": "low"}, "`threshold` is 'low'"),
        ({"threshold": [0.1, None]}, "`threshold`"),
        ({"threshold": 0.1, "criterion": "fid"}, "`criterion` is 'fid'.*'l1'"),
        ({"threshold": 0.1, "criterion": 1}, "`criterion` is 1"),
        (
            {"threshold": -25, "criterion": "psnr"},
            "`threshold` is -25 dB, for this criterion it must be at least 0 dB",
        ),
        ({"threshold": torch.tensor([25, -1e-3]), "criterion": "psnr"}, "`threshold` is -0.001 dB"),
        ({"threshold": float("nan"), "criterion": "psnr"}, "`threshold`.*nan.*NaN"),
        ({"num_tokens": 6, "criterion": "fid"}, "`criterion` is 'fid'"),
    ],
)
def test_wrong_arguments_of_encode_are_refused_before_any_work(arguments, message):
    model = tiny_model()
    with no_module_runs(), pytest.raises(ValueError, match=message):
        model.encode(**{"pixel_values": tiny_images(2), **arguments})


@pytest.mark.parametrize("method", ["encode", "rollouts", "forward"])
def test_pixels_a_little_outside_are_taken_as_resizing_gives_them(method):
    # The corners of a chequerboard are the hardest case.
    board = ((torch.arange(16)[:, None] // 4 + torch.arange(16) // 4) % 2).float().expand(1, 3, 16, 16)
    images = F.interpolate(board, size=(32, 32), mode="bicubic")
    assert images.min() < -0.15
    assert images.max() > 1.15
    getattr(tiny_model(), method)(images, num_tokens=3)


@pytest.mark.parametrize("method", ["rollouts", "forward"])
@pytest.mark.parametrize("wrong", [lambda pixels: pixels * 255, lambda pixels: pixels * float("nan")])
def test_training_refuses_wrong_pixels_in_any_step(method, wrong):
    run = getattr(tiny_model().train(), method)
    run(tiny_images(2), num_tokens=3)
    with no_module_runs(), pytest.raises(ValueError, match=r"`pixel_values` must be finite and in \[0, 1\]"):
        run(wrong(tiny_images(2)), num_tokens=3)


def test_a_criterion_without_one_score_an_image_is_refused():
    model = tiny_model()
    with counted(model) as passes, pytest.raises(ValueError, match=r"one score an image, shape \(2,\)"):
        model.encode(tiny_images(2), threshold=0.0, criterion=lambda reconstruction, original: original.mean())
    assert passes["encoder"] == [2]


IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither"),
        ({"token_ids": IDS, "latents": torch.rand(2, 6, 5)}, "both"),
        ({"token_ids": IDS + 60}, r"60 to 71.*\[0, 64\)"),
        ({"token_ids": IDS - 2}, "-1 before an id"),
        ({"token_ids": torch.where(IDS == 3, 64, IDS)}, r"0 to 64.*\[0, 64\)"),
        ({"token_ids": torch.where(IDS == 3, -2, IDS)}, r"-2 to.*\[0, 64\)"),
        ({"token_ids": torch.where(IDS == 3, -1, IDS)}, "-1 before an id"),
        ({"token_ids": torch.tensor([[1, -1, 2, 3, -1, -1]]), "num_tokens": 3}, "-1 before an id"),
        ({"token_ids": torch.full((2, 6), -1)}, "multiple of 3 between 3 and 6"),
        ({"token_ids": IDS[:, :5]}, r"\[5, 5\].*multiple of 3"),
        ({"token_ids": IDS[:, :0]}, "multiple of 3"),
        ({"token_ids": IDS[:0]}, "at least one image"),
        ({"token_ids": IDS[0]}, r"\(6,\).*\(batch, tokens\)"),
        ({"token_ids": IDS.float()}, "float32.*integer tensor"),
        ({"token_ids": IDS > 3}, "bool.*integer tensor"),
        ({"token_ids": IDS.tolist()}, "integer tensor"),
        ({"token_ids": torch.zeros(1, 15, dtype=torch.int64)}, "between 3 and 12"),
        ({"token_ids": IDS, "num_tokens": 3}, "not a prefix"),
        ({"token_ids": IDS, "num_tokens": torch.tensor([6, 3])}, "not a prefix"),
        ({"token_ids": IDS, "num_tokens": 9}, "between 3 and 6"),
        ({"token_ids": IDS, "num_tokens": torch.tensor([6, 6, 6])}, r"shape \(2,\)"),
        ({"token_ids": IDS, "num_tokens": 6.0}, "integer"),
        ({"token_ids": IDS, "num_tokens": "6"}, "integer"),
        ({"token_ids": IDS, "grid_size": (8,)}, "rows, columns"),
        ({"token_ids": IDS, "grid_size": (8, 0)}, "rows, columns"),
        ({"token_ids": IDS, "grid_size": (8, 2.5)}, "rows, columns"),
        ({"token_ids": IDS, "grid_size": 8}, "rows, columns"),
        ({"latents": torch.rand(2, 6, 4)}, r"\(2, 6, 4\).*\(batch, tokens, 5\)"),
        ({"latents": torch.rand(6, 5)}, r"\(6, 5\).*\(batch, tokens, 5\)"),
        ({"latents": torch.rand(2, 5, 5)}, "multiple of 3"),
        ({"latents": torch.rand(2, 15, 5)}, "between 3 and 12"),
        ({"latents": torch.rand(0, 6, 5)}, "at least one image"),
        ({"latents": torch.zeros(2, 6, 5, dtype=torch.int64)}, "int64.*floating point"),
        ({"latents": torch.rand(2, 6, 5), "num_tokens": torch.tensor([6, 4])}, "multiple of 3"),
    ],
)
def test_wrong_codes_are_refused_before_any_work(arguments, message):
    model = tiny_model()
    with no_module_runs(), pytest.raises(ValueError, match=message):
        model.decode(**arguments)


def test_lengths_in_the_place_of_latents_are_refused_as_such():
    with no_module_runs(), pytest.raises(TypeError, match="positional arguments"):
        tiny_model().decode(IDS, torch.tensor([6, 6]))


@pytest.mark.parametrize("ids", [[list(range(200))] * 50, torch.zeros(50, 200)])
def test_messages_do_not_hold_all_ids(ids):
    for arguments in ({"token_ids": ids}, {"token_ids": IDS, "num_tokens": ids}):
        with pytest.raises(ValueError, match=r"integer tensor of shape") as error:
            tiny_model().decode(**arguments)
        assert len(str(error.value)) < 250


def test_a_continuous_model_decodes_no_ids():
    with no_module_runs(), pytest.raises(ValueError, match=r"continuous.*latents"):
        tiny_model(quantize=False).decode(token_ids=IDS)
