"""What is in a piece of HTML, for tests of pages."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """The elements of a piece of HTML, as (tag, attributes), and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + "\n"

    def all(self, tag: str) -> list[dict]:
        return [attributes for found, attributes in self.elements if found == tag]

    def pictures(self) -> list[Image.Image]:
        return [Image.open(io.BytesIO(payload(image["src"], "image/png"))) for image in self.all("img")]


def payload(uri: str, kind: str) -> bytes:
    """The bytes of a `data:` address of that media type."""
    head, _, data = uri.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(data)
