"""What distillation encoder and decoder are made of: the transformer layer, and tables of embeddings."""

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_tracing

from .configuration_alit import ALITConfig


def image_by_image(function: Callable, *batches: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
    """
    `function` of batches, which gives a tensor with a row an image, or a tuple of these. On a CPU each image goes
    alone: libraries there choose the order of a sum by the size of the batch, by strides and by alignment, its
    rounding decides between two codes of nearly the same distance or for a score at the threshold, and a code must not
    depend on batch mates. At the sizes of real pictures it takes no longer. A traced batch stays whole, as its size is
    not known.
    """
    if batches[0].device.type != "cpu" or is_tracing():
        return function(*batches)
    # Copies, as parts of a batch may have other strides and alignment than an image that is alone.
    images = zip(*(batch.split(1) for batch in batches), strict=True)
    outputs = [function(*(part.clone(memory_format=torch.contiguous_format) for part in image)) for image in images]
    if isinstance(outputs[0], torch.Tensor):
        return torch.cat(outputs)
    return tuple(None if parts[0] is None else torch.cat(parts) for parts in zip(*outputs, strict=True))


def per_image(forward: Callable) -> Callable:
    """A module's `forward` of one batch through `image_by_image`, except in training, which has no codes to keep."""

    @wraps(forward)
    def wrapper(self, batch: torch.Tensor, **kwargs):
        if self.training:
            return forward(self, batch, **kwargs)
        return image_by_image(lambda image: forward(self, image, **kwargs), batch)

    return wrapper


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights `(B, heads, T, T)`; `attention_mask` is part of the interface only."""
    weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), weights


def apply_per_image(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """As `per_image`, for a module that libraries replace by its class, such as a linear layer by its 8-bit form."""
    return module(batch) if module.training else image_by_image(module, batch)


class ALITEmbeddingTables(nn.Module):
    """A module whose own parameters are embeddings, which start at a scale of their own."""


class ALITAttention(nn.Module):
    """Joint self-attention over all tokens: `(B, T, W)` to `(B, T, W)` and the attention weights where available."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    @per_image
    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(heads_shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(hidden_states.shape)), weights


class ALITMLP(nn.Module):
    """Two linear layers on each token: `(B, T, W)` to `(B, T, W)`."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        intermediate_size = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    @per_image
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class ALITLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: `(B, T, W)` to `(B, T, W)`."""

    def __init__(self, config: ALITConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ALITAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ALITMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


__all__ = [
    "ALITAttention",
    "ALITEmbeddingTables",
    "ALITLayer",
    "apply_per_image",
    "image_by_image",
    "per_image",
]
