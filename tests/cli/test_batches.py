"""Many files in batches: a bad one stops nothing, and reading and writing go on while the batch is computed."""

import threading

import pytest

from alit_hf.cli.batches import run_jobs
from alit_hf.cli.jobs import Job


NUMBERS = pytest.mark.parametrize("num_workers", [0, 2])


def jobs_of(folder, names) -> list[Job]:
    return [Job(folder / name, folder / "out" / name) for name in names]


def name(path) -> str:
    return path.name


def same(items: list) -> list:
    return items


@NUMBERS
def test_whatever_is_wrong_with_one_file_stops_nothing(tmp_path, capsys, num_workers):
    names = ["a", "unreadable", "c", "incomputable", "e", "unwritable", "g"]

    def read(path):
        if path.name == "unreadable":
            raise SyntaxError("not a TIFF file")
        return path.name

    def compute(items):
        if "incomputable" in items:
            raise RuntimeError("out of memory")
        return [item.upper() for item in items]

    def write(item, path):
        if item == "UNWRITABLE":
            raise OSError("the disk is full")
        return f"{item} to {path.name}"

    done, failed = run_jobs(jobs_of(tmp_path, names), read, compute, write, 2, num_workers, "working")
    assert [(job.source.name, written) for job, written in done] == [(n, f"{n.upper()} to {n}") for n in "aceg"]
    assert [job.source.name for job, _ in failed] == ["unreadable", "incomputable", "unwritable"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alit: error:")]
    reasons = ["unreadable: not a TIFF file", "incomputable: out of memory", "unwritable: the disk is full"]
    assert all(error.endswith(reason) for error, reason in zip(errors, reasons, strict=True))
    assert [f"alit: error: {problem}" for _, problem in failed] == errors


@NUMBERS
def test_the_batches_are_those_of_the_jobs(tmp_path, num_workers):
    batches = []

    def compute(items):
        batches.append(items)
        return items

    run_jobs(jobs_of(tmp_path, "abcdefg"), name, compute, lambda item, path: None, 3, num_workers, "working")
    assert batches == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


def test_the_next_batch_is_read_and_the_last_one_written_while_one_is_computed(tmp_path):
    read_all, wrote_first = threading.Event(), threading.Event()

    def read(path):
        if path.name == "d":
            read_all.set()
        return path.name

    def compute(items):
        if "a" in items:
            assert read_all.wait(timeout=30)
        if "f" in items:
            assert wrote_first.wait(timeout=30)
        return items

    def write(item, path):
        if item == "a":
            wrote_first.set()

    _, failed = run_jobs(jobs_of(tmp_path, "abcdef"), read, compute, write, 2, 2, "working")
    assert not failed


def test_an_interruption_ends_the_threads(tmp_path):
    def compute(items):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs_of(tmp_path, map(str, range(100))), name, compute, lambda item, path: None, 2, 2, "working")
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
        assert not thread.is_alive(), thread
