"""How benchmarks take the time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def seconds(function: Callable, *args: object, **kwargs: object) -> float:
    """What a call takes."""
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


@contextmanager
def two_threads() -> Iterator[None]:
    """Torch computes on two threads, as on the machines that benchmarks speak of."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)
