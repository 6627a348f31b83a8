"""Text of others, such as names of files, made safe for terminals and for files in UTF-8."""

import os
import re


# Control characters; what ends a line or turns the direction of text; and the bytes of names that are not UTF-8, which
# Python keeps as halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_BREAK = re.compile(r"\s*[\t-\r\x1c-\x1e\x85\u2028\u2029]\s*")


def shown(name: str | os.PathLike) -> str:
    r"""The text or path with escapes, such as `\x1b`, for characters that a terminal obeys or UTF-8 does not have."""
    return _UNSAFE.sub(lambda character: character[0].encode("unicode_escape").decode("ascii"), os.fspath(name))


def one_line(text: str) -> str:
    """The text in one line, made safe as by `shown`."""
    return shown(_LINE_BREAK.sub(" ", text).strip())


__all__ = ["one_line", "shown"]
