"""The demo in a browser: from a picture to its file and back, as a person would do it."""

import shutil
import threading

import numpy as np
import pytest
from html_page import Page
from noise_photo import noise_photo

from alit_hf.codes.token_file import TokenFile
from alit_hf.demo.rendering import attention_overlay
from alit_hf.demo.serving import served_demo


playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]

PATIENCE = 120_000  # milliseconds, for a machine that is busy
QUIET = ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync")


@pytest.fixture(scope="module")
def url(tokenizer):
    with served_demo(tokenizer) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[f"--{option}" for option in QUIET])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, url):
    """The page at a width and in a colour scheme, once its first example is there; no script may fail on it."""
    contexts, errors = [], []

    def make(width: int = 1280, scheme: str = "light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#first-strip figure")
        return page

    yield make
    for context in contexts:
        context.close()
    assert not errors


def drop_in(page, path, view: str = "first") -> None:
    page.set_input_files(f"#{view}-file input[type=file]", path)


def shown(page, view: str = "first") -> Page:
    return Page(page.inner_html(f"#{view}-chosen"))


def move_slider(page, threshold: float) -> None:
    page.fill("#threshold input[type=number]", str(threshold))
    page.press("#threshold input[type=number]", "Tab")


def framed(page) -> list[int]:
    """Which pictures of the strip have a frame, from 0."""
    styles = "pictures => pictures.map(picture => getComputedStyle(picture).outlineStyle)"
    return [i for i, style in enumerate(page.eval_on_selector_all("#first-strip img", styles)) if style != "none"]


def test_from_a_picture_to_its_file_and_back(open_page, tokenizer, drop, tmp_path):
    page = open_page()
    encoded = tokenizer.encode("holiday.png", noise_photo(5))

    drop_in(page, drop("holiday.png", noise_photo(5)))
    page.wait_for_selector("#first-chosen :text('holiday.png')")
    assert np.array_equal(shown(page).pictures()[0], encoded.original)
    assert page.locator("#first-strip figure").count() == 4

    for threshold, num_tokens in ((0.0, 12), (0.3, 3)):
        move_slider(page, threshold)
        page.wait_for_selector(f"#first-chosen b:text-is('{num_tokens} tokens')")
        page.wait_for_function(f"document.querySelectorAll('#first-tokens button').length == {num_tokens}")
        assert framed(page) == [num_tokens // 3 - 1]

    move_slider(page, 0.0)
    page.wait_for_selector("#first-chosen b:text-is('12 tokens')")
    chosen = encoded.choose(0.0)
    page.click("#first-tokens button[data-token='7']")
    page.wait_for_selector("#first-chosen b:text('Token 8')")
    assert np.array_equal(shown(page).pictures()[2], attention_overlay(chosen.picture, chosen.maps[7]))

    with page.expect_download() as download:
        page.click("#first-chosen .alit-download")
    assert download.value.suggested_filename == "holiday-12.alit"
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert TokenFile.load(path) == encoded.token_files[3]

    drop_in(page, path)
    page.wait_for_selector("#first-chosen :text('is not in the file')")
    decoded = shown(page).pictures()[0]
    assert np.abs(np.subtract(decoded, chosen.picture, dtype=np.int16)).max() <= 1
    assert framed(page) == []
    page.click("#first-tokens button[data-token='2']")
    page.wait_for_selector("#first-chosen b:text('Token 3')")


def test_wrong_file_ends_in_a_friendly_message(open_page, drop):
    page = open_page()
    before = page.inner_html("#first-chosen")
    drop_in(page, drop("notes.txt", b"dear diary"))
    page.wait_for_selector("#first-message [role=alert]:text('notes.txt is not a picture')")
    assert page.inner_html("#first-chosen") == before
    drop_in(page, drop("next.png", noise_photo(1)))
    page.wait_for_selector("#first-chosen :text('next.png')")
    assert page.locator("[role=alert]").count() == 0


def test_large_file_ends_in_a_message(open_page, drop):
    page = open_page()
    drop_in(page, drop("large.png", b"x" * (21 * 2**20)))
    page.wait_for_selector(":text-matches('too large|exceeds|at most|maximum', 'i')")


def test_slider_may_move_while_a_picture_waits(open_page, tokenizer, drop, monkeypatch):
    page, goes_on, encode = open_page(), threading.Event(), tokenizer.encode

    def slow(name, image):
        assert goes_on.wait(60)
        return encode(name, image)

    monkeypatch.setattr(tokenizer, "encode", slow)
    move_slider(page, 0.3)
    drop_in(page, drop("late.png", noise_photo(4)))
    open_page()  # shows the first example without a turn
    move_slider(page, 0.0)
    goes_on.set()
    page.wait_for_selector("#first-chosen :text('late.png')")
    page.wait_for_selector("#first-chosen b:text-is('12 tokens')")


def test_second_view_is_empty_after_the_slider_moved(open_page):
    page = open_page()
    move_slider(page, 0.0)
    page.wait_for_selector("#first-chosen b:text-is('12 tokens')")
    page.check("#compare input")
    page.wait_for_selector("#second-examples img")
    page.wait_for_timeout(1000)
    assert "Error rendering" not in page.content()
    page.click("#second-examples button[data-example=coffee]")
    page.wait_for_selector("#second-chosen b:text-is('coffee')")
    assert "Error rendering" not in page.content()


def test_examples_and_two_pictures_side_by_side(open_page, drop):
    page = open_page()
    page.click("#first-examples button[data-example=cat]")
    page.wait_for_selector("#first-chosen b:text-is('cat')")
    page.check("#compare input")
    drop_in(page, drop("other.png", noise_photo(2)), "second")
    page.wait_for_selector("#second-chosen :text('other.png')")
    assert "cat" in shown(page).text
    move_slider(page, 0.0)
    for view in ("first", "second"):
        page.wait_for_selector(f"#{view}-chosen b:text-is('12 tokens')")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_is_in_the_colours_that_are_asked_for(open_page, tmp_path, width, scheme):
    page = open_page(width, scheme)
    page.check("#compare input")
    page.wait_for_selector("#second-file")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in page.locator("label, button, figure, img, h1").all():
        box = part.bounding_box()
        if box is not None:  # it is not hidden
            assert (box["x"] >= 0, box["x"] + box["width"] <= width) == (True, True), part.evaluate("e => e.outerHTML")
    assert page.locator("#first-examples img").first.bounding_box()["width"] > 40
    tops = [figure.bounding_box()["y"] for figure in page.locator("#first-chosen figure").all()]
    assert (len(set(tops)) == 1) == (width == 1280)
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert (sum(page.evaluate(brightness)) > 384) == (scheme == "light")
