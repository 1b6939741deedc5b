"""Pages to look at in a browser: one file, no network, and all that people named shown as text."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_STYLE = Path(__file__).with_name("page.css")


def page(title: str, body: str, *, script: str = "", style: str = "") -> str:
    """A whole document, for phones and desktops, light and dark as the reader's system is.

    A policy in the document forbids it to fetch anything, and to run any script but ``script``.
    ``page.css`` styles plain elements (``section`` is a card with its ``h2``; tables, ``details``,
    ``figure``) and a few classes: ``lead``, ``note``, ``tiles`` and ``tile``, ``grid``, ``error``,
    ``warning``, ``ok``.

    Args:
        title: text, the heading too.
        body: HTML that follows the heading.
        script: JavaScript, run when the document is complete.
        style: CSS after that of ``page.css``.
    """
    script, style = (_one_kind_of_newline(part) for part in (script, style))
    assert "</script" not in script.lower() and "</style" not in style.lower()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # 'unsafe-inline' is of styles alone: a script runs only if it is this one.
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n"
        f"<style>{_STYLE.read_text(encoding='utf-8')}{style}</style>\n"
        f"</head>\n<body>\n<main>\n<h1>{text(title)}</h1>\n{body}\n</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _one_kind_of_newline(code: str) -> str:
    """As the browser reads it, which the script's digest is of."""
    return code.replace("\r\n", "\n").replace("\r", "\n")


def text(value: object) -> str:
    """As HTML that shows it, also within an attribute in double quotes."""
    # A file name that is not UTF-8 holds lone surrogates, which no page can.
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def image(rgb: np.ndarray, *, alt: str, max_side: int = 640, quality: int = 80) -> str:
    """An ``<img>`` that holds its picture as a JPEG.

    Args:
        rgb: (H, W, 3), uint8.
        alt: text for those who cannot see it.
        max_side: pixels; a larger picture is made smaller.
        quality: of the JPEG, up to 100.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in (width, height))
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    source = base64.b64encode(jpeg.tobytes()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{source}" width="{width}" height="{height}" '
        f'alt="{text(alt)}">'
    )


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, numeric: Iterable[int] = ()
) -> str:
    """Cells as text; where it is wider than the screen, it alone scrolls.

    Args:
        numeric: which columns hold numbers, to be set flush right.
    """
    kinds = dict.fromkeys(numeric, ' class="number"')

    def line(cells: Sequence[object], tag: str) -> str:
        return "".join(
            f"<{tag}{kinds.get(i, '')}>{text(cell)}</{tag}>" for i, cell in enumerate(cells)
        )

    lines = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{line(header, "th")}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody>\n</table></div>"
    )


def data(identifier: str, value: Any) -> str:
    """``value`` as JSON, for the script to read by the element's ``identifier``.

    No text in it can end the element; NaN and infinity become null.
    """
    code = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # only strings can hold them
        code = code.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{text(identifier)}">{code}</script>'


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
