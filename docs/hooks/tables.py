"""
Pages that are made when the site is built, so that they cannot fall behind: tables of all options of `alit` and of all
fields of training where a page has `<!-- table: NAME -->`, and the changelog, which stands outside of `docs/`.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mkdocs.structure.files import File, Files


# `mkdocs`, unlike `python -m mkdocs`, does not put the folder with the package `training` on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alit_hf.analysis.registry import ANALYSES, load_analysis
from alit_hf.cli import make_parser
from alit_hf.cli.analyze import options_parser
from training.configuration import described_fields
from training.hub.model_card import markdown_table
from training.train import field_sections


ROOT = Path(__file__).resolve().parents[2]

_MARK = re.compile(r"<!-- table: (\w+) -->")
_CODE = re.compile(r"(`[^`]*`)")


def on_files(files: Files, config) -> Files:
    """Adds the changelog, with links as seen from `docs/`."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Puts tables where their marks are."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def command_tables() -> str:
    """What all commands have in common, then a section for each of them and for each analysis."""
    alit = make_parser()
    parts = [_shown(alit.epilog)]
    parts += [f"## alit {name}\n{options_table(parser)}" for name, parser in _commands(alit).items()]
    # As in `alit`: libraries that analyses import warn by loggers that nobody has set up.
    logging.lastResort.setLevel(logging.ERROR)
    parts += [f"## alit analyze {name}\n{options_table(options_parser(load_analysis(name)))}" for name in ANALYSES]
    return "\n\n".join(parts)


def field_tables() -> str:
    """A section for each section of fields."""
    parts = []
    for title, kind, prefix in field_sections():
        rows = [
            [
                f"`{field.name}`",
                _shown(field.meaning),
                _shown(field.values),
                "needed" if field.default is None else f"`{field.default}`",
                "yes" if field.may_change else "no",
            ]
            for field in described_fields(kind, prefix)
        ]
        header = ["field", "meaning", "type", "default", "a resumed run may change it"]
        parts.append(f"## {title}\n{_table(header, rows)}")
    return "\n\n".join(parts)


def options_table(parser: argparse.ArgumentParser) -> str:
    """What a command does, and a row for each of its arguments."""
    excluded = {}
    for group in parser._mutually_exclusive_groups:
        for one in group._group_actions:
            others = [other.option_strings[-1] for other in group._group_actions if other is not one]
            excluded[one.dest] = f"; not together with {', '.join(f'`{other}`' for other in others)}"
    formatter = parser._get_formatter()
    rows = []
    for one in parser._actions:
        if one.dest == "help":
            continue
        names = ", ".join(f"`{name}`" for name in one.option_strings or [one.metavar])
        is_needed = one.required and one.nargs != argparse.REMAINDER
        meaning = ("needed: " if is_needed else "") + _shown(formatter._expand_help(one)) + excluded.get(one.dest, "")
        rows.append([f"{names} {_values(one)}".strip(), meaning])
    table = _table(["option", "meaning"], rows)
    return "\n\n".join(filter(None, [_shown(parser.description), table, _shown(parser.epilog or "")]))


def _values(one: argparse.Action) -> str:
    if one.nargs == 0 or not one.option_strings:  # a switch, or an argument whose name is that of its value
        return ""
    value = ", ".join(one.choices) if one.choices is not None else one.metavar
    return _shown(value + (" …" if one.nargs == "+" else ""))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return commands.choices


def _table(header: list[str], rows: list[list[str]]) -> str:
    """With the class that `docs/styles/tables.css` knows."""
    return f'<div class="generated" markdown>\n\n{markdown_table(header, rows)}\n\n</div>'


def _shown(text: str) -> str:
    """Plain text as Markdown in a cell; what stands between backticks stays code."""
    parts = _CODE.split(text)
    parts[::2] = [re.sub(r"([\\*_<\[\]])", r"\\\1", part) for part in parts[::2]]
    return " ".join("".join(parts).split()).replace("|", "\\|")


TABLES: dict[str, Callable[[], str]] = {"commands": command_tables, "fields": field_tables}
"""By the names that pages have for them."""
