"""Which of several processes this one is, where they share the images. Knows nothing of how they were started."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """
    Which of several processes this one is.

    Args:
        rank (`int`): its number, from 0.
        count (`int`): how many there are.
        gather (`Callable[[list], list]`): puts the lists of all processes one behind the other, in order of rank, on
            each of them.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[list], list] = list


__all__ = ["Processes"]
