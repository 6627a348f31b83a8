"""Work that goes on in threads while the caller is busy. At most a fixed number of items is held at once."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, TypeVar


Item = TypeVar("Item")
Batch = TypeVar("Batch", bound=Iterable)
Result = TypeVar("Result")

# For threads that were told to end, in seconds.
_LONGEST_WAIT = 1.0


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int, ahead: int
) -> Iterator[Result]:
    """
    `work(item)` for each item, in their order, computed by threads while the caller uses earlier results.

    Args:
        work (`Callable`): what it raises is raised where its result would come.
        items (`Iterable`): read in the caller's thread; an error of theirs is raised after the results before it.
        num_threads (`int`): 0 works in the caller's thread, when a result is asked for.
        ahead (`int`): results, finished or not, that may wait for the caller.
    """
    if num_threads == 0:
        yield from map(work, items)
        return
    waiting: deque[Future] = deque()
    tasks: queue.SimpleQueue = queue.SimpleQueue()
    problem = None

    def run() -> None:
        while (task := tasks.get()) is not None:
            _settle(task[0], work, task[1])
            del task

    # Not an executor, whose threads a program waits for when it ends.
    threads = [threading.Thread(target=run, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        unread = iter(items)
        while True:
            try:
                item = next(unread)
            except StopIteration:
                break
            except Exception as error:
                problem = error
                break
            waiting.append(Future())
            tasks.put((waiting[-1], item))
            del item
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if problem is not None:
            raise problem
    finally:
        for future in waiting:
            future.cancel()
        for _ in threads:
            tasks.put(None)
        _join(threads)


def _settle(future: Future, work: Callable[[Item], Result], item: Item) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work(item))
        except BaseException as error:
            future.set_exception(error)


def map_batches(
    work: Callable[[Item], Result], batches: Iterable[Batch], batch_size: int, num_threads: int
) -> Iterator[tuple[Batch, list[Result]]]:
    """
    Each batch with `work(item)` for each of its items, in their order. Threads work on the next batch, and no further,
    while the caller uses one.

    Args:
        work, num_threads: of `map_in_threads`.
        batches (`Iterable[Iterable]`): read in the caller's thread.
        batch_size (`int`): the most items that a batch has.
    """

    def tasks() -> Iterator[Callable]:
        for batch in batches:
            for item in batch:
                yield partial(work, item)
            yield partial(_End, batch)

    results: list = []
    for result in map_in_threads(lambda task: task(), tasks(), num_threads, batch_size + num_threads):
        if isinstance(result, _End):
            yield result.batch, results
            results = []
        else:
            results.append(result)


class _End(NamedTuple):
    """Follows the results of a batch."""

    batch: Any


def read_ahead(items: Iterable[Item], ahead: int) -> Iterator[Item]:
    """
    The items in their order, read by a thread while the caller uses earlier ones.

    Args:
        items (`Iterable`): what reading them raises is raised where the next item would come.
        ahead (`int`): items that may wait for the caller. 0 reads in the caller's thread.
    """
    if ahead == 0:
        yield from items
        return
    waiting: queue.Queue = queue.Queue(ahead)
    stopped = threading.Event()

    def put(message: tuple) -> None:
        while not stopped.is_set():
            try:
                waiting.put(message, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put((item, None, False))
                if stopped.is_set():
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            item, error, is_end = waiting.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item
    finally:
        stopped.set()
        _join([reader])


def _join(threads: list[threading.Thread]) -> None:
    """Waits for threads that are about to end. What hangs, such as a connection, must not hold up a Ctrl-C."""
    latest = time.monotonic() + _LONGEST_WAIT
    for thread in threads:
        thread.join(max(0, latest - time.monotonic()))


__all__ = ["map_batches", "map_in_threads", "read_ahead"]
