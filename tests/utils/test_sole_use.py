"""One run at a time in a folder, between real processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from thread_processes import in_processes

from alit_hf.utils.sole_use import LOCK_FILE, sole_use


HOLD = """
import os, sys, time
from pathlib import Path
from alit_hf.utils.sole_use import sole_use

with sole_use(Path(sys.argv[1])):
    if sys.argv[2] == "with a child" and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    time.sleep(30)
"""


def try_in_another_process(folder) -> bool:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_can_have, (folder,))


def _can_have(folder) -> bool:
    try:
        with sole_use(folder):
            return True
    except OSError:
        return False


def write_twice(path) -> None:
    path.touch()
    path.touch(exist_ok=False)


def test_a_second_one_is_refused_until_the_first_is_done(tmp_path):
    with sole_use(tmp_path):
        assert not try_in_another_process(tmp_path)
        with pytest.raises(OSError, match=f"another run is writing to {tmp_path}"), sole_use(tmp_path):
            pass
        # Neither refusal gave it free.
        assert not try_in_another_process(tmp_path)
    assert try_in_another_process(tmp_path)


def test_nothing_is_left_but_what_was_written(tmp_path):
    folder = tmp_path / "a" / "b"
    with sole_use(folder):
        assert (folder / LOCK_FILE).is_file()
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileExistsError), sole_use(folder):
        write_twice(folder / "result")
    assert [path.name for path in folder.iterdir()] == ["result"]
    (tmp_path / "empty").mkdir()
    with sole_use(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("children", ["alone", "with a child"])
def test_the_lock_dies_with_its_process(tmp_path, children):
    """Also if a process that it started, such as a loader's worker, lives on."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), children], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        assert not _can_have(tmp_path)
        holder.kill()
        holder.wait()
        time.sleep(0.05)
        assert _can_have(tmp_path)
        assert list(tmp_path.iterdir()) == []
    finally:
        os.killpg(holder.pid, signal.SIGKILL) if children == "with a child" else holder.kill()
        holder.stdout.close()


def test_processes_of_one_run_share_it_and_all_hear_of_another(tmp_path):
    def work(processes):
        with sole_use(tmp_path, processes):
            return processes.gather([_can_have(tmp_path)])

    assert in_processes(3, work) == [[False] * 3] * 3

    def refused(processes) -> str:
        with pytest.raises(OSError, match="another run") as error, sole_use(tmp_path, processes):
            pass
        return str(error.value)

    with sole_use(tmp_path):
        assert len(set(in_processes(3, refused))) == 1


def test_a_folder_that_cannot_be_written_to_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists"), sole_use(tmp_path / "file"):
        pass
