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
    x1, y1, x2, y2 = box or (0, 0, 0, 0)
    beyond = max(-x1, -y1, x2 - width, y2 - height)  # pixels
    margin = round(min(beyond * scale + 8, _MARGIN * _SIDE)) if beyond > 1 else 0
    size = [max(1, round(side * scale)) for side in (width, height)]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = cv2.resize(image, size, interpolation=method)
    canvas = cv2.copyMakeBorder(image, *(margin,) * 4, cv2.BORDER_CONSTANT, value=_BEYOND)
    # What lies further out becomes a line at the edge.
    limits = np.tile(canvas.shape[1::-1], 2) - 3

    def outline(box: Box, *strokes: tuple[tuple[int, int, int], int]) -> None:
        corners = np.clip(np.array(box, dtype=np.float64) * scale + margin, 2, limits)
        x1, y1, x2, y2 = corners.round().astype(int).tolist()
        for color, thickness in strokes:
            cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)
            if thickness > 1 and max(x2 - x1, y2 - y1) < _SMALL:
                center = ((x1 + x2) // 2, (y1 + y2) // 2)
                cv2.circle(canvas, center, 2 * _SMALL, color, thickness, cv2.LINE_AA)

    color = COLORS[severity]
    for other in others:
        outline(other, *([(_WHITE, 1)] if box else [(_WHITE, 4), (color, 2)]))
    if box:
        outline(box, (_WHITE, 5), (color, 2))
    return canvas
