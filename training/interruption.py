"""What all ranks of a run have to agree on: whether it was told to stop, and how much time went by."""

import signal

import torch
import torch.distributed as dist


class Interruption:
    """
    Catches SIGTERM while it is entered, and lets ranks agree.

    They talk through a group of their own on the host: the accelerator's streams are not waited for.
    """

    def __init__(self) -> None:
        self.came = False
        self.group = dist.new_group(backend="gloo") if dist.is_available() and dist.is_initialized() else None

    def __enter__(self) -> "Interruption":
        self._former = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._former)

    def _note(self, *_) -> None:
        self.came = True

    def agree(self, seconds: float) -> tuple[bool, float]:
        """Whether SIGTERM came to any rank, and the largest of the ranks' seconds. All ranks must ask."""
        if self.group is None:
            return self.came, seconds
        values = torch.tensor([float(self.came), seconds], dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        came, seconds = values.tolist()
        return bool(came), seconds
