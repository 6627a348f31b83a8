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
    The module and its optimisers as `accelerator.prepare` gives them. If it shards (FSDP2), each layer of the classes
    named in `layers` is gathered separately, whatever Accelerate's configuration says: FSDP2 gathers only for
    `forward`, and other parts are used outside of theirs. Precision is left to autocast, as without sharding: the
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
    """Frees gathered parameters: without gradients FSDP2 keeps them, and would miss later changes to the shards."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a rank has only a part of the tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor whole, on every rank; any other tensor unchanged but detached. All ranks must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Whole `values`, the same on every rank, with the device, dtype and shards of `tensor`."""
    values = values.to(device=tensor.device, dtype=tensor.dtype)
    if is_sharded(tensor):
        return distribute_tensor(values, tensor.device_mesh, tensor.placements)
    return values
