"""Parameters that may be sharded (FSDP2), seen whole."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], layers: Sequence[str]
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """
    The module and its optimisers as `accelerator.prepare` gives them. Where it shards (FSDP2), each layer of the
    classes named in `layers` is gathered on its own, whatever Accelerate's configuration says: other parts are used by
    more than their `forward`, for which alone FSDP2 gathers. Precision is left to autocast, as without sharding: the
    quantiser and pixels stay in float32.
    """
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = list(layers)
        plugin.mixed_precision_policy = None
    module, *optimizers = accelerator.prepare(module, *optimizers)
    return module, optimizers


def let_go(module: nn.Module) -> None:
    """Frees what was gathered: without gradients FSDP2 keeps it, and would miss that its shards were set anew."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a rank has only a part of the tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor, on every rank; any other tensor as it is, detached. All ranks must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Whole `values`, the same on every rank, with the device, dtype and shards of `tensor`."""
    values = values.to(device=tensor.device, dtype=tensor.dtype)
    if is_sharded(tensor):
        return distribute_tensor(values, tensor.device_mesh, tensor.placements)
    return values
