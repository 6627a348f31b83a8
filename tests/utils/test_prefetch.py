"""Work ahead of the caller: in order, bounded, and gone when the caller is."""

import itertools
import threading

import pytest

from alit_hf.utils import prefetch
from alit_hf.utils.prefetch import map_batches, map_in_threads, read_ahead


AHEAD = 3


def stages(num_threads: int, ahead: int):
    """Both functions, one after the other, as callers combine them."""
    return lambda work, items: map_in_threads(work, read_ahead(items, ahead), num_threads, ahead)


@pytest.mark.parametrize(("num_threads", "ahead"), [(0, 0), (0, 1), (1, 1), (2, 0), (3, AHEAD)])
def test_results_are_those_of_map(num_threads, ahead):
    run = stages(num_threads, ahead)
    assert list(run(lambda number: number**2, range(50))) == [number**2 for number in range(50)]
    assert list(run(str, [])) == []


@pytest.mark.parametrize(("num_threads", "ahead"), [(0, 0), (2, AHEAD)])
def test_errors_come_where_the_result_would(num_threads, ahead):
    def items():
        yield from range(10)
        raise OSError("the disk is gone")

    results = stages(num_threads, ahead)(lambda number: number, items())
    assert list(itertools.islice(results, 10)) == list(range(10))
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)

    results = stages(num_threads, ahead)(lambda number: 1 / (3 - number), range(10))
    assert len(list(itertools.islice(results, 3))) == 3
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_more_than_a_fixed_number_is_held():
    """However long the caller takes: a reader of its own and the threads stop at what they may hold."""
    read = threading.Semaphore(0)
    count = itertools.count()

    def items():
        for number in count:
            read.release()
            yield number

    results = map_in_threads(lambda number: number, read_ahead(items(), AHEAD), 2, AHEAD)
    for used in range(20):
        assert next(results) == used
    # Waiting results, waiting items, and one item in the reader's hand.
    most = 20 + AHEAD + AHEAD + 1
    for _ in range(most):
        assert read.acquire(timeout=30)
    assert not read.acquire(timeout=0.3)
    results.close()


def test_work_goes_on_while_the_caller_is_busy():
    started = [threading.Event() for _ in range(3)]
    results = map_in_threads(lambda number: started[number].set(), range(3), 1, 2)
    next(results)
    assert started[2].wait(timeout=30)


def test_a_caller_that_leaves_ends_the_reader():
    reading = threading.Event()
    ended = threading.Event()

    def items():
        try:
            for number in itertools.count():
                reading.set()
                yield number
        finally:
            ended.set()

    results = read_ahead(items(), 1)
    assert next(results) == 0
    before = threading.active_count()
    results.close()
    assert threading.active_count() == before - 1


@pytest.mark.parametrize("num_threads", [0, 3])
def test_batches_keep_their_items_and_the_empty_ones(num_threads):
    batches = [range(2), [], range(5, 8), []]
    results = list(map_batches(lambda number: number**2, batches, 3, num_threads))
    assert results == [(range(2), [0, 1]), ([], []), (range(5, 8), [25, 36, 49]), ([], [])]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_an_error_in_a_batch_comes_after_the_batches_before_it(num_threads):
    results = map_batches(lambda number: 1 / (3 - number), [[1, 2], [3], [4]], 2, num_threads)
    assert next(results) == ([1, 2], [0.5, 1.0])
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize(
    "start",
    [
        lambda hang: map_in_threads(hang, itertools.count(), 2, 2),
        lambda hang: read_ahead(map(hang, itertools.count()), 2),
    ],
)
def test_what_hangs_does_not_hold_up_a_caller_that_leaves(monkeypatch, start):
    monkeypatch.setattr(prefetch, "_LONGEST_WAIT", 0.01)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(number: int) -> int:
        if number:
            hangs.set()
            goes_on.wait()
        return number

    results = start(hang)
    before = set(threading.enumerate())
    assert next(results) == 0
    assert hangs.wait(timeout=30)
    results.close()
    # Nor the end of the program.
    left = set(threading.enumerate()) - before
    assert left
    assert all(thread.daemon for thread in left)
    goes_on.set()
    for thread in left:
        thread.join(timeout=30)
        assert not thread.is_alive()
