"""Counting, logging and reviving a codebook's codes during training."""

from collections.abc import Callable

import torch
from torch import nn

from alit_hf.losses.codebook import code_counts, codebook_usage, perplexity, revive_dead_codes, sum_over_ranks

from ..sharding import like, whole
from .stage import Replaced


class CodebookCare(nn.Module):
    """
    Watches one codebook. A module for its counts, which belong into checkpoints.

    Args:
        codebook: returns the codebook's weight `(C, D)`; a function, so that the weight has one owner.
        codebook_size: C.
        cosine: whether codes are compared by direction.
        revive_every: steps after which codes that did not occur in them are replaced; 0 for never.
    """

    def __init__(self, codebook: Callable[[], nn.Parameter], codebook_size: int, cosine: bool, revive_every: int):
        super().__init__()
        self.codebook = codebook
        self.cosine = cosine
        self.revive_every = revive_every
        self.register_buffer("since_revival", torch.zeros(codebook_size, dtype=torch.long))
        self.register_buffer("since_summary", torch.zeros(codebook_size, dtype=torch.long))
        self.latents: torch.Tensor | None = None

    def observe(self, ids: torch.Tensor, latents: torch.Tensor) -> None:
        """Takes note of the ids of any shape that latents `(M, D)` were given."""
        counts = code_counts(ids, len(self.since_revival))
        self.since_revival += counts
        self.since_summary += counts
        self.latents = latents.detach()

    def end_step(self, step: int) -> list[Replaced]:
        """Revives, where it is time to."""
        if self.latents is None or not self.revive_every or (step + 1) % self.revive_every:
            return []
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
