"""Which paths a name means, and which files there are at a path."""

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from alit_hf.data import sources
from alit_hf.data.sources import PICTURES, FileKind, describe_passed_over, find_files, find_paths


TEXTS = FileKind("texts", lambda: {".txt"})


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(source: str) -> list[str]:
    return [str(path) for path in find_paths(source)]


class TestPaths:
    @pytest.mark.parametrize("name", ["a[1].txt", "a*.txt", "a?.txt", "set [a]", "[!b]", "[ab].txt"])
    def test_what_exists_is_no_pattern(self, folder, name):
        touch("a1.txt", "ab.txt", "set a/x.txt", "c", "b.txt", f"{name}/x.txt" if "." not in name else name)
        assert found(name) == [name]

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("set [a]/*", ["set [a]/x.txt", "set [a]/y[2].txt"]),
            ("set [a]/?.txt", ["set [a]/x.txt"]),
            ("set */y[2].txt", ["set [a]/y[2].txt", "set a/y2.txt"]),
            ("set [ab]/x.txt", ["set a/x.txt", "set b/x.txt"]),
            ("set [a]/y[12].txt", []),
            ("*/.hidden", ["set a/.hidden"]),
            ("set a/.*", ["set a/.hidden"]),
            ("set */", ["set [a]", "set a", "set b"]),
            ("set a/*/", []),
            ("**/x.txt", ["set [a]/x.txt", "set a/x.txt", "set b/x.txt"]),
        ],
    )
    def test_folders_of_a_pattern_that_exist_are_no_patterns(self, folder, pattern, expected):
        touch("set [a]/x.txt", "set [a]/y[2].txt", "set a/x.txt", "set a/y2.txt", "set a/.hidden", "set b/x.txt")
        for source in (pattern, f"{folder}/{pattern}"):
            if expected:
                assert [os.path.relpath(path, folder) for path in find_paths(source)] == expected
            else:
                with pytest.raises(ValueError, match="does not exist"):
                    find_paths(source)

    def test_a_package_may_lie_anywhere(self, folder, monkeypatch):
        touch("env [x]/some_package/__init__.py", "env [x]/some_package/1.txt", "env x/some_package/1.txt")
        monkeypatch.syspath_prepend(str(folder / "env [x]"))
        assert found("package://some_package/*.txt") == [str(folder / "env [x]" / "some_package" / "1.txt")]

    def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(self, folder, monkeypatch):
        touch("a/x.txt", "b/x.txt")
        listdir = os.listdir

        def refuse(path):
            if Path(path).name == "b":
                raise PermissionError(13, "Permission denied", path)
            return listdir(path)

        monkeypatch.setattr(os, "listdir", refuse)
        with pytest.raises(ValueError, match="the folder b cannot be read: Permission denied"):
            find_paths("*/*.txt")


def names(path: str, several: bool = False) -> list[str]:
    return [str(name) for _, name in find_files(Path(path), TEXTS, several).files]


