"""
The built documentation works where its pages are opened as files: without a server, without other sites, and on a
phone. Its tables have every option and every field.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from alit_hf.analysis.registry import ANALYSES
from alit_hf.cli import main as alit
from training.configuration import DataConfig, LoggingConfig, OptimizationConfig, TrainingConfig
from training.stages.loss_config import LOSS_CONFIGS


pytest.importorskip("mkdocs", reason="mkdocs builds the site: pip install -e '.[docs]'")
ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
PHONE = 390  # pixels

_OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth;
    const scrolls = part => part.matches("article *") && ["auto", "scroll"].includes(getComputedStyle(part).overflowX);
    const ends = part => part.getBoundingClientRect().right;
    const isReachable = part => {
        for (let around = part.parentElement; around; around = around.parentElement)
            if (scrolls(around) && ends(around) <= width + 1) return true;
        return false;
    };
    return [...document.querySelectorAll("article *")]
        .filter(part => part.getBoundingClientRect().width && ends(part) > width + 1 && !isReachable(part))
        .map(part => part.outerHTML.slice(0, 200));
}"""


class _Page(HTMLParser):
    """Links of a page, what it loads, and what can be linked to."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.loaded += [attributes["src"]] if attributes.get("src") else []


class _Tables(HTMLParser):
    """Rows of cells by the heading above them."""

    def __init__(self, path: Path):
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self._heading, self._text = "", None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.setdefault(self._heading, []).append([])
        if tag in ("h2", "td"):
            self._text = ""

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "h2":
            self._heading = self._text.removesuffix("¶")
        elif tag == "td":
            self.rows[self._heading][-1].append(self._text)
        if tag in ("h2", "td"):
            self._text = None


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, _Page]:
    # 404.html is a server's.
    return {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_links_lead_to_files_and_places_that_are_there(pages):
    num_links = 0
    for path, page in pages.items():
        for link in map(urlsplit, page.links):
            if link.scheme or link.netloc:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            assert not link.path.startswith("/"), f"{path.name}: {link.geturl()}"
            assert target.is_file(), f"{path.name}: {link.geturl()}"
            assert not link.fragment or target not in pages or link.fragment in pages[target].ids, link.geturl()
            num_links += 1
    assert num_links > 100


def test_pages_load_nothing_of_other_sites(pages):
    assert [source for page in pages.values() for source in page.loaded if urlsplit(source).netloc] == []


def test_every_option_is_in_the_table_of_its_command(site, capsys):
    rows = _Tables(site / "commands.html").rows
    assert alit(["--help"]) == 0
    commands = re.findall(r"^    ([a-z]+) +\w", capsys.readouterr().out, re.MULTILINE)
    assert {"encode", "tokenize", "demo"} <= set(commands)
    for name in commands:
        assert alit([name, "--help"]) == 0
        expected = set(re.findall(r"^  (?:-\w, |-\w \w+, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
        cells = " ".join(row[0] for row in rows[f"alit {name}"] if row)
        assert set(re.findall(r"--[a-z-]+", cells)) == expected - {"--help"}, name
    assert {f"alit analyze {name}" for name in ANALYSES} <= set(rows)
    assert {"--data DATA …", "--test-data DATA …", "--label-column COLUMN", "--seed S"} <= {
        row[0] for row in rows["alit analyze probe"] if row
    }


def test_every_field_is_in_the_table_of_its_section(site):
    rows = _Tables(site / "training-fields.html").rows
    kinds = [(TrainingConfig, "", "Fields")]
    kinds += [(kind, f"{name}.", f"Section {name}") for name, kind in _SECTIONS.items()]
    for stage, kind in LOSS_CONFIGS.items():
        (title,) = [title for title in rows if re.search(rf"^Section loss of .*\b{stage}\b", title)]
        kinds.append((kind, "loss.", title))
    for kind, prefix, title in kinds:
        shown = {row[0]: row[1:] for row in rows[title] if row}
        fields = {prefix + field.name: field for field in dataclasses.fields(kind) if field.name not in _SECTIONS}
        fields.pop("loss", None)
        assert list(shown) == list(fields)
        for name, field in fields.items():
            meaning, values, default, may_change = shown[name]
            assert (len(meaning) > 5, bool(values)) == (True, True), name
            if field.default_factory is not dataclasses.MISSING:
                assert json.loads(default) == field.default_factory()
            else:
                assert default == "needed" or json.loads(default) == field.default
            assert (default == "needed") == (field.default is field.default_factory)
            assert may_change == ("yes" if field.metadata.get("changeable") else "no")


_SECTIONS = {"data": DataConfig, "optimization": OptimizationConfig, "logging": LoggingConfig}


def test_what_an_option_says_survives_markdown():
    hook = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "hooks" / "tables.py")
    tables = importlib.util.module_from_spec(hook)
    hook.loader.exec_module(tables)
    parser = argparse.ArgumentParser(prog="x", description="Does *it* to <b>.")
    parser.add_argument("files", metavar="FILE", nargs="+", help="a|b or `c|*d*`")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("-n", "--number", metavar="N", default=3, help="of [x] (default: %(default)s)")
    group.add_argument("--kind", choices=["a_b", "c"], help="100%% of them")
    group.add_argument("--all", action="store_true", help="all")
    lines = tables.options_table(parser).splitlines()
    assert lines[0] == r"Does \*it\* to \<b>."
    assert lines[6:-2] == [
        r"| `FILE` | needed: a\|b or `c\|*d*` |",
        r"| `-n`, `--number` N | of \[x\] (default: 3); not together with `--kind`, `--all` |",
        r"| `--kind` a\_b, c | 100% of them; not together with `--number`, `--all` |",
        "| `--all` | all; not together with `--number`, `--kind` |",
    ]


def test_the_changelog_is_a_page(site):
    text = (site / "changelog.html").read_text(encoding="utf-8")
    assert "Upgrading" in text
    assert 'href="checkpoints.html"' in text


def test_the_first_page_leads_to_every_other():
    start = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"]({page.name}" not in start] == ["index.md"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium")
def test_pages_fit_a_phone(pages):
    """Nothing is wider than the screen, except for what scrolls by itself; meanings in tables have room."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": PHONE, "height": 800})
        for path in pages:
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE, path.name
            assert page.evaluate(_OVERFLOWING) == [], path.name
            if path.name in ("commands.html", "training-fields.html"):
                cell = page.locator(".generated td:nth-child(2)").first
                assert cell.bounding_box()["width"] > PHONE / 3
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium")
def test_the_search_finds_in_a_file(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto((site / "index.html").as_uri())
        page.set_default_timeout(20_000)
        page.click(".md-search__input")
        page.keyboard.type("pick a threshold")
        page.click(".md-search-result__link >> text=Pick a threshold")
        page.wait_for_url("**/thresholds.html*")
        browser.close()
