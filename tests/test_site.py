"""The built documentation works where its pages are opened as files: without a server, and without other sites."""

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


pytest.importorskip("mkdocs", reason="mkdocs builds the site: pip install -e '.[docs]'")
ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")


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
