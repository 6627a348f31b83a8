"""Which of several processes, which share the work, this one is."""

import os
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """
    Which of several processes this one is.

    Args:
        rank (`int`): its number, from 0.
        count (`int`): how many there are.
        gather (`Callable[[list], list]`): concatenates the lists of all processes in order of rank, on each of them.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[list], list] = list


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


__all__ = ["Processes", "is_first_process"]
