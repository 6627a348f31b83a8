"""Which inputs are found and how their outputs are called."""

import contextlib
import os
from pathlib import Path

import pytest

from alit_hf.cli.errors import UsageError
from alit_hf.cli.jobs import plan_jobs
from alit_hf.data.sources import FileKind


KIND = FileKind("photos", lambda: {".jpg", ".png"})


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def plan(inputs, output) -> dict[str, str]:
    jobs = plan_jobs(
        [str(path) for path in inputs], str(output), KIND, (".alit",), lambda path: path.stat().st_size > 0
    )
    return {str(job.source): str(job.target) for job in jobs}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folder_is_mirrored_without_what_is_no_picture_or_hidden(folder):
    touch(folder / "in", "b.jpg", "s/c.PNG", "notes.txt", ".hidden.jpg", ".cache/d.jpg", "noending", "s/s/v1.2.jpg")
    assert plan(["in"], "out") == {
        "in/b.jpg": "out/b.alit",
        "in/s/c.PNG": "out/s/c.alit",
        "in/s/s/v1.2.jpg": "out/s/s/v1.2.alit",
    }


def test_order_is_sorted_whatever_the_file_system_says(folder, monkeypatch):
    touch(folder / "in", "b.jpg", "a.jpg", "z/a.jpg", "y/a.jpg")
    scandir = os.scandir

    @contextlib.contextmanager
    def backwards(path):
        with scandir(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(os, "scandir", backwards)
    assert list(plan(["in"], "out")) == ["in/a.jpg", "in/b.jpg", "in/y/a.jpg", "in/z/a.jpg"]


def test_names_that_differ_in_their_suffix_only_keep_it(folder):
    touch(folder / "in", "a.jpg", "a.png", "b.jpg", "s/a.png")
    assert plan(["in"], "out") == {
        "in/a.jpg": "out/a.jpg.alit",
        "in/a.png": "out/a.png.alit",
        "in/b.jpg": "out/b.alit",
        "in/s/a.png": "out/s/a.alit",
    }


def test_files_of_one_folder_stay_apart_from_one_command_to_the_next(folder):
    touch(folder, "in/a.jpg", "in/a.png", "in/b.jpg", "in/b.txt", "in/c.xyz", "in/c.PNG", "elsewhere/b.png")
    at_once = plan(["in"], "out")
    for pattern in ("in/*.jpg", "in/*.[pP]*"):
        assert plan([pattern], "out").items() <= at_once.items()
    assert plan(["in/b.jpg"], "out") == {"in/b.jpg": "out/b.alit"}
    assert plan(["in/c.xyz"], "out") == {"in/c.xyz": "out/c.xyz.alit"}


def test_kept_suffix_does_not_meet_another_name(folder):
    touch(folder / "in", "a.jpg", "a.png", "a.jpg.png")
    assert plan(["in"], "out") == {
        "in/a.jpg": "out/a.jpg.alit",
        "in/a.jpg.png": "out/a.jpg.png.alit",
        "in/a.png": "out/a.png.alit",
    }


def test_names_that_differ_in_case_only_stay_apart_on_every_file_system(folder):
    touch(folder / "in", "A.jpg", "a.png", "Å.jpg", "A\u030a.png")
    targets = plan(["in"], "out").values()
    assert sorted(targets) == sorted(f"out/{name}.alit" for name in os.listdir("in"))


def test_several_inputs_keep_their_folders_apart(folder):
    touch(folder, "one/a.jpg", "two/a.jpg", "a.jpg")
    expected = {"a.jpg": "out/a.alit", "one/a.jpg": "out/one/a.alit", "two/a.jpg": "out/two/a.alit"}
    assert plan(["a.jpg", "one", "two/"], "out") == expected


def test_input_given_twice_is_one_job(folder):
    touch(folder, "a.jpg")
    assert plan(["a.jpg", "./a.jpg"], "out") == {"a.jpg": "out/a.alit"}


@pytest.mark.parametrize(
    ("output", "target"),
    [("b.alit", "b.alit"), ("s/b.ALIT", "s/b.ALIT"), ("out", "out/a.alit"), ("x.alit/", "x.alit/a.alit")],
)
def test_single_file_goes_to_a_file_or_a_folder(folder, output, target):
    touch(folder, "a.jpg")
    assert plan(["a.jpg"], output) == {"a.jpg": target}


def test_existing_folder_is_a_folder_whatever_its_name(folder):
    touch(folder, "a.jpg")
    (folder / "x.alit").mkdir()
    assert plan(["a.jpg"], "x.alit") == {"a.jpg": "x.alit/a.alit"}


def test_given_file_needs_no_known_suffix(folder):
    touch(folder, "scan.xyz", "noending")
    assert plan(["scan.xyz", "noending"], "out") == {"scan.xyz": "out/scan.alit", "noending": "out/noending.alit"}


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["missing.jpg"], "out", "missing.jpg does not exist"),
        (["a.jpg", "missing.jpg"], "out", "missing.jpg does not exist"),
        (["empty"], "out", "the folder empty has no photos"),
        (["one", "empty"], "out", "the folder empty has no photos"),
        ([""], "out", "a file name is empty"),
        (["a.jpg"], "", "a file name is empty"),
        (["one/a.jpg", "two/a.jpg"], "out", "one/a.jpg and two/a.jpg would both be written to out/a.jpg.alit"),
        (["one"], "x.alit", "x.alit is a file name"),
        (["a.jpg", "b.jpg"], "x.alit", "x.alit is a file name"),
        (["a.jpg"], "x.txt", "x.txt must end in .alit"),
        (["one"], "a.jpg", "a.jpg is a file, it must be a folder"),
        (["one"], "a.jpg/out", "a.jpg is not a folder"),
        (["a.jpg"], "a.jpg/x.alit", "a.jpg is not a folder"),
        (["x.alit"], ".", "the input x.alit would be overwritten"),
        (["x.alit"], "x.alit", "the input x.alit would be overwritten"),
        (["a.jpg"], "hard.alit", "the input a.jpg would be overwritten"),
        (["a.jpg"], "soft.alit", "the input a.jpg would be overwritten"),
        (["one"], "one", "the output one is the input one, it must be another folder"),
        (["one"], "./one/", "the output one is the input one"),
        (["one"], "link", "the output link is the input one"),
        (["link", "two"], "one", "the output one is the input link"),
        (["in"], "out", "out/c.alit would be overwritten, which this command has not written"),
        (["in/c.jpg"], "out", "out/c.alit would be overwritten, which this command has not written"),
    ],
)
def test_wrong_use_is_named(folder, inputs, output, message):
    touch(folder, "a.jpg", "b.jpg", "one/a.jpg", "two/a.jpg", "x.alit", "in/c.jpg", "out/c.alit")
    (folder / "empty").mkdir()
    os.link("a.jpg", "hard.alit")
    os.symlink("a.jpg", "soft.alit")
    os.symlink("one", "link")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        plan(inputs, output)
    assert sorted(folder.rglob("*")) == before


