"""Docstrings in the style of transformers as Markdown for mkdocstrings: griffe has no parser of that style."""

import inspect
import re

import griffe


_SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Example):$")
_ARGUMENT = re.compile(r"(?P<names>\*{0,2}\w+(?:,\s+\w+)*)(?=:| \()")
_EXCEPTION = re.compile(r"(?P<names>`?\w+`?(?: or `?\w+`?)*)(?=:)")
_REFERENCE = re.compile(r"\[`(?:~[\w.]*\.)?~?([\w.]+)`\](?![(\[])")


class TransformersDocstrings(griffe.Extension):
    """Rewrites every docstring before it is shown."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """Sections get a bold title; arguments and exceptions become lists; references lose their brackets."""
    parts, title, lines = [], None, []

    def end_section() -> None:
        if title is not None or lines:
            parts.append(_section(title, lines))

    for line in inspect.cleandoc(docstring).splitlines():
        found = _SECTION.match(line)
        if found:
            end_section()
            title, lines = found[1], []
        elif title not in (None, "Example") and line and not line.startswith(" "):
            end_section()
            title, lines = None, [line]
        else:
            lines.append(line)
    end_section()
    return _REFERENCE.sub(r"`\1`", "\n\n".join(parts))


def _section(title: str | None, lines: list[str]) -> str:
    text = inspect.cleandoc("\n" + "\n".join(lines))
    if title is None:
        return text
    if title in ("Args", "Raises"):
        text = _list(text.splitlines(), _ARGUMENT if title == "Args" else _EXCEPTION)
    return f"**{title}**\n\n{text}"


def _list(lines: list[str], start: re.Pattern) -> str:
    """An item for each line that `start` matches; the lines between belong to the item before."""
    items: list[str] = []
    for line in lines:
        if line.startswith(" ") or (items and items[-1].endswith(",")) or not start.match(line):
            if not items:
                items.append("")
            items[-1] += f" {line.strip()}"
        else:
            items.append(line)
    return "\n".join(f"- {start.sub(_bold, item.strip(), count=1)}" for item in items)


def _bold(names: re.Match) -> str:
    return names["names"] if "`" in names["names"] else f"**{names['names']}**"
