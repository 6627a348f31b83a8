"""Dynamic halting: grid positions that are already explained are masked between rollouts (paper section 2)."""

import pytest
import torch
from tiny_config import tiny_images, tiny_model

from alit_hf import ALITModel


VQ_THRESHOLD, KL_THRESHOLD = 0.55, 0.6
both_bases = pytest.mark.parametrize("base", ["vqgan", "kl"])


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def halting_model(base: str, **fields) -> ALITModel:
    """A model that finds some positions explained and others not."""
    model = tiny_model(base, **{"halting_threshold": VQ_THRESHOLD if base == "vqgan" else KL_THRESHOLD, **fields})
    if base == "vqgan":
        codes = model.base_tokenizer.codes(model.base_tokenizer.encode(tiny_images(8)))
        # As likely as they are frequent.
        model.decoder.head.fc2.bias.copy_(torch.bincount(codes.flatten(), minlength=24).add(1).log())
    return model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halted_positions(model: ALITModel, pixel_values: torch.Tensor, **arguments) -> list[tuple]:
    """After each rollout but the last: which grid positions were masked `(B, N)`, and what the rollout gave.

    Checks on the way that a masked position is mask token plus position and that nothing else changes.
    """
    inputs = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    steps = list(model.rollouts(pixel_values, **arguments))
    handle.remove()
    assert len(inputs) == len(steps) == 4
    mask = model.embeddings.mask_token + model.embeddings.position_embeddings[:, 1:]
    found = []
    for step, given in zip(steps[:-1], inputs[1:], strict=True):
        before = step.last_hidden_state
        masked = (given != before).any(-1)
        assert not masked[:, 0].any(), "the class token was masked"
        assert not masked[:, 65:].any(), "a latent token was masked"
        masked = masked[:, 1:65]
        torch.testing.assert_close(given[:, 1:65][masked], mask.expand(len(given), -1, -1)[masked])
        found.append((masked, step))
    return found


def probability_of_true_code(model: ALITModel, pixel_values: torch.Tensor, step) -> torch.Tensor:
    codes = model.base_tokenizer.codes(model.base_tokenizer.encode(pixel_values))
    return step.decoder_output.softmax(-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)


@both_bases
def test_halting_is_off_unless_the_config_asks_for_it(base):
    model = halting_model(base, halting_threshold=None)
    assert not any(masked.any() for masked, _ in halted_positions(model, tiny_images(2)))
    state = torch.get_rng_state()
    model.encode(tiny_images(2))
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn without halting"


def test_vqgan_positions_are_masked_with_their_probability_where_it_reaches_the_threshold():
    model = halting_model("vqgan")
    pixel_values = tiny_images(8)
    expected = eligible = count = 0
    for masked, step in halted_positions(model, pixel_values):
        probability = probability_of_true_code(model, pixel_values, step)
        reached = probability >= VQ_THRESHOLD
        assert 0 < reached.float().mean() < 1
        assert not masked[~reached].any()
        assert 0 < masked[reached].float().mean() < 1
        expected += probability[reached].sum().item()
        eligible += int(reached.sum())
        count += int(masked.sum())
    # Within four standard deviations of a binomial distribution.
    assert abs(count - expected) < 4 * (eligible * 0.25) ** 0.5
    assert expected < 0.9 * eligible, "this model cannot tell masking always from masking with a probability"


def test_kl_positions_are_masked_where_the_latent_error_is_below_the_threshold():
    model = halting_model("kl")
    pixel_values = tiny_images(4)
    latents = model.base_tokenizer.encode(pixel_values).flatten(2).transpose(1, 2)
    for masked, step in halted_positions(model, pixel_values):
        below = (step.decoder_output - latents).abs().mean(-1) < KL_THRESHOLD
        assert 0 < below.float().mean() < 1
        assert torch.equal(masked, below)


@both_bases
def test_masking_changes_the_code_of_later_rollouts_only(base):
    pixel_values = tiny_images(4)
    plain = list(halting_model(base, halting_threshold=None).rollouts(pixel_values))
    halting = list(halting_model(base).rollouts(pixel_values, generator=generator()))
    assert torch.equal(halting[0].latents, plain[0].latents)
    for step, other in zip(halting[1:], plain[1:], strict=True):
        assert not torch.equal(step.last_hidden_state, other.last_hidden_state)


