"""Counting, logging and reviving a codebook's codes during training."""

from collections.abc import Callable

import torch
from torch import nn

from alit_hf.losses.codebook import (
    code_counts,
    codebook_usage,
    kmeans_init,
    perplexity,
    revive_dead_codes,
    sum_over_ranks,
)

from ..sharding import like, whole
from .stage import Replaced


# The latents that a refit clusters: so many times the codes.
_LATENTS_PER_CODE = 16
_KMEANS_ITERATIONS = 5


class CodebookCare(nn.Module):
    """
    Watches one codebook. A module for its counts and for the latents of a refit, which belong into checkpoints.

    Args:
        codebook: returns the codebook's weight `(C, D)`; a function, so that the weight has one owner.
        codebook_size: C.
        cosine: whether codes are compared by direction.
        revive_every: steps after which codes that did not occur in them are replaced; 0 for never.
        refit_every: steps after which all codes are replaced by means of clusters of the last latents, once there are
            as many latents as codes; 0 for never.
    """

    def __init__(
        self,
        codebook: Callable[[], nn.Parameter],
        codebook_size: int,
        cosine: bool,
        revive_every: int,
        refit_every: int = 0,
    ):
        super().__init__()
        self.codebook = codebook
        self.cosine = cosine
        self.revive_every = revive_every
        self.refit_every = refit_every
        self.register_buffer("since_revival", torch.zeros(codebook_size, dtype=torch.long))
        self.register_buffer("since_summary", torch.zeros(codebook_size, dtype=torch.long))
        self.latents: torch.Tensor | None = None
        if refit_every:
            self.register_buffer("recent", torch.zeros(_LATENTS_PER_CODE * codebook_size, codebook().shape[1]))
            self.register_buffer("num_observed", torch.zeros((), dtype=torch.long))

    def observe(self, ids: torch.Tensor, latents: torch.Tensor) -> None:
        """Takes note of the ids of any shape that latents `(M, D)` were given."""
        counts = code_counts(ids, len(self.since_revival))
        self.since_revival += counts
        self.since_summary += counts
        self.latents = latents.detach()
        if self.refit_every:
            latents = self.latents[-len(self.recent) :]
            places = (self.num_observed + torch.arange(len(latents), device=latents.device)) % len(self.recent)
            self.recent[places] = latents
            self.num_observed += len(latents)

    def end_step(self, step: int) -> list[Replaced]:
        """Refits and revives, where it is time to."""
        if self.latents is None:
            return []
        due = [
            replace
            for every, replace in ((self.refit_every, self._refit), (self.revive_every, self._revive))
            if every and (step + 1) % every == 0
        ]
        return [replaced for replace in due for replaced in replace()]

    def _refit(self) -> list[Replaced]:
        codebook = self.codebook()
        latents = self.recent[: int(self.num_observed)]
        if len(latents) < len(codebook):
            return []
        codes = kmeans_init(latents, len(codebook), self.cosine, _KMEANS_ITERATIONS).to(latents.device)
        with torch.no_grad():
            codebook.copy_(like(codebook, codes))
        self.since_revival.zero_()
        return [Replaced(parameter=codebook, rows=torch.ones(len(codes), dtype=torch.bool, device=codes.device))]

    def _revive(self) -> list[Replaced]:
        counts = sum_over_ranks(self.since_revival)
        codebook = self.codebook()
        codes = whole(codebook).clone()
        rows = revive_dead_codes(codes, counts, self.latents, cosine=self.cosine)
        with torch.no_grad():
            codebook.copy_(like(codebook, codes))
        self.since_revival.zero_()
        return [Replaced(parameter=codebook, rows=rows)]

    def summary(self) -> dict[str, torch.Tensor]:
        """Usage and perplexity since the last call."""
        counts = sum_over_ranks(self.since_summary)
        self.since_summary.zero_()
        return {"usage": codebook_usage(counts), "perplexity": perplexity(counts)}
