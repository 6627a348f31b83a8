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
def threads(count: int) -> Iterator[None]:
    """Torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
