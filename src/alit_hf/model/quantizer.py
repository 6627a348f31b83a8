"""The factorised latent codebook (paper section 2: quantisation of the latent tokens)."""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_alit import ALITConfig
from .layers import per_image


def embedding_table(embedding: nn.Embedding, device: torch.device) -> torch.Tensor:
    """
    All rows of an embedding. Looked up, because what lies in `weight` is not always the weights: offloaded ones are
    there only while the module runs, and quantised ones have another dtype.
    """
    return embedding(torch.arange(embedding.num_embeddings, device=device))


class ALITCodebook(nn.Embedding):
    """The latent codebook's weights (C, D); a class of its own so that its initialisation is, too."""


def straight_through(values: torch.Tensor, gradient_of: torch.Tensor) -> torch.Tensor:
    """`values`, to the bit, in the forward pass; the gradient of `gradient_of` in the backward pass."""
    return values.detach() + (gradient_of - gradient_of.detach())


class ALITVectorQuantizer(nn.Module):
    """
    Nearest code by cosine. Runs in float32 whatever the rest of the model runs in.
    """

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.commitment_cost = config.commitment_cost
        self.codebook = ALITCodebook(config.codebook_size, config.codebook_dim)

    def unit_codes(self, device: torch.device) -> torch.Tensor:
        """The codebook as unit vectors, float32 (C, D)."""
        return F.normalize(embedding_table(self.codebook, device).float(), dim=-1)

    @per_image
    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            latents (`torch.Tensor` of shape `(B, T, D)`): factorised latents, of any length.

        Returns:
            the chosen unit-norm codes `(B, T, D)` float32 with a straight-through gradient, their ids `(B, T)` int64,
            and each image's codebook loss plus `commitment_cost` times its commitment loss, `(B,)`.
        """
        with torch.autocast(latents.device.type, enabled=False):
            directions = F.normalize(latents.float(), dim=-1)
            codes = self.unit_codes(latents.device)
            ids = (directions @ codes.T).argmax(dim=-1)
            chosen = F.embedding(ids, codes)
            codebook_loss = (chosen - directions.detach()).square().mean(dim=(1, 2))
            commitment_loss = (directions - chosen.detach()).square().mean(dim=(1, 2))
            loss = codebook_loss + self.commitment_cost * commitment_loss
            return straight_through(chosen, gradient_of=directions), ids, loss

    def from_ids(self, token_ids: torch.Tensor) -> torch.Tensor:
        """
        Args:
            token_ids (`torch.Tensor` of shape `(B, T)`): ids in [0, C).

        Returns:
            the same unit-norm codes `(B, T, D)`, float32, that `forward` chose under these ids.
        """
        return F.normalize(self.codebook(token_ids).float(), dim=-1)


__all__ = ["ALITVectorQuantizer"]
