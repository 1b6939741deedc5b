"""Boxes with labels drawn into images, fast enough for video.

detectron2's ``Visualizer`` draws with matplotlib: it takes a hundred times as long, and its labels
move and fade from frame to frame. Here OpenCV draws the boxes and Pillow the text.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from math import ceil
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

from ..errors import printable

# RGB by class, repeated; the color-blind can tell them apart (Okabe and Ito).
COLORS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
_SHORT_SIDE = 320  # pixels; smaller images are enlarged, so that labels do not cover them
_MAX_LETTERS = 24  # of a class name


def enlargement(height: int, width: int) -> int:
    """By how much to enlarge an image before labels are drawn into it; 1 is not at all."""
    return ceil(_SHORT_SIDE / min(height, width))


def draw(
    image: np.ndarray, instances: Instances, classes: Sequence[str], enlarge: int = 1
) -> np.ndarray:
    """Returns a copy of an image with a box and a label, name and score, for each instance.

    Args:
        image: (H, W, 3) uint8, BGR.
        instances: ``pred_boxes``, ``pred_classes`` and, except for ground truth, ``scores``; the
            first are drawn on top.
        classes: names by class index.
        enlarge: how many times as large the copy is.
    """
    canvas = image.copy()
    if enlarge > 1:
        canvas = cv2.resize(canvas, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
    size = canvas.shape[:2]
    line, text_height = max(2, round(min(size) / 300)), min(max(round(min(size) / 45), 12), 64)
    boxes = (instances.pred_boxes.tensor * enlarge).round().int().tolist()
    class_ids = instances.pred_classes.tolist()
    texts = [printable(classes[class_id], _MAX_LETTERS) for class_id in class_ids]
    if instances.has("scores"):
        scores = instances.scores.tolist()
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
    labels = [_label(t, text_height, k) for t, k in zip(texts, class_ids, strict=True)]
    for class_id, (x0, y0, x1, y1) in reversed(list(zip(class_ids, boxes, strict=True))):
        cv2.rectangle(canvas, (x0, y0), (x1, y1), (0, 0, 0), line + 2)  # seen on any background
        cv2.rectangle(canvas, (x0, y0), (x1, y1), _color(class_id)[::-1], line)
    positions = _label_positions(boxes, labels, line, *size)
    for label, (x, y) in reversed(list(zip(labels, positions, strict=True))):
        region = canvas[y : y + label.shape[0], x : x + label.shape[1]]
        region[:] = label[: region.shape[0], : region.shape[1]]
    return canvas


def _color(class_id: int) -> tuple[int, int, int]:
    return COLORS[class_id % len(COLORS)]


@lru_cache(maxsize=4096)
def _label(text: str, text_height: int, class_id: int) -> np.ndarray:
    """(h, w, 3) BGR: text on its class's color, black or white, whichever is easier to read."""
    font, margin = font_of(text_height), text_height // 4
    red, green, blue = ((x / 255) ** 2.2 for x in _color(class_id))
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18  # where WCAG's contrasts are equal
    size = ceil(font.getlength(text)) + 2 * margin, sum(font.getmetrics())
    image = Image.new("RGB", size, _color(class_id))
    ink = (0, 0, 0) if light else (255, 255, 255)
    ImageDraw.Draw(image).text((margin, 0), text, fill=ink, font=font)
    return np.asarray(image)[:, :, ::-1]


@cache
def font_of(height: int) -> ImageFont.FreeTypeFont:
    """matplotlib's font, which has Latin, Greek, Cyrillic and more; height in pixels."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), height)


def _label_positions(
    boxes: Sequence[Sequence[int]], labels: Sequence[np.ndarray], line: int, height: int, width: int
) -> list[tuple[int, int]]:
    """Left and top of each label: at its box, inside the image, off other labels if possible."""
    taken: list[tuple[int, int, int, int]] = []
    edge = line // 2 + 1
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        h, w = label.shape[:2]
        above, last_x, last_y = y0 - edge - h, max(width - w, 0), max(height - h, 0)
        corners = [
            (x0 - edge, above),
            (x0 - edge, y1 + edge),
            (x0 + edge, y0 + edge),
            (x1 + edge, y0 - edge),
        ]
        positions = [(min(max(x, 0), last_x), y) for x, y in corners]
        free = (
            (x, y)
            for x, y in positions
            if 0 <= y <= last_y
            and not any(
                x < right and left < x + w and y < bottom and top < y + h
                for left, top, right, bottom in taken
            )
        )
        x, y = next(free, (positions[0][0], min(max(above, 0), last_y)))
        taken.append((x, y, x + w, y + h))
    return [(x, y) for x, y, _, _ in taken]
