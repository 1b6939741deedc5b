"""A picture with the box that a finding is about, and the others of that picture."""

import cv2
import numpy as np

from ...data.images import read_picture

Corners = tuple[float, float, float, float]  # XYXY in pixels

_SIDE = 480  # pixels of the longer side, as drawn
_MARGIN = 0.25  # of a side: how far a box is shown that reaches outside
_SMALL = 14  # pixels: a box with both sides below gets a ring around it
_BEYOND = (196, 201, 206)
# RGB that the colour-blind tell apart (Okabe and Ito), also on a grey picture.
COLOURS = {"error": (213, 94, 0), "warning": (230, 159, 0), "info": (86, 180, 233)}


def draw(path: str, severity: str, box: Corners | None, others: list[Corners]) -> np.ndarray:
    """(H, W, 3), uint8, RGB: ``box`` in the colour of its severity, ``others`` thin and white.

    Where there is no ``box``, the others are what it is about. Raises whatever decoding does.
    """
    pixels = read_picture(path, "RGB")
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    size = [max(1, round(side * scale)) for side in (width, height)]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    margin = _margin(box, width, height, scale)
    pixels = cv2.resize(pixels, size, interpolation=how)
    canvas = cv2.copyMakeBorder(pixels, *(margin,) * 4, cv2.BORDER_CONSTANT, value=_BEYOND)
    placed = [_on(canvas, other, scale, margin) for other in others]
    line, width = ((255, 255, 255), 1) if box else (COLOURS[severity], 2)
    shade = canvas.copy()
    for corners in placed:
        cv2.rectangle(shade, *corners, (0, 0, 0), width + 2)
    canvas = cv2.addWeighted(shade, 0.4, canvas, 0.6, 0)
    for corners in placed:
        cv2.rectangle(canvas, *corners, line, width)
    if box:
        corners = _on(canvas, box, scale, margin)
        (x1, y1), (x2, y2) = corners
        for colour, more in (((255, 255, 255), 3), (COLOURS[severity], 0)):
            cv2.rectangle(canvas, *corners, colour, 2 + more, cv2.LINE_AA)
            if max(x2 - x1, y2 - y1) < _SMALL:
                centre = ((x1 + x2) // 2, (y1 + y2) // 2)
                cv2.circle(canvas, centre, 2 * _SMALL, colour, 2 + more, cv2.LINE_AA)
    return canvas


def _margin(box: Corners | None, width: int, height: int, scale: float) -> int:
    """Pixels, as drawn, to be added at each side so that what is outside can be seen."""
    if box is None:
        return 0
    x1, y1, x2, y2 = box
    over = max(-x1, -y1, x2 - width, y2 - height)
    if over <= 1:
        return 0
    return round(min(over * scale + 8, _MARGIN * _SIDE))


def _on(
    canvas: np.ndarray, box: Corners, scale: float, margin: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corners in pixels as drawn; what lies further out becomes a line at the edge."""
    height, width = canvas.shape[:2]
    corners = np.array(box, dtype=np.float64) * scale + margin
    x1, y1, x2, y2 = np.clip(corners, 2, np.tile((width - 3, height - 3), 2)).round().astype(int)
    return (int(x1), int(y1)), (int(x2), int(y2))
