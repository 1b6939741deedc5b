"""Draws the box of a finding, and the other boxes of its image."""

from collections.abc import Sequence

import cv2
import numpy as np

from ...data.findings import Box
from ...data.images import read_image

_SIDE = 480  # pixels of the longer side, as drawn
_MARGIN = 0.25  # share of a side that is shown beyond the image for boxes that reach outside
_SMALL = 14  # pixels: smaller boxes get a ring around them
_BEYOND = (196, 201, 206)
_WHITE = (255, 255, 255)
# RGB that color-blind people can tell apart (Okabe and Ito), also on gray images.
COLORS = {"error": (213, 94, 0), "warning": (230, 159, 0), "info": (86, 180, 233)}


def draw(path: str, severity: str, box: Box | None, others: Sequence[Box]) -> np.ndarray:
    """Draws ``box`` in the color of its severity, and ``others`` thin and white.

    Without a ``box``, the others have the color. Raises whatever decoding raises.

    Returns:
        (H, W, 3) uint8, RGB
    """
    image = read_image(path, "RGB")
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    margin = _margin(box, width, height, scale)
    size = [max(1, round(side * scale)) for side in (width, height)]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = cv2.resize(image, size, interpolation=method)
    canvas = cv2.copyMakeBorder(image, *(margin,) * 4, cv2.BORDER_CONSTANT, value=_BEYOND)
    color, thickness = (_WHITE, 1) if box else (COLORS[severity], 2)
    corners = [_on_canvas(canvas, other, scale, margin) for other in others]
    shade = canvas.copy()
    for first, last in corners:
        cv2.rectangle(shade, first, last, (0, 0, 0), thickness + 2)
    canvas = cv2.addWeighted(shade, 0.4, canvas, 0.6, 0)
    for first, last in corners:
        cv2.rectangle(canvas, first, last, color, thickness)
    if box:
        (x1, y1), (x2, y2) = _on_canvas(canvas, box, scale, margin)
        for color, thickness in ((_WHITE, 5), (COLORS[severity], 2)):
            cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)
            if max(x2 - x1, y2 - y1) < _SMALL:
                center = ((x1 + x2) // 2, (y1 + y2) // 2)
                cv2.circle(canvas, center, 2 * _SMALL, color, thickness, cv2.LINE_AA)
    return canvas


def _margin(box: Box | None, width: int, height: int, scale: float) -> int:
    """Pixels, as drawn, added on each side to show how far a box reaches outside."""
    x1, y1, x2, y2 = box or (0, 0, 0, 0)
    over = max(-x1, -y1, x2 - width, y2 - height)
    return round(min(over * scale + 8, _MARGIN * _SIDE)) if over > 1 else 0


def _on_canvas(
    canvas: np.ndarray, box: Box, scale: float, margin: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners in pixels as drawn; what lies further out becomes a line at the edge."""
    height, width = canvas.shape[:2]
    corners = np.array(box, dtype=np.float64) * scale + margin
    x1, y1, x2, y2 = np.clip(corners, 2, np.tile((width - 3, height - 3), 2)).round().astype(int)
    return (int(x1), int(y1)), (int(x2), int(y2))
