"""Which of several processes, which share the images, this one is. Knows nothing about how they were started."""

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


__all__ = ["Processes"]
