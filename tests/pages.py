"""What a browser would make of a page."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

# Text that ends an element, an attribute or an entity if it is not escaped.
NASTY = """<script>alert("x")</script>'&amp;"""
_LOADING = ("src", "href", "srcset", "data", "poster", "action")


class Page(HTMLParser):
    """Collects elements, text and addresses of a page.

    Attributes:
        tags: every element's name.
        text: of everything outside scripts and styles.
        cells: text of every table cell.
        attributes: every attribute's value, by name.
        pictures: pixels (H, W, C) of every image, by its alternative text.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.pictures: dict[str, np.ndarray] = {}
        self._raw = self._cell = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._raw = tag in ("script", "style")
        if tag in ("td", "th"):
            self._cell = True
            self.cells.append("")
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")
        if tag == "img":
            of = dict(attrs)
            self.pictures[of["alt"] or ""] = pixels(of["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data
            if self._cell:
                self.cells[-1] += data

    @property
    def addresses(self) -> list[str]:
        """Everything a browser would load or lead to."""
        return [value for name in _LOADING for value in self.attributes.get(name, [])]


def check_fits_narrow_screens(source: str) -> None:
    """Checks that nothing on a page is wider than a telephone, unless it scrolls by itself."""
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in source
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert re.search(r"\bimg \{[^}]*max-width: 100%", style)
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", style)
    assert "nowrap" not in style
    for least, number, unit in re.findall(r"(?<!max-)\b(min-)?width: ([\d.]+)(px|rem)\b", style):
        assert float(number) * {"px": 1, "rem": 16}[unit] <= 260, (least, number, unit)
    assert "columns: 2" not in style or re.search(r"max-width: 800px\) \{[^}]*columns: 1", style)


def pixels(uri: str) -> np.ndarray:
    """Decodes a picture that a page holds."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def check_needs_no_network(source: str) -> None:
    """Checks that a page loads nothing but what it holds itself."""
    page = Page(source)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    for address in page.addresses:
        assert address.startswith("data:image/") or "://" not in address
        assert not address.startswith("//")
    for words in ("url(", "@import", "fetch(", "XMLHttpRequest"):
        assert words not in source
