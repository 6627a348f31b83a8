"""A folder that only one run at a time writes to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .error_reason import reason
from .processes import Processes


LOCK_FILE = ".alit.lock"
"""File in the folder while it is in use, and after a run there was killed."""


@contextmanager
def sole_use(folder: Path, processes: Processes | None = None, lock_file: str = LOCK_FILE) -> Iterator[None]:
    """
    Context in which no other run can have sole use of `folder`, which is created if it is missing. Ends with the
    process, however that ends. Leaves no file, and no empty folder that it has created.

    Args:
        processes ([`Processes`], *optional*): the processes that share the run. Defaults to this one alone.
        lock_file (`str`): another name, for sole use of a part of the folder.

    Raises:
        `OSError`: on all processes, if another run has it, or if the folder cannot be created or written to.
    """
    processes = processes or Processes()
    problems = []
    with ExitStack() as stack:
        if processes.rank == 0:
            try:
                stack.enter_context(_locked(folder, lock_file))
            except OSError as error:
                problems.append(reason(error))
        if problems := processes.gather(problems):
            raise OSError(problems[0])
        yield


@contextmanager
def _locked(folder: Path, lock_file: str) -> Iterator[None]:
    created = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    lock = FileLock(folder / lock_file, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise OSError(f"another run is writing to {folder}") from error
        try:
            yield
        finally:
            # Before it is released, so that nobody gets hold of a file without a name. Windows keeps open files.
            with suppress(OSError):
                (folder / lock_file).unlink()
            lock.release()
    finally:
        with suppress(OSError):
            for path in created:
                path.rmdir()


__all__ = ["LOCK_FILE", "sole_use"]
