"""The first stage's loss: every rollout predicts the base tokenizer's codes or latents (paper section 2)."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from alit_hf.model.modeling_alit import ALITRolloutOutput


_FIRST_WEIGHTS = (2.5, 2.0, 1.5, 1.25)


def rollout_weights(num_rollouts: int) -> tuple[float, ...]:
    """λ_1 … λ_K, the paper's weights that favour short codes: 2.5, 2, 1.5, 1.25 and 1 from the fifth rollout on."""
    return (_FIRST_WEIGHTS + (1.0,) * num_rollouts)[:num_rollouts]


def code_distillation_loss(
    rollouts: Iterable[ALITRolloutOutput],
    codes: torch.Tensor,
    codebook: torch.Tensor,
    label_smoothing: float = 0.0,
    weights: Sequence[float] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Loss of a model with a VQGAN base: Σ_k (λ_k · cross-entropy + squared error of the expected code + quantizer loss).

    Args:
        rollouts (iterable of `ALITRolloutOutput`):
            Rollouts whose `decoder_output` `(B, N, C)` are logits over the base's codes, shortest code first.
        codes (`torch.Tensor` of shape `(B, N)`):
            Indices of the base's codes in [0, C), raster order.
        codebook (`torch.Tensor` of shape `(C, E)`):
            The base's codes. No gradient reaches it, as the base is frozen in this stage.
        label_smoothing (`float` in [0, 1)):
            Share of the target probability spread evenly over all C codes.
        weights (`Sequence[float]`):
            λ, one per rollout; by default `rollout_weights` of their number. If only the last of K rollouts is given,
            pass `weights=rollout_weights(K)[-1:]`.

    Returns:
        the total, a float32 scalar, and its detached terms, unweighted: `nll/T`, `code/T` and, if latents are
        quantised, `quantization/T`, with T the rollout's number of tokens. Reading them waits for the device.

    Raises:
        `ValueError`: for a `label_smoothing` outside [0, 1), a number of weights other than the number of rollouts, or
            shapes that do not match.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"`label_smoothing` is {label_smoothing}, it must be in [0, 1).")
    rollouts, weights = _paired(rollouts, weights)
    _check_decoder_outputs(rollouts, (*codes.shape, codebook.shape[0]), "`codes` and `codebook`")
    codebook = codebook.detach().float()
    true_codes = F.embedding(codes, codebook)
    terms = []
    with torch.autocast(codes.device.type, enabled=False):
        for rollout in rollouts:
            logits = rollout.decoder_output.float()
            expected_codes = logits.softmax(dim=-1) @ codebook
            nll = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), label_smoothing=label_smoothing)
            terms.append({"nll": nll, "code": F.mse_loss(expected_codes, true_codes)})
    return _total_and_logs(rollouts, terms, weights)


def latent_distillation_loss(
    rollouts: Iterable[ALITRolloutOutput], latents: torch.Tensor, weights: Sequence[float] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Loss of a model with a KL base: Σ_k (λ_k · squared error of the latents + quantizer loss).

    Args:
        rollouts (iterable of `ALITRolloutOutput`):
            Rollouts whose `decoder_output` `(B, N, E)` are base latents, shortest code first.
        latents (`torch.Tensor` of shape `(B, E, rows, columns)`):
            The base's latents, from `ALITBaseTokenizer.encode`. No gradient reaches them.
        weights (`Sequence[float]`):
            As in `code_distillation_loss`.

    Returns:
        the total, a float32 scalar, and its detached terms, unweighted: `latent/T` and, if latents are quantised,
        `quantization/T`, with T the rollout's number of tokens.

    Raises:
        `ValueError`: for a number of weights other than the number of rollouts, or shapes that do not match.
    """
    rollouts, weights = _paired(rollouts, weights)
    target = latents.detach().float().flatten(2).transpose(1, 2)
    _check_decoder_outputs(rollouts, target.shape, "`latents`")
    terms = [{"latent": F.mse_loss(rollout.decoder_output.float(), target)} for rollout in rollouts]
    return _total_and_logs(rollouts, terms, weights)


def _paired(
    rollouts: Iterable[ALITRolloutOutput], weights: Sequence[float] | None
) -> tuple[list[ALITRolloutOutput], Sequence[float]]:
    rollouts = list(rollouts)
    if weights is None:
        weights = rollout_weights(len(rollouts))
    if not rollouts or len(weights) != len(rollouts):
        raise ValueError(
            f"`weights` has {len(weights)} entries for {len(rollouts)} rollouts, it must have one for each."
        )
    return rollouts, weights


def _check_decoder_outputs(rollouts: list[ALITRolloutOutput], shape: tuple[int, ...], source: str) -> None:
    for rollout in rollouts:
        if rollout.decoder_output is None or rollout.decoder_output.shape != torch.Size(shape):
            got = None if rollout.decoder_output is None else tuple(rollout.decoder_output.shape)
            raise ValueError(
                f"`decoder_output` at {rollout.num_tokens} tokens is of shape {got}, {source} need {tuple(shape)}."
            )


def _total_and_logs(
    rollouts: list[ALITRolloutOutput], terms: list[dict[str, torch.Tensor]], weights: Sequence[float]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """λ weights the prediction of the base (cross-entropy or latents), not the expected code or the quantizer."""
    total, logs = 0.0, {}
    for rollout, of_rollout, weight in zip(rollouts, terms, weights, strict=True):
        if rollout.quantizer_loss is not None:
            of_rollout["quantization"] = rollout.quantizer_loss.float().mean()
        for name, term in of_rollout.items():
            total = total + (weight * term if name in ("nll", "latent") else term)
            logs[f"{name}/{rollout.num_tokens}"] = term.detach()
    return total, logs
