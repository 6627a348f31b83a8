"""Work that goes on in threads while the caller is busy. At most a fixed number of items is held at once."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


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
    problem = None
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            unread = iter(items)
            while True:
                try:
                    waiting.append(pool.submit(work, next(unread)))
                except StopIteration:
                    break
                except Exception as error:
                    problem = error
                    break
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if problem is not None:
                raise problem
        finally:
            for future in waiting:
                future.cancel()


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
        reader.join()


__all__ = ["map_in_threads", "read_ahead"]
