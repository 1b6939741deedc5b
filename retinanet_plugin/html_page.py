"""Web pages that are one file: Jinja2 templates, with images and charts embedded."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

_HERE = Path(__file__).parent
_MAX_SIDE = 640  # pixels of an image
_QUALITY = 80  # of its JPEG, up to 100


def render(template: Path, *, title: str, script: str = "", **values: Any) -> str:
    """Renders a page that fetches nothing and runs no script except ``script``.

    All values are escaped, except those that are ``Markup`` already.

    Args:
        template: file of a Jinja2 template that extends ``page.html``, with the blocks ``style``
            and ``body``. ``page.css`` styles plain elements (a ``section`` is a card) and a few
            classes: ``lead``, ``note``, ``tiles`` and ``tile``, ``grid``, ``number``, ``error``,
            ``warning``, ``ok``.
        title: of the document, and its heading.
        script: trusted JavaScript, run when the document is complete.
        values: the variables of the template.
    """
    environment = Environment(
        loader=FileSystemLoader([_HERE, template.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # JSON.parse knows no NaN
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template(template.name).render(
        title=title,
        page_style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        page_script=Markup(script),
        script_digest=digest,
        **values,
    )
    # File names that are not UTF-8 hold lone surrogates, which cannot be encoded.
    return text.encode("utf-8", "replace").decode("utf-8")


def image_tag(rgb: np.ndarray, *, alt: str) -> Markup:
    """Returns an ``<img>`` with the image, (H, W, 3) uint8, embedded as a JPEG.

    Images with more than 640 pixels on a side are scaled down.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, _MAX_SIDE / max(height, width))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in (width, height))
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    ok, jpeg = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert ok
    source = base64.b64encode(jpeg.tobytes()).decode()
    tag = Markup('<img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}">')
    return tag.format(source, width, height, alt)


def figure_svg(figure: Figure, *, alt: str) -> Markup:
    """Returns an inline ``<svg>`` of a matplotlib figure.

    What is black in the figure takes the page's text color, in light and dark mode.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue().partition("<svg ")[2].replace("#000000", "currentColor")
    return Markup('<svg class="chart" role="img" aria-label="{}" ').format(alt) + Markup(svg)
