"""
The adversarial part of the pixel stages: one patch discriminator for all rollouts, and the losses around it.

One training step, once `adversarial_starts(step, start_step)`:

```python
with frozen(discriminator):  # the generator's step: no gradient for the discriminator
    adversarial = generator_loss(discriminator(reconstruction, rollout))
weight = adaptive_weight(reconstruction_loss, adversarial, last_layer)
(reconstruction_loss + weight * adversarial).backward()

# The discriminator's step, with an optimiser of its own; one pass for both, as DDP requires.
logits = discriminator(torch.cat([pixel_values, reconstruction.detach()]), rollout)
discriminator_loss(*logits.chunk(2)).backward()
```
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class RolloutGroupNorm(nn.Module):
    """
    Group normalisation with a scale and a shift for each rollout: `(B, C, h, w)` and `(B,)` to `(B, C, h, w)`.

    No batch statistics, so that an image's logits depend on neither the batch nor its split over ranks.
    """

    def __init__(self, num_channels: int, num_rollouts: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, num_channels, affine=False)
        self.scale = nn.Embedding(num_rollouts, num_channels)
        self.shift = nn.Embedding(num_rollouts, num_channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, hidden_states: torch.Tensor, rollout: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale(rollout)[..., None, None], self.shift(rollout)[..., None, None]
        return torch.addcmul(shift, self.norm(hidden_states), scale)


class PatchDiscriminator(nn.Module):
    """
    Tells original patches from reconstructed ones, conditioned on the rollout.

    The patch discriminator of pix2pix (Isola et al., 2017), shared by all rollouts except for the scale and shift of
    its normalisations.

    Args:
        num_rollouts (`int`): rollouts that it is conditioned on; 1 makes it an ordinary discriminator.
        hidden_size (`int`): channels of the first layer, a multiple of 16; they double to at most 8 times as many.
        num_layers (`int`): layers that halve the resolution; with 3, a patch is 70 × 70 pixels.

    Raises:
        `ValueError`: for sizes that cannot be built.
    """

    def __init__(self, num_rollouts: int, hidden_size: int = 64, num_layers: int = 3):
        super().__init__()
        for name, value in (("num_rollouts", num_rollouts), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}, it must be at least 1.")
        if hidden_size < 16 or hidden_size % 16:
            raise ValueError(f"`hidden_size` is {hidden_size}, it must be a positive multiple of 16.")
        self.num_rollouts = num_rollouts
        self.min_size = 3 * 2**num_layers
        widths = [hidden_size * min(2**layer, 8) for layer in range(num_layers + 1)]
        self.first = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)
        strides = [2] * (num_layers - 1) + [1]
        self.convs = nn.ModuleList(
            # The normalisation after them has the bias.
            nn.Conv2d(width_in, width_out, 4, stride=stride, padding=1, bias=False)
            for width_in, width_out, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.norms = nn.ModuleList(RolloutGroupNorm(width, num_rollouts) for width in widths[1:])
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, pixel_values: torch.Tensor, rollout: int | torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Pixels nominally in [0, 1], H and W at least `3 * 2**num_layers`.
            rollout (`int` or `torch.LongTensor` of shape `(B,)`):
                Index, counted from 0, of the rollout that made the pictures or, for originals, of the one they are
                compared with.

        Returns:
            logits `(B, h, w)`, one per patch, high for originals.

        Raises:
            `ValueError`: for pixels of another shape or an `int` that is not a rollout. The values of a tensor are not
                checked, as that would make the host wait for the device.
        """
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < self.min_size:
            raise ValueError(
                f"`pixel_values` has shape {shape}, it must be (batch, 3, height, width) with sides of at least "
                f"{self.min_size}."
            )
        if not isinstance(rollout, torch.Tensor):
            if not 0 <= rollout < self.num_rollouts:
                raise ValueError(f"`rollout` is {rollout}, it must be in [0, {self.num_rollouts}).")
            rollout = torch.full(shape[:1], rollout, device=pixel_values.device)
        elif rollout.shape != shape[:1]:
            raise ValueError(f"`rollout` has shape {tuple(rollout.shape)}, it must be ({shape[0]},), one an image.")
        hidden_states = F.leaky_relu(self.first(pixel_values * 2 - 1), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden_states = F.leaky_relu(norm(conv(hidden_states), rollout), 0.2)
        return self.head(hidden_states).squeeze(1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """
    Context in which no gradient reaches the module's parameters, only its inputs.

    For the generator's pass through the discriminator: without it, an optimiser that holds the discriminator would
    train it to be fooled, and its gradients would add to its own next step. Pass the module itself, not its DDP
    wrapper, which would wait for the missing gradients.
    """
    required = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


def adversarial_starts(step: int, start_step: int) -> bool:
    """Whether the adversarial loss is part of this step (counted from 0): the reconstruction must settle first."""
    return step >= start_step


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator, a float32 scalar: 0 if originals are above 1, reconstructions below -1."""
    return 0.5 * (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean())


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the generator, a float32 scalar: minus the mean logit of reconstructions."""
    return -fake_logits.float().mean()


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: torch.Tensor, maximum: float = 1e4
) -> torch.Tensor:
    """
    Weight that gives the adversarial loss a gradient at the last layer as large as that of the reconstruction loss
    (Esser et al., 2021): |∇ reconstruction| / (|∇ adversarial| + 1e-4), in [0, `maximum`].

    With `torch.distributed` running, it uses the gradients of the mean loss over ranks, so that the weight is the same
    on every rank and does not depend on their number.

    Args:
        reconstruction_loss, adversarial_loss (`torch.Tensor`, scalars):
            Their graphs are kept for the backward pass.
        last_layer (`torch.Tensor`):
            Weight of the layer that outputs the pixels; or, if parameters are sharded (FSDP), the reconstruction.

    Returns:
        a scalar without gradient, on the losses' device. It is 0 if either gradient is 0: there is nothing to match,
        or nothing to weight.
    """
    norms = [_gradient_norm(loss, last_layer) for loss in (reconstruction_loss, adversarial_loss)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, maximum)
    return torch.where(norms[1] > 0, weight, 0)


def _gradient_norm(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss, at, retain_graph=True)
    gradient = gradient.float()
    if not (dist.is_available() and dist.is_initialized()):
        return gradient.norm()
    gradient = gradient / dist.get_world_size()
    if at.is_leaf:
        # A parameter is the same on every rank, so gradients of the ranks' losses add up.
        dist.all_reduce(gradient)
        return gradient.norm()
    # Pictures differ between ranks, so the gradient of the whole batch is the ranks' gradients side by side.
    squared = gradient.square().sum()
    dist.all_reduce(squared)
    return squared.sqrt()


def r1_penalty(real_logits: torch.Tensor, real_pixels: torch.Tensor) -> torch.Tensor:
    """
    R1 regulariser of the discriminator (Mescheder et al., 2018): mean over images of |∇ D|², to be weighted by γ/2.

    Args:
        real_logits (`torch.Tensor` of shape `(B, h, w)`):
            The discriminator's logits for `real_pixels`; D is an image's mean logit.
        real_pixels (`torch.Tensor` of shape `(B, 3, H, W)`):
            Originals, with `requires_grad` set before the discriminator's pass. The gradient is per unit of [0, 1]
            pixels.

    Returns:
        a scalar with a gradient for the discriminator.

    Raises:
        `ValueError`: if `real_pixels` does not require a gradient.
    """
    if not real_pixels.requires_grad:
        raise ValueError("`real_pixels` does not require a gradient: call `real_pixels.requires_grad_()` beforehand.")
    scores = real_logits.flatten(1).mean(dim=1)
    (gradient,) = torch.autograd.grad(scores.sum(), real_pixels, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1).mean()


class LeCamRegularizer(nn.Module):
    """
    LeCam regulariser of the discriminator (Tseng et al., 2021), for small data sets: logits are kept near the moving
    average of the other side's, mean (D(real) - average of fake)² + mean (D(fake) - average of real)².

    The averages are buffers: save the module in checkpoints, or a resumed run will differ.

    Args:
        decay (`float` in [0, 1)): share of the old average that each step keeps.

    Raises:
        `ValueError`: for a `decay` outside [0, 1).
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` is {decay}, it must be in [0, 1).")
        self.decay = decay
        self.register_buffer("average_real", torch.zeros(()))
        self.register_buffer("average_fake", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
        """
        Updates the averages with these logits, of any shape (the first ones become the averages), and returns the
        regulariser, a float32 scalar.
        """
        real_logits, fake_logits = real_logits.float(), fake_logits.float()
        means = torch.stack([real_logits.detach().mean(), fake_logits.detach().mean()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        averages = torch.lerp(means, torch.stack([self.average_real, self.average_fake]), self.decay)
        average_real, average_fake = torch.where(self.started, averages, means)
        self.average_real.copy_(average_real)
        self.average_fake.copy_(average_fake)
        self.started.fill_(True)
        return (real_logits - average_fake).square().mean() + (fake_logits - average_real).square().mean()
