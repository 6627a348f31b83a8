import copy

import pytest
import torch
from torch import nn

from alit_hf.losses.adversarial import (
    LeCamRegularizer,
    PatchDiscriminator,
    adaptive_weight,
    adversarial_starts,
    discriminator_loss,
    frozen,
    generator_loss,
    r1_penalty,
)


def small_discriminator(num_rollouts=3):
    return PatchDiscriminator(num_rollouts, hidden_size=16, num_layers=2)


def with_own_scales(discriminator):
    """A discriminator as after some training: no two rollouts alike."""
    with torch.no_grad():
        for norm in discriminator.norms:
            norm.scale.weight.normal_(1, 0.5)
            norm.shift.weight.normal_(0, 0.5)
    return discriminator


class Decoder(nn.Module):
    """Stands for the generator: one layer that makes pixels."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        return self.last(x)


# --- the discriminator ---


def test_one_logit_a_patch():
    assert PatchDiscriminator(8, hidden_size=16)(torch.rand(2, 3, 256, 256), 0).shape == (2, 30, 30)


def test_a_logit_sees_70_pixels():
    """Without its normalisations, which see the whole image."""
    discriminator = PatchDiscriminator(1, hidden_size=16)
    discriminator.norms = nn.ModuleList(PassOn() for _ in discriminator.norms)
    pixels = torch.rand(1, 3, 256, 256, requires_grad=True)
    discriminator(pixels, 0)[0, 15, 15].backward()
    rows = pixels.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


class PassOn(nn.Module):
    def forward(self, hidden_states, rollout):
        return hidden_states


def test_conditioned_on_the_rollout_of_each_image():
    discriminator = with_own_scales(small_discriminator())
    pixels = torch.rand(1, 3, 32, 32).expand(3, -1, -1, -1)
    mixed = discriminator(pixels, torch.tensor([2, 0, 2]))
    torch.testing.assert_close(mixed[0], mixed[2])
    assert (mixed[0] - mixed[1]).abs().max() > 1e-3
    torch.testing.assert_close(mixed[1], discriminator(pixels, 0)[1])


def test_an_image_does_not_depend_on_its_batch():
    discriminator = with_own_scales(small_discriminator())
    pixels = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(discriminator(pixels, 1)[2:3], discriminator(pixels[2:3], 1))


def test_only_the_rollout_at_hand_learns():
    discriminator = small_discriminator()
    discriminator(torch.rand(2, 3, 32, 32), 1).sum().backward()
    for norm in discriminator.norms:
        touched = norm.scale.weight.grad.abs().sum(dim=1) > 0
        assert touched.tolist() == [False, True, False]


def test_every_parameter_gets_a_gradient_and_none_is_a_buffer():
    discriminator = small_discriminator()
    discriminator(torch.rand(2, 3, 32, 32), 1).sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert list(discriminator.buffers()) == []


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_smallest_size_that_is_promised_works_and_the_next_is_refused(num_layers):
    discriminator = PatchDiscriminator(1, hidden_size=16, num_layers=num_layers)
    size = 3 * 2**num_layers
    assert discriminator(torch.rand(1, 3, size, size), 0).shape == (1, 1, 1)
    with pytest.raises(ValueError, match=f"at least {size}"):
        discriminator(torch.rand(1, 3, size, size - 1), 0)


@pytest.mark.parametrize(
    ("pixels", "rollout", "message"),
    [
        (torch.zeros(2, 3, 32, 32), 3, r"`rollout` is 3.*\[0, 3\)"),
        (torch.zeros(2, 3, 32, 32), -1, "`rollout` is -1"),
        (torch.zeros(2, 3, 32, 32), torch.tensor([0]), r"`rollout` has shape \(1,\).*\(2,\)"),
        (torch.zeros(2, 1, 32, 32), 0, r"\(2, 1, 32, 32\)"),
    ],
)
def test_wrong_inputs_are_named(pixels, rollout, message):
    with pytest.raises(ValueError, match=message):
        small_discriminator()(pixels, rollout)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"num_rollouts": 0}, "num_rollouts"), ({"hidden_size": 24}, "hidden_size"), ({"num_layers": 0}, "num_layers")],
)
def test_impossible_sizes(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` is {arguments[name]}"):
        PatchDiscriminator(**{"num_rollouts": 1, **arguments})


# --- losses ---


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-3.0, 0.0], [0.5, -1.0]])
    # max(0, 1 - real): 0, 0.5, 2, 0; max(0, 1 + fake): 0, 1, 1.5, 0
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 4 + 2.5 / 4))
    assert discriminator_loss(torch.full((4,), 1.0), torch.full((4,), -1.0)) == 0
    assert generator_loss(fake).item() == pytest.approx(3.5 / 4)


def test_losses_are_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = small_discriminator()(torch.rand(1, 3, 32, 32), 0)
        assert logits.dtype == torch.bfloat16
        assert discriminator_loss(logits, logits).dtype == generator_loss(logits).dtype == torch.float32


def test_a_generator_step_leaves_the_discriminator_as_it_is_even_if_the_optimiser_holds_it():
    discriminator, decoder = small_discriminator(), Decoder()
    discriminator.head.bias.requires_grad_(False)
    before = copy.deepcopy(discriminator.state_dict())
    optimizer = torch.optim.AdamW([*decoder.parameters(), *discriminator.parameters()], lr=0.1)
    features = torch.rand(2, 4, 32, 32)
    for _ in range(2):
        with frozen(discriminator):
            loss = generator_loss(discriminator(decoder(features), 1))
        loss.backward()
        optimizer.step()
    assert decoder.last.weight.grad.abs().sum() > 0
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
        # Those that were frozen before stay so; the others learn again.
        assert parameter.requires_grad == (name != "head.bias")


def test_frozen_ends_with_an_error_inside():
    discriminator = small_discriminator()
    with pytest.raises(RuntimeError), frozen(discriminator):
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


def test_start_step():
    assert [adversarial_starts(step, 2) for step in range(4)] == [False, False, True, True]
    assert adversarial_starts(0, 0)


# --- adaptive weight ---


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = (weight * torch.tensor([3.0, 4.0])).sum(), (weight * torch.tensor([0.0, 2.0])).sum()
    ratio = adaptive_weight(reconstruction, adversarial, weight)
    assert ratio.item() == pytest.approx(5 / (2 + 1e-4))
    assert not ratio.requires_grad
    assert weight.grad is None
    (reconstruction + ratio * adversarial).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([3.0, 4.0 + 2 * ratio.item()]))


def test_adaptive_weight_balances_the_gradients_at_the_last_layer():
    decoder, discriminator = Decoder(), with_own_scales(small_discriminator())
    reconstruction = decoder(torch.rand(2, 4, 32, 32))
    loss = (reconstruction - torch.rand(2, 3, 32, 32)).abs().mean()
    with frozen(discriminator):
        adversarial = 1e3 * generator_loss(discriminator(reconstruction, 0))
    last = decoder.last.weight
    weighted = adaptive_weight(loss, adversarial, last) * adversarial
    norms = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (loss, weighted)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-2, atol=0)
    # At the pictures, for runs with sharded parameters.
    weighted = adaptive_weight(loss, adversarial, reconstruction) * adversarial
    norms = [torch.autograd.grad(value, reconstruction, retain_graph=True)[0].norm() for value in (loss, weighted)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("reconstruction", "adversarial", "expected"), [(3.0, 0.0, 0.0), (0.0, 2.0, 0.0), (1e9, 1.0, 1e4), (0.0, 0.0, 0.0)]
)
def test_adaptive_weight_stays_finite(reconstruction, adversarial, expected):
    weight = torch.ones(2, requires_grad=True)
    losses = [factor * weight.sum() for factor in (reconstruction, adversarial)]
    assert adaptive_weight(*losses, weight) == expected
    assert adaptive_weight(losses[0], losses[1], weight, maximum=0.5) == min(expected, 0.5)


# --- regularisers ---


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    """D(x) = mean over patches of <w, x at the patch>: ∇ D is w / patches everywhere."""
    discriminator = nn.Conv2d(3, 1, 1, bias=True)
    pixels = torch.rand(5, 3, 4, 4, requires_grad=True)
    penalty = r1_penalty(discriminator(pixels).squeeze(1), pixels)
    w = discriminator.weight.detach().flatten()
    torch.testing.assert_close(penalty, w.square().sum() * 16 / 16**2)
    penalty.backward()
    torch.testing.assert_close(discriminator.weight.grad.flatten(), 2 * w / 16)
    assert pixels.grad is None


def test_r1_is_a_mean_over_images():
    """D(x) = (mean x)² / 2 with gradient mean x / number of pixels."""
    pixels = torch.stack([torch.full((3, 2, 2), value) for value in (1.0, 3.0)]).requires_grad_()
    penalty = r1_penalty(pixels.mean(dim=(1, 2, 3)).square().view(2, 1, 1) / 2, pixels)
    assert penalty.item() == pytest.approx((1 / 12 + 9 / 12) / 2)


def test_r1_goes_through_the_patch_discriminator():
    discriminator = small_discriminator()
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    r1_penalty(discriminator(pixels, 0), pixels).backward()
    assert discriminator.first.weight.grad.abs().sum() > 0
    assert discriminator.norms[0].scale.weight.grad.abs().sum() > 0


def test_r1_needs_a_gradient_at_the_pixels():
    pixels = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"`real_pixels`.*requires_grad_"):
        r1_penalty(small_discriminator()(pixels, 0), pixels)


def test_lecam_by_hand():
    lecam = LeCamRegularizer(decay=0.9)
    # First the averages are the means: real 2, fake -1.
    value = lecam(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -1.0]))
    assert value.item() == pytest.approx((2**2 + 4**2) / 2 + 3**2)
    # Then real 0.9 * 2 + 0.1 * 4 = 2.2 and fake 0.9 * -1 + 0.1 * 1 = -0.8.
    value = lecam(torch.tensor([4.0]), torch.tensor([1.0]))
    assert value.item() == pytest.approx(4.8**2 + 1.2**2, rel=1e-5)
    torch.testing.assert_close(lecam.average_real, torch.tensor(2.2))
    torch.testing.assert_close(lecam.average_fake, torch.tensor(-0.8))


def test_lecam_pulls_the_logits_towards_the_other_side_and_keeps_no_graph():
    lecam = LeCamRegularizer()
    real, fake = torch.full((4,), 2.0, requires_grad=True), torch.full((4,), -2.0, requires_grad=True)
    losses = [lecam(real, fake) for _ in range(2)]
    sum(losses).backward()
    assert (real.grad > 0).all()
    assert (fake.grad < 0).all()
    assert not lecam.average_real.requires_grad


def test_lecam_goes_on_from_its_state():
    first = LeCamRegularizer(0.5)
    first(torch.tensor([1.0]), torch.tensor([-1.0]))
    resumed = LeCamRegularizer(0.5)
    resumed.load_state_dict(first.state_dict())
    logits = torch.tensor([3.0]), torch.tensor([2.0])
    assert torch.equal(first(*logits), resumed(*logits))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_impossible_decay(decay):
    with pytest.raises(ValueError, match=f"`decay` is {decay}"):
        LeCamRegularizer(decay)


def test_a_step_does_not_wait_for_the_device():
    """Tensors of the meta device have no values: whoever reads one fails."""
    with torch.device("meta"):
        discriminator, decoder, lecam = small_discriminator(), Decoder(), LeCamRegularizer()
        features, original = torch.empty(2, 4, 32, 32), torch.empty(2, 3, 32, 32).requires_grad_()
    reconstruction = decoder(features)
    with frozen(discriminator):
        adversarial = generator_loss(discriminator(reconstruction, 1))
    assert adaptive_weight((reconstruction - original).abs().mean(), adversarial, decoder.last.weight).is_meta
    real, fake = (
        discriminator(original, 1),
        discriminator(reconstruction.detach(), torch.zeros(2, device="meta").long()),
    )
    loss = discriminator_loss(real, fake) + lecam(real, fake) + r1_penalty(real, original)
    loss.backward()
    assert discriminator.first.weight.grad.is_meta
