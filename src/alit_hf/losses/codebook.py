"""Codebook health: how many codes are in use, revival of dead ones, and initialisation from real latents."""

import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F


def code_counts(ids: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """
    How often each code occurs.

    Args:
        ids (`torch.LongTensor`, of any shape): ids in [0, `codebook_size`); negative ones (padding) do not count.
        codebook_size (`int`): number of codes C.

    Returns:
        counts `(C,)`, int64, of this rank alone; add them up over steps, then call `sum_over_ranks`.
    """
    ids = ids.flatten()
    # One extra bin for the padding: a count of fixed size does not depend on the values.
    places = torch.where(ids < 0, codebook_size, ids)
    counts = torch.zeros(codebook_size + 1, dtype=torch.long, device=ids.device)
    return counts.scatter_add_(0, places, torch.ones_like(places))[:codebook_size]


def sum_over_ranks(counts: torch.Tensor) -> torch.Tensor:
    """The sum of all ranks' counts if `torch.distributed` is running, otherwise a copy of `counts`."""
    counts = counts.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def codebook_usage(counts: torch.Tensor) -> torch.Tensor:
    """Share of the codes that occur, a float32 scalar in [0, 1], from counts `(C,)`."""
    return (counts > 0).float().mean()


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """
    Exponential of the codes' entropy, a float32 scalar, from counts `(C,)`: C if all codes are equally frequent, 1 if
    only one occurs (or none).
    """
    frequencies = counts / counts.sum().clamp(min=1)
    return torch.special.entr(frequencies).sum().exp()


@torch.no_grad()
def revive_dead_codes(
    codebook: torch.Tensor,
    counts: torch.Tensor,
    latents: torch.Tensor,
    cosine: bool,
    min_count: int = 1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Replaces codes that are hardly used by latents of the batch, in place and without reading their number back from
    the device.

    Every dead code gets a latent of its own, drawn at random; if there are fewer latents than dead codes, the last
    dead codes stay. With `torch.distributed` running, all ranks get the codes of rank 0.

    Args:
        codebook (`torch.Tensor` of shape `(C, D)`): a codebook's weight, not sharded.
        counts (`torch.Tensor` of shape `(C,)`): occurrences since the last revival, summed over ranks.
        latents (`torch.Tensor` of shape `(M, D)`): the latents that the codebook quantises.
        cosine (`bool`): whether codes are compared by direction (the latent codebook) rather than by distance (a
            VQGAN's). New codes then get the mean norm of the codes, so that they learn at the same pace.
        min_count (`int`): codes that occur less often are dead.
        generator (`torch.Generator`): source of randomness.

    Returns:
        which codes are new, bool `(C,)`: an average of weights should copy them unchanged.

    Raises:
        `ValueError`: for shapes that do not match.
    """
    size, dim = codebook.shape
    if counts.shape != (size,):
        raise ValueError(f"`counts` has shape {tuple(counts.shape)}, `codebook` needs ({size},).")
    latents = _checked_latents(latents, 1, dim)
    dead = counts < min_count
    place = dead.cumsum(0) - 1
    dead &= place < len(latents)
    shuffled = latents[_permutation(latents, generator)]
    new = shuffled[place.clamp(0, len(latents) - 1)]
    if cosine:
        new = F.normalize(new, dim=-1) * codebook.float().norm(dim=-1).mean()
    codebook.copy_(_of_rank_zero(torch.where(dead.unsqueeze(-1), new.to(codebook.dtype), codebook)))
    return _of_rank_zero(dead)


def sample_init(
    latents: torch.Tensor, codebook_size: int, cosine: bool, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    A codebook of distinct latents drawn at random.

    Args:
        latents (`torch.Tensor` of shape `(M, D)`): real encoder outputs, at least as many as codes.
        codebook_size (`int`): number of codes C.
        cosine (`bool`): whether codes are compared by direction; they are then unit vectors.
        generator (`torch.Generator`): source of randomness.

    Returns:
        codes `(C, D)`, float32, those of rank 0 on every rank.

    Raises:
        `ValueError`: for fewer latents than codes.
    """
    latents = _checked_latents(latents, codebook_size)
    codes = latents[_permutation(latents, generator)[:codebook_size]]
    return _of_rank_zero(F.normalize(codes, dim=-1) if cosine else codes)


def kmeans_init(
    latents: torch.Tensor,
    codebook_size: int,
    cosine: bool,
    iterations: int = 10,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    A codebook of cluster means of latents (k-means), starting from `sample_init`, whose other arguments, result and
    errors it shares. Runs on the CPU.

    Args:
        iterations (`int`): rounds of assigning latents to means and moving the means.
    """
    # Imported here, as SciPy comes with the extra `train` and the rest of the module does not need it.
    from scipy.cluster.vq import kmeans2

    start = sample_init(latents, codebook_size, cosine, generator)
    latents = latents.detach().float()
    # Among unit vectors, the nearest by distance is the nearest by direction.
    points = F.normalize(latents, dim=-1) if cosine else latents
    with warnings.catch_warnings():
        # Such a cluster keeps the latent it started from, which is as good a code as any.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        means, _ = kmeans2(points.cpu().numpy(), start.cpu().numpy(), iter=iterations, minit="matrix")
    codes = torch.from_numpy(means).to(start)
    return _of_rank_zero(F.normalize(codes, dim=-1) if cosine else codes)


def _checked_latents(latents: torch.Tensor, at_least: int, dim: int | None = None) -> torch.Tensor:
    if latents.ndim != 2 or len(latents) < at_least or dim not in (None, latents.shape[1]):
        raise ValueError(
            f"`latents` has shape {tuple(latents.shape)}, it must be (M, {dim or 'D'}) with M of at least {at_least}."
        )
    return latents.detach().float()


def _permutation(latents: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    device = latents.device if generator is None else generator.device
    return torch.randperm(len(latents), generator=generator, device=device).to(latents.device)


def _of_rank_zero(tensor: torch.Tensor) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor
