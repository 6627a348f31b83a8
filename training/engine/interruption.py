"""What all ranks of a run must agree on: whether it was told to stop, and how much time has passed."""

import os
import signal
import time

import torch
import torch.distributed as dist


# Launchers forward what the terminal has already sent to all processes: that is the same press of Ctrl-C.
_SAME_PRESS_SECONDS = 1.0


class Interruption:
    """
    Context manager that catches SIGTERM and SIGINT, and lets ranks agree. A second Ctrl-C ends the process at once.

    Ranks communicate through a separate group on the host, without waiting for the accelerator's streams.
    """

    def __init__(self) -> None:
        self.came = 0
        """Number of the signal received, 0 for none."""
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
            # Not an exception, which would show a traceback.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.came, self._pressed = number, now

    def agree(self, seconds: float) -> tuple[int, float]:
        """The signal that any rank received, 0 for none, and the ranks' largest seconds. All ranks must call it."""
        if self.group is None:
            return self.came, seconds
        values = torch.tensor([float(self.came), seconds], dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        came, seconds = values.tolist()
        return int(came), seconds