class TestFiles:
    def test_linked_folders_are_followed(self, folder):
        touch("in/b.txt", "elsewhere/c.txt", "elsewhere/deeper/d.txt")
        os.symlink("../elsewhere", "in/a")
        os.symlink("../../in/a/c.txt", "elsewhere/deeper/file.txt")
        files, passed_over = find_files(Path("in"), TEXTS, True)
        assert [(str(file), str(name)) for file, name in files] == [
            ("in/b.txt", "in/b.txt"),
            ("in/a/c.txt", "in/a/c.txt"),
            ("in/a/deeper/d.txt", "in/a/deeper/d.txt"),
            ("in/a/deeper/file.txt", "in/a/deeper/file.txt"),
        ]
        assert passed_over == Counter()
        os.symlink("in", "start")
        assert names("start")[0] == "b.txt"

    def test_no_loop_and_no_folder_twice(self, folder):
        touch("in/z/a.txt", "in/z/deep/b.txt", "out/c.txt", "secret.txt")
        links = ["in/up", "in/z/here", "in/z/deep/top", "in/a", "in/b", "out/back", "in/over"]
        for link, target in zip(links, ["..", ".", "/", "z", "z/deep", "../in", "../out"], strict=True):
            os.symlink(target, link)
        files, passed_over = find_files(Path("in"), TEXTS, False)
        # By their own names, although those of links come first.
        assert [str(name) for _, name in files] == ["over/c.txt", "z/a.txt", "z/deep/b.txt"]
        assert passed_over == Counter({sources._READ_ANYWAY: 6})

    def test_many_links_are_no_endless_work(self, folder):
        for level in range(40):
            os.mkdir(f"{level}")
            for link in ("a", "b"):
                os.symlink(f"../{level + 1}", f"{level}/{link}")
        touch("40/x.txt")
        assert len(names("0")) == 1

    @pytest.mark.timeout(20)
    def test_what_is_no_file_is_passed_over(self, folder):
        touch("in/a.txt", "in/plain", "in/B.HEIC")
        os.mkfifo("in/pipe.txt")
        os.symlink("pipe.txt", "in/link.txt")
        os.symlink("/dev/zero", "in/device.txt")
        os.symlink("self", "in/self")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("in/socket.txt")
            files, passed_over = find_files(Path("in"), TEXTS, False)
        assert [str(name) for _, name in files] == ["a.txt"]
        assert passed_over == Counter({"pipe, socket or device": 4, "no suffix": 2, ".heic": 1})

    def test_an_unreadable_subfolder_is_named(self, folder, monkeypatch):
        touch("in/a.txt", "in/sub\x1b[31m/b.txt")
        scandir = os.scandir

        def refuse(path):
            if Path(path).name.startswith("sub"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(ValueError, match=r"the folder in/sub\\x1b\[31m cannot be read: Permission denied"):
            find_files(Path("in"), TEXTS, False)

    def test_few_words_on_many_kinds(self):
        assert describe_passed_over(Counter(), TEXTS) == ""
        counts = Counter({".a": 1, ".b": 2, ".c": 3, ".d": 4, ".e": 5, ".f": 6})
        expected = "21 files were passed over, only texts are taken (.b: 2, .c: 3, .d: 4, .e: 5, .f: 6, …)"
        assert describe_passed_over(counts, TEXTS) == expected


class TestPictures:
    def test_what_pillow_opens_is_a_picture(self):
        suffixes = PICTURES.suffixes()
        assert suffixes >= {".jpg", ".png", ".avif", ".jp2", ".tga", ".psd", ".mpo", ".webp", ".gif", ".tif", ".qoi"}
        # What Pillow only writes, only recognises, or has run by other programs.
        assert not suffixes & {".pdf", ".h5", ".hdf", ".grib", ".wmf", ".mpg", ".eps", ".ps", ".txt", ".heic"}

    def test_a_plugin_that_is_installed_counts(self, tmp_path):
        (tmp_path / "pillow_jxl.py").write_text(
            "from PIL import Image, PngImagePlugin\n"
            "class File(PngImagePlugin.PngImageFile):\n"
            "    format = 'JXL'\n"
            "    def _open(self):\n"
            "        assert self.fp.read(4) == b'JXL:'\n"
            "        import io\n"
            "        self.fp = io.BytesIO(self.fp.read())\n"
            "        super()._open()\n"
            "Image.register_open('JXL', File, lambda prefix: prefix[:4] == b'JXL:')\n"
            "Image.register_extension('JXL', '.jxl')\n"
        )
        program = (
            "import io; from PIL import Image; from pathlib import Path\n"
            "content = io.BytesIO(); Image.new('RGB', (3, 2)).save(content, 'PNG')\n"
            "Path('a.jxl').write_bytes(b'JXL:' + content.getvalue())\n"
            "from alit_hf.model.image_io import open_image, picture_suffixes\n"
            "assert open_image('a.jxl').size == (3, 2) and '.jxl' in picture_suffixes()\n"
        )
        path = os.pathsep.join([str(tmp_path), *sys.path])
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, check=True
        )
