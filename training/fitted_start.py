"""The part of a short run's start that is fitted to images, in closed form: what latents say and how it is read."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from alit_hf import ALITModel
from alit_hf.losses.codebook import sample_init


_RIDGE = 1e-3
# Of the copies of latents that fill up a codebook, as a share of the latents' own spread.
_BLUR = 0.2
# Inverse temperatures of the first predictions, as shares of what Gaussian errors would have.
_CONFIDENCES = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)


@torch.no_grad()
def fitted_start(model: ALITModel, pixel_values: torch.Tensor) -> None:
    """
    Fits an untrained model, in place: the projection to factorised latents, the latent codebook and the last layer of
    the decoder. All ranks get what rank 0 fits.

    Args:
        model: after `spatial_start`.
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): a batch of training images.
    """
    fit_projection(model, pixel_values)
    if model.quantizer is not None:
        latents = _inputs_of(lambda: _run(model, pixel_values), model.quantizer)
        codebook = model.quantizer.codebook.weight
        latents = _at_least(len(codebook), torch.cat([one.flatten(0, 1) for one in latents]))
        codebook.copy_(sample_init(latents, len(codebook), cosine=True))
    fit_head(model, pixel_values)


@torch.no_grad()
def fit_projection(model: ALITModel, pixel_values: torch.Tensor) -> None:
    """
    Sets the projection to factorised latents so that they begin as what differs most between images: the directions
    with the largest share of variance between images in all variance between tokens, each scaled to unit variance
    (linear discriminants). A random projection mostly shows which token it is.
    """
    tokens = torch.cat(_inputs_of(lambda: _run(model, pixel_values), model.latent_projection), dim=1)
    mean = tokens.mean(dim=(0, 1))
    between_images = _covariance(tokens - tokens.mean(dim=0))
    variances, directions = torch.linalg.eigh(_with_ridge(_covariance(tokens - mean)))
    whitening = directions / variances.sqrt()
    _, discriminants = torch.linalg.eigh(whitening.T @ between_images @ whitening)
    weight = (whitening @ discriminants[:, -model.config.codebook_dim :]).T
    _set_linear(model.latent_projection, weight, -weight @ mean)


@torch.no_grad()
def fit_head(model: ALITModel, pixel_values: torch.Tensor) -> None:
    """
    Sets the decoder's last layer by least squares over all rollouts: to the true base codes' vectors, and from there
    to logits by their distance to each code (VQGAN base), or to the base latents (KL base).
    """
    base, head = model.base_tokenizer, model.decoder.head
    latents = base.encode(pixel_values)
    codes = base.codes(latents).flatten() if model.config.base_type == "vqgan" else None
    target = (
        latents.float().flatten(2).transpose(1, 2).flatten(0, 1) if codes is None else base.codebook[codes].float()
    )
    of_rollouts = [one.flatten(0, 1) for one in _inputs_of(lambda: _run(model, pixel_values), head.fc2)]
    features = torch.cat(of_rollouts)
    mean, target_mean = features.mean(dim=0), target.mean(dim=0)
    centred, wanted = features - mean, (target - target_mean).repeat(len(of_rollouts), 1)
    weight = torch.linalg.solve(_with_ridge(_covariance(centred)), centred.T @ wanted / len(centred)).T
    bias = target_mean - weight @ mean
    if codes is not None:
        precision = 0.5 / (wanted - centred @ weight.T).square().mean()
        weight, bias = _logits_by_distance(weight, bias, base.codebook.float())
        shortest_and_longest = torch.cat([of_rollouts[0], of_rollouts[-1]])
        logits = shortest_and_longest @ weight.T + bias
        losses = [F.cross_entropy(share * precision * logits, codes.repeat(2)) for share in _CONFIDENCES]
        scale = precision * _CONFIDENCES[int(torch.stack(losses).argmin())]
        weight, bias = scale * weight, scale * bias
    _set_linear(head.fc2, weight, bias)


def _logits_by_distance(
    weight: torch.Tensor, bias: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear layer whose outputs are, up to a sum, minus the squared distances of another's to codes `(C, E)`."""
    return 2 * codebook @ weight, 2 * codebook @ bias - codebook.square().sum(dim=1)


def _at_least(count: int, latents: torch.Tensor) -> torch.Tensor:
    """Latents `(M, D)`, if fewer than `count` with blurred copies: a small batch of short codes has few."""
    copies = math.ceil(count / len(latents)) - 1
    blurred = latents.repeat(copies, 1)
    return torch.cat([latents, blurred + _BLUR * latents.std(dim=0) * torch.randn_like(blurred)])


def _run(model: ALITModel, pixel_values: torch.Tensor) -> None:
    for _ in model.rollouts(pixel_values, return_reconstruction=False):
        pass


def _inputs_of(run: Callable[[], None], module: nn.Module) -> list[torch.Tensor]:
    """What `module` is given while `run` runs, call by call, float32."""
    inputs = []
    hook = module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].float()))
    try:
        run()
    finally:
        hook.remove()
    return inputs


def _covariance(centred: torch.Tensor) -> torch.Tensor:
    vectors = centred.reshape(-1, centred.shape[-1])
    return vectors.T @ vectors / len(vectors)


def _with_ridge(covariance: torch.Tensor) -> torch.Tensor:
    return covariance + _RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), device=covariance.device)


def _set_linear(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    weight, bias = weight.contiguous(), bias.contiguous()
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(weight, 0)
        torch.distributed.broadcast(bias, 0)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