@both_bases
def test_nothing_is_masked_after_the_last_rollout(base):
    model = halting_model(base)
    outputs = []
    model.encoder.register_forward_hook(lambda _, args, output: outputs.append(output))
    *_, last = model.rollouts(tiny_images(2), generator=generator())
    assert torch.equal(last.last_hidden_state, outputs[-1])
    output = model(tiny_images(2), generator=generator())
    assert torch.equal(output.last_hidden_state, outputs[-1])
    assert torch.equal(output.last_hidden_state, last.last_hidden_state)


def test_a_generator_decides_what_is_masked():
    model = halting_model("vqgan")
    pixel_values = tiny_images(4)
    code = model.encode(pixel_values, generator=generator(1))
    torch.manual_seed(99)
    same = model.encode(pixel_values, generator=generator(1))
    assert torch.equal(code.token_ids, same.token_ids)
    other = model.encode(pixel_values, generator=generator(2))
    assert not torch.equal(code.latents, other.latents)
    *_, last = model.rollouts(pixel_values, generator=generator(1))
    assert torch.equal(last.token_ids, code.token_ids)
    assert torch.equal(model(pixel_values, generator=generator(1)).token_ids, code.token_ids)


def test_without_a_generator_each_image_has_its_own_draws():
    model = halting_model("vqgan")
    twins = tiny_images(1).expand(2, -1, -1, -1)
    masks = torch.cat([masked for masked, _ in halted_positions(model, twins)], dim=1)
    assert not torch.equal(masks[0], masks[1])
    masks = torch.cat([masked for masked, _ in halted_positions(model, twins, generator=generator())], dim=1)
    assert torch.equal(masks[0], masks[1])


@both_bases
def test_what_is_masked_does_not_depend_on_batch_mates_or_their_exits(base):
    model = halting_model(base)
    pixel_values = tiny_images(6)
    scores = torch.stack(
        [
            (step.reconstruction - pixel_values).abs().mean((1, 2, 3))
            for step in model.rollouts(pixel_values, generator=generator(3))
        ]
    )
    # Satisfied by half of an image's scores, at once, or never; away from all scores by more than rounding.
    thresholds = torch.stack([scores.sort(0).values[1:3].mean(0), scores.max(0).values + 1, scores.min(0).values - 1])
    thresholds = thresholds[[1, 0, 2, 0, 1, 0], range(6)]
    batch = model.encode(pixel_values, threshold=thresholds, generator=generator(3))
    assert len(batch.num_tokens.unique()) >= 3
    for row, (image, threshold) in enumerate(zip(pixel_values.split(1), thresholds, strict=True)):
        alone = model.encode(image, threshold=threshold, generator=generator(3))
        assert batch.num_tokens[row] == alone.num_tokens[0]
        assert torch.equal(batch.token_ids[row : row + 1, : alone.num_tokens[0]], alone.token_ids)


@both_bases
def test_rollouts_take_a_threshold_of_their_own_for_training(base):
    model = halting_model(base, halting_threshold=None)
    threshold = VQ_THRESHOLD if base == "vqgan" else KL_THRESHOLD
    found = halted_positions(model, tiny_images(2), halting_threshold=threshold)
    assert all(masked.any() for masked, _ in found)
    assert model.config.halting_threshold is None
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`halting_threshold`.*above 0"):
            model.rollouts(tiny_images(2), halting_threshold=wrong)


@both_bases
def test_other_sizes_are_halted_too(base):
    model = halting_model(base)
    steps = list(model.rollouts(tiny_images(2, 40, 24), interpolate_pos_encoding=True, generator=generator()))
    assert steps[-1].last_hidden_state.shape == (2, 1 + 10 * 6 + 12, 32)


def test_gradient_passes_the_mask():
    model = halting_model("vqgan")
    with torch.enable_grad():
        *_, last = model.rollouts(tiny_images(2), generator=generator())
        last.reconstruction.sum().backward()
    assert model.embeddings.mask_token.grad.abs().sum() > 0
    assert model.encoder.layers[0].mlp.fc1.weight.grad.isfinite().all()
