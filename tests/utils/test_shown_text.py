"""Names of files are shown so that a terminal obeys nothing in them, and stay as they are otherwise."""

import pytest

from alit_hf.utils.error_reason import reason
from alit_hf.utils.public_names import public_name
from alit_hf.utils.shown_text import one_line, shown


@pytest.mark.parametrize(
    "name", ["a b  c.png", "日本 é.png", "11.05\u202fPM.png", "می\u200cخواهم.png", "👩\u200d💻.png", "a\\x1b.png"]
)
def test_names_of_people_stay(name):
    assert shown(name) == name
    assert one_line(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31mred", r"\x9b31mred"),
        ("\x7f\a\b", r"\x7f\x07\x08"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("gnp\u202egnp", r"gnp\u202egnp"),
    ],
)
def test_what_a_terminal_obeys_or_utf8_lacks_is_escaped(name, expected):
    assert shown(name) == expected
    assert shown(shown(name)) == expected
    expected.encode()


def test_messages_of_several_lines_become_one():
    assert one_line(" first\n  second\r\n\tthird \x1b[2J ") == r"first second third \x1b[2J"


def test_a_reason_calls_a_path_by_the_name_given():
    error = ValueError("/home/me/a\nb  c.png is no picture\nat all")
    assert reason(error) == "/home/me/a b  c.png is no picture at all"
    assert reason(error, "/home/me/a\nb  c.png", r"a\nb  c.png") == r"a\nb  c.png is no picture at all"
    assert reason(OSError(13, "Permission denied", "/home/me/x"), "/home/me/x", "x") == "Permission denied"


def test_public_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "photos\x1b").mkdir(parents=True)
    assert public_name(str(tmp_path / "sub" / "photos\x1b")) == r"photos\x1b"
    assert public_name("sub/photos\x1b/") == r"photos\x1b"
    assert public_name(str(tmp_path / "sub" / "*.png")) == "*.png"
    assert public_name(str(tmp_path / "gone")) == "gone"
    for name in ("sub/*.png", "organization/name", "package://skimage/data/coffee.png"):
        assert public_name(name) == name
