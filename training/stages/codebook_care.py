"""Initialising, counting, logging and reviving a codebook's codes during training."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from alit_hf.losses.codebook import (
    code_counts,
    codebook_usage,
    kmeans_init,
    perplexity,
    revive_dead_codes,
    sum_over_ranks,
)

from .sharding import like, whole
from .stage import Replaced


# Latents per code for k-means.
_LATENTS_PER_CODE = 16
_KMEANS_ITERATIONS = 5


class CodebookCare(nn.Module):
    """
    Watches one codebook. It is a module because its counts and starting latents belong in checkpoints.

    Args:
        codebook: returns the codebook's weight `(C, D)`; a function, so that the weight has one owner.
        codebook_size: C.
        cosine: whether codes are compared by direction.
        revive_every: interval in steps at which codes that did not occur in it are replaced; 0 for never.
        start: first step that quantises. Above 0, k-means initialises the codes from the latents of the steps before.
    """

    def __init__(
        self,
        codebook: Callable[[], nn.Parameter],
        codebook_size: int,
        cosine: bool,
        revive_every: int,
        start: int = 0,
    ):
        super().__init__()
        self.codebook = codebook
        self.cosine = cosine
        self.revive_every = revive_every
        self.start = start
        self.register_buffer("since_revival", torch.zeros(codebook_size, dtype=torch.long))
        self.register_buffer("since_summary", torch.zeros(codebook_size, dtype=torch.long))
        self.latents: torch.Tensor | None = None
        if start:
            self.register_buffer("recent", torch.zeros(_LATENTS_PER_CODE * codebook_size, codebook().shape[1]))
            self.register_buffer("num_collected", torch.zeros((), dtype=torch.long))

    def observe(self, latents: torch.Tensor, ids: torch.Tensor, step: int) -> None:
        """
        Counts the ids, of any shape, given to latents `(M, D)`; before the start, collects the latents.
        """
        self.latents = latents.detach()
        if step < self.start:
            # Only a part, so that they come from many batches.
            some = torch.randperm(len(latents), device=latents.device)[: len(self.since_revival)]
            places = (self.num_collected + torch.arange(len(some), device=latents.device)) % len(self.recent)
            self.recent[places] = self.latents[some].to(self.recent.dtype)
            self.num_collected += len(some)
            return
        counts = code_counts(ids, len(self.since_revival))
        self.since_revival += counts
        self.since_summary += counts

    def end_step(self, step: int) -> list[Replaced]:
        """Initialises the codes at their start, and revives unused ones when it is time."""
        if self.start and step + 1 == self.start:
            return [self._set()]
        since_start = step + 1 - self.start
        if self.latents is None or since_start < 1 or not self.revive_every or since_start % self.revive_every:
            return []
        return [self._revive()]

    def _set(self) -> Replaced:
        latents, codebook = self.recent[: int(self.num_collected)], self.codebook()
        if len(latents) < len(codebook):
            raise ValueError(
                f"The {self.start} steps before quantisation gave {len(latents)} latents for {len(codebook)} codes: "
                "begin it later, or take larger batches."
            )
        codes = kmeans_init(latents, len(codebook), self.cosine, _KMEANS_ITERATIONS).to(latents.device)
        with torch.no_grad():
            codebook.copy_(like(codebook, codes))
        return Replaced(parameter=codebook, rows=torch.ones(len(codes), dtype=torch.bool, device=codes.device))

    def _revive(self) -> Replaced:
        counts = sum_over_ranks(self.since_revival)
        codebook = self.codebook()
        codes = whole(codebook).clone()
        rows = revive_dead_codes(codes, counts, self.latents, cosine=self.cosine)
        with torch.no_grad():
            codebook.copy_(like(codebook, codes))
        self.since_revival.zero_()
        return Replaced(parameter=codebook, rows=rows)

    def gather_counts(self) -> None:
        """See `Stage`."""
        for counts in (self.since_revival, self.since_summary):
            counts.copy_(sum_over_ranks(counts))
        self.leave_counts_to_first_rank()

    def leave_counts_to_first_rank(self) -> None:
        """See `Stage`."""
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            self.since_revival.zero_()
            self.since_summary.zero_()

    def summary(self) -> dict[str, torch.Tensor]:
        """Codebook usage and perplexity since the last call; empty if nothing was quantised."""
        counts = sum_over_ranks(self.since_summary)
        if not counts.any():
            return {}
        self.since_summary.zero_()
        return {"codebook/usage": codebook_usage(counts), "codebook/perplexity": perplexity(counts)}
