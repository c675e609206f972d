"""Pages in a single file that need no network: templates, with embedded pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from PIL import Image

from utils.text import format_value

MAX_BYTES = 20_000_000
# Widths in pixels to try until a page is small enough; None: the picture's own.
_WIDTHS = (None, 1500, 1100, 800, 560, 400, 280, 200)
_MAX_WEBP_SIDE = 16_383


def with_code(text: str) -> Markup:
    """Returns a text as HTML, with `<code>` for backticks."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def with_whole_options(text: str) -> Markup:
    """Returns a text as HTML in which lines do not break inside the first word of an option."""
    return Markup(re.sub(r"\(?--\w+", r"<span class=option>\g<0></span>", str(escape(text))))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["format_value"] = format_value
_ENVIRONMENT.filters["with_code"] = with_code
_ENVIRONMENT.filters["with_whole_options"] = with_whole_options


def render(template: str, **values: Any) -> str:
    """Fills a template of `utils/templates/`; in HTML every value is escaped.

    Raises:
        jinja2.UndefinedError: the template needs a value that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(values)


def fit(draw: Callable[[int | None], str], widest: int | None = None) -> str:
    """Returns a page of at most `MAX_BYTES`, with pictures as large as that allows.

    Args:
        draw: returns the page with pictures of at most this width in pixels; None: their own.
        widest: width in the previous page, to start with, as pages only grow; None: not known.

    Returns:
        The page with the narrowest pictures, if none is small enough.
    """
    for width in _WIDTHS[_WIDTHS.index(widest) :]:
        page = draw(width)
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


def data_uri(image: Image.Image, width: int | None = None) -> str:
    """Returns an image as text to embed in a page, its pixels unchanged.

    Lossy compression would change the values that colours stand for.

    Args:
        image: any.
        width: in pixels; a wider image is resampled to it. None: never.
    """
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if width is not None and image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    kind = "webp" if max(image.size) <= _MAX_WEBP_SIDE else "png"
    if kind == "webp":
        # Higher compression takes up to twice as long and saves a tenth.
        image.save(file, "WEBP", lossless=True, exact=True, quality=20, method=1)
    else:
        image.save(file, "PNG")
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_uri(file: Path, width: int | None = None) -> str:
    """Returns the image in a file, as `data_uri` does."""
    return data_uri(picture_in(file), width)


def picture_in(file: Path) -> Image.Image:
    """Returns the image in a file of a run's folder."""
    with Image.open(file) as image:
        image.load()
        return image
