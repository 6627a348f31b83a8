"""Work on many files in batches, where a bad file does not stop the others."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

from alit_hf.utils.prefetch import map_batches, map_in_threads
from alit_hf.utils.progress import ProgressBar

from .errors import file_problem
from .jobs import Job, source_name, target_name
from .printing import print_error, print_json


def run_jobs(
    jobs: Sequence[Job],
    read: Callable[[Path | None], Any],
    compute: Callable[[list], list],
    write: Callable[[Any, Path | None], Any],
    batch_size: int,
    num_workers: int,
    progress_label: str,
    progress_within: Callable[[ProgressBar, int], AbstractContextManager] = lambda progress, num_items: nullcontext(),
) -> tuple[list[tuple[Job, Any]], list[tuple[Job, str]]]:
    """
    Reads, computes and writes batch by batch, with a progress bar. Files that fail are reported on stderr at the end.

    Args:
        read: turns a source into an item; an exception means that the file failed.
        compute: turns a list of items into a list of results, one for each item.
        write: writes a result to the target, whose folder exists; returns what the summary needs.
        num_workers: threads that read the next files, and as many that write results, while the caller's thread
            computes.
        progress_within: advances the bar while so many items are computed.

    Returns:
        the jobs that succeeded, each with what `write` returned, and those that failed, each with the reason.
    """

    def read_one(job: Job) -> Any:
        try:
            return read(job.source)
        except Exception as error:
            # Whatever is wrong with one file must not stop the others.
            return error

    def compute_some(items: list) -> list:
        with progress_within(progress, len(items)):
            return compute(items)

    def write_one(computed: tuple[Job, Any]) -> tuple[Job, Any]:
        job, result = computed
        if not isinstance(result, Exception):
            try:
                if job.target is not None:
                    job.target.parent.mkdir(parents=True, exist_ok=True)
                result = write(result, job.target)
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                result = error
        return job, result

    batches = (jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size))
    computed = (
        outcome
        for batch, items in map_batches(read_one, batches, batch_size, num_workers)
        for outcome in _compute(list(zip(batch, items, strict=True)), compute_some)
    )
    done, failed = [], []
    with (
        ProgressBar(total=len(jobs), desc=progress_label, unit="file") as progress,
        closing(map_in_threads(write_one, computed, num_workers, num_workers)) as outcomes,
    ):
        for job, outcome in outcomes:
            if isinstance(outcome, Exception):
                failed.append((job, file_problem(source_name(job.source), outcome)))
            else:
                done.append((job, outcome))
            progress.update()
    for _, problem in failed:
        print_error(problem)
    return done, failed


def print_jobs(done: Sequence[tuple[Job, dict[str, Any]]], failed: Sequence[tuple[Job, str]], **others: Any) -> None:
    """For `--json`: the jobs that succeeded, each with what there is to say of it, and those that failed."""
    print_json(
        {
            **others,
            "files": [
                {"input": source_name(job.source), "output": target_name(job.target), **facts} for job, facts in done
            ],
            "failed": [{"input": source_name(job.source), "error": problem} for job, problem in failed],
        }
    )


def _compute(batch: list[tuple[Job, Any]], compute: Callable[[list], list]) -> list[tuple[Job, Any]]:
    """The batch's jobs with their results, or with the exception if there is none."""
    good = [item for _, item in batch if not isinstance(item, Exception)]
    try:
        results = iter(compute(good) if good else [])
    except (ValueError, RuntimeError, MemoryError) as error:
        if len(batch) == 1:
            return [(batch[0][0], error)]
        # One bad item must not fail the others, and what needs too much memory together may fit alone.
        return [outcome for single in batch for outcome in _compute([single], compute)]
    return [(job, item if isinstance(item, Exception) else next(results)) for job, item in batch]
