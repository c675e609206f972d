"""Pages of one file each that need no network: templates and the pictures they hold."""

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
# Tried in this order until a page is small enough, in pixels; None: as the picture is.
_WIDTHS = (None, 1500, 1100, 800, 560, 400, 280, 200)
_MAX_WEBP_SIDE = 16_383


def with_code(text: str) -> Markup:
    """Returns a text for HTML in which what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def with_whole_options(text: str) -> Markup:
    """Returns a text for HTML in which no line ends within the beginning of an option."""
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
        jinja2.UndefinedError: the template asks for a value that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(values)


def fit(draw: Callable[[int | None], str], widest: int | None = None) -> str:
    """Returns a page of at most `MAX_BYTES`, with pictures as large as that allows.

    Args:
        draw: returns the page with pictures at most so many pixels wide; None: as they are.
        widest: what the last page had, which is not going to be smaller; None: not known.

    Returns:
        The page with the narrowest pictures where none is small enough.
    """
    for width in _WIDTHS[_WIDTHS.index(widest) :]:
        page = draw(width)
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


def data_uri(image: Image.Image, width: int | None = None) -> str:
    """Returns an image as text that a page can hold, its pixels unchanged.

    In figures whose colour is a value, lossy compression would change the value.

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
        # More effort than this takes up to twice as long and gains a tenth.
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