def test_output_without_permission_is_refused(folder, monkeypatch):
    touch(folder, "a.jpg")
    # Whoever runs the tests may be allowed to write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    with pytest.raises(UsageError, match="no permission"):
        plan(["a.jpg"], "new/out")


def test_unreadable_folder_is_refused(folder, monkeypatch):
    touch(folder, "in/a.jpg")

    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match="in cannot be read: Permission denied"):
        plan(["in"], "out")


def test_own_files_are_replaced(folder):
    touch(folder, "in/a.jpg")
    (folder / "out").mkdir()
    (folder / "out" / "a.alit").write_bytes(b"ALIT")
    assert plan(["in"], "out") == {"in/a.jpg": "out/a.alit"}


def test_a_link_to_nowhere_or_to_itself_is_a_file_that_fails_later(folder):
    touch(folder, "in/a.jpg")
    os.symlink("self.jpg", "in/self.jpg")
    os.symlink("nowhere", "in/dead.jpg")
    assert list(plan(["in"], "out")) == ["in/a.jpg", "in/dead.jpg", "in/self.jpg"]
    assert list(plan(["in/self.jpg", "in/a.jpg"], "out")) == ["in/self.jpg", "in/a.jpg"]


def test_what_is_passed_over_is_said_once_the_plan_stands(folder, capsys):
    touch(folder, "in/a.jpg", "in/b.heic", "in/c.heic", "in/s/notes.txt", "in/x\x1b[31m.y\x1b[31m", "in/README")
    assert list(plan(["in"], "out")) == ["in/a.jpg"]
    kinds = r"(.heic: 2, .txt: 1, .y\x1b[31m: 1, no suffix: 1)"
    note = f"alit: note: in: 5 files were passed over, only photos are taken {kinds}\n"
    assert capsys.readouterr() == ("", note)
    touch(folder, "other/b.heic")
    with pytest.raises(UsageError, match=r"the folder other has no photos; 1 file was passed over, .* \(\.heic: 1\)"):
        plan(["in", "other"], "out")
    assert capsys.readouterr() == ("", "")
