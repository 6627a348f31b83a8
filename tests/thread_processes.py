"""Several processes that share their work, as threads of this one."""

import threading
from collections.abc import Callable
from typing import Any

from alit_hf.utils.processes import Processes


def in_processes(count: int, work: Callable[[Processes], Any]) -> list:
    """Calls `work(processes)` as each of `count` processes does; gives what they return, or raises what one raises."""
    lists = [[] for _ in range(count)]
    returned = [None] * count
    barrier = threading.Barrier(count, timeout=60)
    problems = []

    def run(rank: int) -> None:
        def gather(values: list) -> list:
            barrier.wait()
            lists[rank] = values
            barrier.wait()
            return [value for values in lists for value in values]

        try:
            returned[rank] = work(Processes(rank, count, gather))
        except BaseException as error:
            problems.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return returned
