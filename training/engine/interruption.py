"""What all ranks of a run have to agree on: whether it was told to stop, and how much time went by."""

import os
import signal
import time

import torch
import torch.distributed as dist


# Launchers pass on what the terminal has sent to all processes already: that is the same press of Ctrl-C.
_SAME_PRESS_SECONDS = 1.0


class Interruption:
    """
    Catches SIGTERM and SIGINT while it is entered, and lets ranks agree. A second Ctrl-C ends the process at once.

    They talk through a group of their own on the host: the accelerator's streams are not waited for.
    """

    def __init__(self) -> None:
        self.came = 0
        """Number of the signal that came, 0 for none."""
        self.group = dist.new_group(backend="gloo") if dist.is_available() and dist.is_initialized() else None

    def __enter__(self) -> "Interruption":
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        now = time.monotonic()
        if number == self.came == signal.SIGINT and now - self._pressed > _SAME_PRESS_SECONDS:
            # Not an exception, which would show where it struck.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.came, self._pressed = number, now

    def agree(self, seconds: float) -> tuple[int, float]:
        """The signal that came to any rank, 0 for none, and the largest of the ranks' seconds. All ranks must ask."""
        if self.group is None:
            return self.came, seconds
        values = torch.tensor([float(self.came), seconds], dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        came, seconds = values.tolist()
        return int(came), seconds
