"""Parameters that may be sharded (FSDP2), seen whole."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


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
