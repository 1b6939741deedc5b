"""Boxes with labels drawn into pictures, quickly enough for video.

The same drawing serves pictures, video and what an evaluation draws. detectron2's ``Visualizer`` is
matplotlib's: it takes a hundred times as long, and shifts and fades its labels from frame to frame.
Here OpenCV draws the boxes, and each text is set once, by Pillow, whose fonts know more than ASCII.
"""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from math import ceil
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

from ..errors import printable

# RGB that the colour-blind tell apart (Okabe and Ito), by class; an eighth class begins anew.
COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
_SHORT_SIDE = 320  # pixels; smaller pictures are enlarged, so that labels leave something to see
_MOST_LETTERS = 24  # of a class's name


def enlargement(height: int, width: int) -> int:
    """By how much a picture is to be enlarged before labels are written into it; 1: not at all."""
    return ceil(_SHORT_SIDE / min(height, width))


def draw(
    picture: np.ndarray, found: Instances, classes: Sequence[str], enlarge: int = 1
) -> np.ndarray:
    """A copy of a picture with a box and a label, name and score, for each detection.

    Args:
        picture: (H, W, 3) uint8, BGR.
        found: ``pred_boxes``, ``pred_classes`` and, but for ground truth, ``scores``; the first are
            drawn on top.
        classes: names by class index.
        enlarge: how many times as large the copy is.
    """
    canvas = picture.copy()
    if enlarge > 1:
        canvas = cv2.resize(canvas, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
    height, width = canvas.shape[:2]
    line, letters = max(2, round(min(height, width) / 300)), _size_of_letters(height, width)
    boxes = (found.pred_boxes.tensor * enlarge).round().int().tolist()
    kinds = found.pred_classes.tolist()
    texts = [printable(classes[kind], _MOST_LETTERS) for kind in kinds]
    if found.has("scores"):
        scores = found.scores.tolist()
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
    labels = [_label(text, letters, kind) for text, kind in zip(texts, kinds, strict=True)]
    for kind, (left, top, right, bottom) in reversed(list(zip(kinds, boxes, strict=True))):
        corners = (left, top), (right, bottom)
        cv2.rectangle(canvas, *corners, (0, 0, 0), line + 2)  # seen on any ground
        cv2.rectangle(canvas, *corners, _colour(kind)[::-1], line)
    places = _places(boxes, [label.shape[:2] for label in labels], line, (height, width))
    for label, (left, top) in reversed(list(zip(labels, places, strict=True))):
        room = canvas[top : top + label.shape[0], left : left + label.shape[1]]
        room[:] = label[: room.shape[0], : room.shape[1]]
    return canvas


def _size_of_letters(height: int, width: int) -> int:
    return min(max(round(min(height, width) / 45), 12), 64)


def _colour(kind: int) -> tuple[int, int, int]:
    return COLOURS[kind % len(COLOURS)]


@lru_cache(maxsize=4096)
def _label(text: str, letters: int, kind: int) -> np.ndarray:
    """(h, w, 3) BGR: the text on its class's colour, black or white, whichever is read better."""
    font, margin = font_of(letters), letters // 4
    red, green, blue = ((x / 255) ** 2.2 for x in _colour(kind))
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18  # where WCAG's contrasts are equal
    size = ceil(font.getlength(text)) + 2 * margin, sum(font.getmetrics())
    image = Image.new("RGB", size, _colour(kind))
    ink = (0, 0, 0) if light else (255, 255, 255)
    ImageDraw.Draw(image).text((margin, 0), text, fill=ink, font=font)
    return np.asarray(image)[:, :, ::-1]


@cache
def font_of(letters: int) -> ImageFont.FreeTypeFont:
    """Of a height in pixels: matplotlib's own, which knows Latin, Greek, Cyrillic and more."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), letters)


def _places(
    boxes: Iterable[Sequence[int]],
    sizes: Iterable[tuple[int, ...]],
    line: int,
    picture: tuple[int, int],
) -> list[tuple[int, int]]:
    """Left and top of each label: at its box and in the picture, off the others where possible."""
    taken = np.empty((0, 4), dtype=np.int64)
    places = []
    for (left, top, right, bottom), (height, width) in zip(boxes, sizes, strict=True):
        edge = line // 2 + 1
        candidates = [
            (left - edge, top - edge - height),  # above the box
            (left - edge, bottom + edge),  # below
            (left + edge, top + edge),  # inside
            (right + edge, top - edge),  # beside
        ]
        inside = [
            (
                min(max(x, 0), max(picture[1] - width, 0)),
                min(max(y, 0), max(picture[0] - height, 0)),
            )
            for x, y in candidates
        ]
        free = [
            place
            for given, place in zip(candidates, inside, strict=True)
            if given[1] == place[1] and not _overlaps(taken, *place, height, width)
        ]
        place = (free or inside)[0]
        taken = np.vstack([taken, [*place, place[0] + width, place[1] + height]])
        places.append(place)
    return places


def _overlaps(taken: np.ndarray, left: int, top: int, height: int, width: int) -> bool:
    apart = (
        (taken[:, 0] >= left + width)
        | (taken[:, 2] <= left)
        | (taken[:, 1] >= top + height)
        | (taken[:, 3] <= top)
    )
    return not apart.all()
