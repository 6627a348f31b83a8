"""Work on many files in batches, where a bad file does not stop the others."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import file_problem
from .jobs import Job
from .printing import print_error


def run_jobs(
    jobs: Sequence[Job],
    read: Callable[[Path], Any],
    compute: Callable[[list], list],
    write: Callable[[Any, Path], Any],
    batch_size: int,
    progress_label: str,
) -> tuple[list[tuple[Job, Any]], int]:
    """
    Reads, computes and writes batch by batch, with a progress bar on stderr if there are several files. Files that
    fail are reported on stderr at the end.

    Args:
        read: turns a source into an item; an exception means that the file failed.
        compute: turns a list of items into a list of results, one for each item.
        write: writes a result to the target, whose folder exists; returns what the summary needs.

    Returns:
        the jobs that succeeded, each with what `write` returned, and the number of those that failed.
    """
    done, failures = [], []
    with tqdm(total=len(jobs), desc=progress_label, unit="file", file=sys.stderr, disable=len(jobs) == 1) as progress:
        for start in range(0, len(jobs), batch_size):
            batch = []
            for job in jobs[start : start + batch_size]:
                try:
                    batch.append((job, read(job.source)))
                except Exception as error:
                    # Whatever is wrong with one file must not stop the others.
                    failures.append(file_problem(job.source, error))
                    progress.update()
            for job, result in _compute(batch, compute):
                try:
                    if isinstance(result, Exception):
                        raise result
                    job.target.parent.mkdir(parents=True, exist_ok=True)
                    done.append((job, write(result, job.target)))
                except (OSError, ValueError, RuntimeError, MemoryError) as error:
                    failures.append(file_problem(job.source, error))
                progress.update()
    for failure in failures:
        print_error(failure)
    return done, len(failures)


def _compute(batch: list[tuple[Job, Any]], compute: Callable[[list], list]) -> list[tuple[Job, Any]]:
    """The batch's jobs with their results, or with the exception if there is none."""
    if not batch:
        return []
    try:
        return list(zip([job for job, _ in batch], compute([item for _, item in batch]), strict=True))
    except (ValueError, RuntimeError, MemoryError) as error:
        if len(batch) == 1:
            return [(batch[0][0], error)]
    # One bad item must not fail the others, and what needs too much memory together may fit alone.
    return [result for single in batch for result in _compute([single], compute)]
