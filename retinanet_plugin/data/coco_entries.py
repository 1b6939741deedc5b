"""What the entries of a COCO detection JSON must be, and how a fault in one is told.

Each check looks at all entries of a list and raises one sentence: the first entry at fault, what
was found there, what is allowed, what to do, and how many more there are. The rules themselves,
each a :class:`Field` or :func:`box_faults`, serve :mod:`..analysis.dataset_check` too.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, printable

Row = dict[str, Any]

MAX_COORDINATE = 1e9  # far beyond any picture, far below where sums and areas overflow
OUTSIDE_TOLERANCE = 1.0  # pixels: rounding and 1-based boxes; detectron2 clips this much away
MAX_NAME = 250  # characters of a class's name
_NUMBERS = {int, float}
# C0 and C1, which terminals obey, Unicode's of line ends and writing direction, and surrogates
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Entries:
    """One of a file's lists, and how a fault in it is told."""

    file: Path
    name: str  # "categories", "images" or "annotations"
    rows: list[Row]

    def refuse(self, bad: Iterable[int], fault: Callable[[Row], str]) -> None:
        """Raises UserError for the first index in ``bad`` and counts the others, if there are."""
        indices = list(bad)
        if not indices:
            return
        row = self.rows[indices[0]]
        known_as = f" (id {show(row['id'])})" if isinstance(row, dict) and "id" in row else ""
        others = f" ({len(indices) - 1} more like it)" if len(indices) > 1 else ""
        entry = f"{self.name}[{indices[0]}]{known_as}"
        raise UserError(f"{self.file}: {entry}: {fault(row)}{others}")

    def require(self, fields: "Iterable[Field]") -> None:
        """Raises UserError for the first of ``fields`` that a row lacks or has otherwise."""
        for field in fields:
            self.refuse((i for i, row in enumerate(self.rows) if not field.fits(row)), field.fault)

    def require_unique(self, key: str) -> None:
        """Raises UserError where two rows have the same ``key``, which must be hashable."""
        first: dict[Any, int] = {}
        for i, row in enumerate(self.rows):
            first.setdefault(row[key], i)
        bad = (i for i, row in enumerate(self.rows) if first[row[key]] != i)
        self.refuse(
            bad,
            lambda row: (
                f"{key} {show(row[key])} is taken by {self.name}[{first[row[key]]}] already; "
                f"each entry needs its own"
            ),
        )


@dataclass(frozen=True)
class Field:
    """What an entry must hold under ``key``, tested and in words."""

    key: str
    allowed: Callable[[Any], bool]
    must: str

    def fits(self, row: Row) -> bool:
        return self.allowed(row.get(self.key))

    def fault(self, row: Row) -> str:
        found = f"is {show(row[self.key])}" if self.key in row else "is missing"
        return f"{self.key} {found}; it must be {self.must}"


def show(value: object) -> str:
    """``value`` as the JSON has it, on one line, printable and short."""
    return printable(json.dumps(value, ensure_ascii=False), 80)


def shortened(words: Iterable[object], most: int = 10) -> str:
    """``a, b, c and 7 more``."""
    items = [str(word) for word in words]
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def check_categories(categories: Entries) -> None:
    categories.require(CATEGORY_FIELDS)
    categories.require_unique("id")
    categories.require_unique("name")


def check_images(images: Entries) -> None:
    images.require(IMAGE_FIELDS)
    images.require_unique("id")


def check_annotations(annotations: Entries, images: Entries, categories: Entries) -> None:
    annotations.require(ANNOTATION_FIELDS)
    annotations.refuse(
        (i for i, row in enumerate(annotations.rows) if row.get("ignore", 0) != 0),
        fault_of_ignore,
    )
    pictures = {row["id"] for row in images.rows}
    annotations.refuse(
        (i for i, row in enumerate(annotations.rows) if row["image_id"] not in pictures),
        lambda row: (
            f'image_id {row["image_id"]} is the id of no picture in "images"; add the picture '
            f"or remove the annotation"
        ),
    )
    known = sorted(row["id"] for row in categories.rows)
    declared = set(known)
    annotations.refuse(
        (i for i, row in enumerate(annotations.rows) if row["category_id"] not in declared),
        lambda row: (
            f'category_id {row["category_id"]} is not declared in "categories" (known: '
            f"{shortened(known)}); declare it or remove the annotation"
        ),
    )


def check_boxes(annotations: Entries, images: Entries, bad_boxes: str) -> list[str]:
    """Refuses boxes that are empty or outside, or mends them in place and says how many."""
    picture = {row["id"]: row for row in images.rows}
    rows = annotations.rows
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    sizes = [
        (picture[row["image_id"]]["width"], picture[row["image_id"]]["height"]) for row in rows
    ]
    limit = np.array(sizes, dtype=np.float64).reshape(-1, 2)
    empty, outside, gone, inner = box_faults(boxes, limit)
    if bad_boxes == "fix":
        clipped = np.flatnonzero(outside & ~gone)
        for i in clipped:
            rows[i].update(bbox=inner[i].tolist(), area=None)  # the area is filled in later
        rows[:] = [rows[i] for i in np.flatnonzero(~gone)]
        return _counted(("boxes clipped", len(clipped)), ("boxes dropped", int(gone.sum())))
    remedy = 'or set DATASETS.OWN.BAD_BOXES to "fix"'
    annotations.refuse(
        np.flatnonzero(empty),
        lambda row: f"{fault_of_empty(row)}; mend it, remove the annotation, {remedy}",
    )

    def reaches_outside(row: Row) -> str:
        image = picture[row["image_id"]]
        return (
            f"bbox {show(row['bbox'])} reaches outside its picture {show(image['file_name'])}, "
            f"which the JSON says is {image['width']} x {image['height']}; mend it, {remedy}"
        )

    annotations.refuse(np.flatnonzero(outside), reaches_outside)
    return []


def box_faults(
    boxes: np.ndarray, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which boxes are empty, and which reach further outside their picture than rounding does.

    Args:
        boxes: (M, 4) float64, XYWH in pixels; limit: (M, 2), width and height of their pictures.

    Returns:
        empty, outside, gone: (M,) bool; outside are not empty, gone are empty or have nothing in
        the picture; and the boxes clipped to it, (M, 4), XYWH.
    """
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inner_start, inner_end = np.clip(start, 0, limit), np.clip(end, 0, limit)
    empty = (end <= start).any(axis=1)
    gone = (inner_end <= inner_start).any(axis=1)
    reaching = (start < -OUTSIDE_TOLERANCE) | (end > limit + OUTSIDE_TOLERANCE)
    outside = (reaching.any(axis=1) | gone) & ~empty
    return empty, outside, gone, np.concatenate([inner_start, inner_end - inner_start], axis=1)


def fault_of_empty(row: Row) -> str:
    return f"bbox {show(row['bbox'])} has no width or no height above 0"


def fault_of_ignore(row: Row) -> str:
    return (
        f"ignore is {show(row['ignore'])}, which detectron2 does not know; remove the annotation "
        f'or write "iscrowd": 1 instead'
    )


def fill_in(annotations: Entries) -> list[str]:
    """Fills in, in place, what COCO's evaluation needs and can be known; says how often."""
    rows = annotations.rows
    areas = [row for row in rows if row.get("area") is None or row["area"] < 0]
    for row in areas:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    crowds = [row for row in rows if type(row.get("iscrowd")) is not int]
    for row in crowds:
        row["iscrowd"] = int(row.get("iscrowd") or 0)
    # detectron2 leaves out a box whose outline it cannot use; a detector of boxes needs no outline
    outlines = [row for row in rows if not _is_outline(row.get("segmentation"))]
    for row in outlines:
        del row["segmentation"]
    keypoints = [row for row in rows if not _is_coordinates(row.get("keypoints") or [])]
    for row in keypoints:
        del row["keypoints"]
    # Evaluation takes a match with id 0 for none, and detectron2 refuses ids that come twice
    ids = {row.get("id") for row in rows if is_id(row.get("id")) and row["id"] > 0}
    renumbered = len(rows) if len(ids) < len(rows) else 0
    if renumbered:
        for i, row in enumerate(rows, start=1):
            row["id"] = i
    return _counted(
        ("areas filled in", len(areas)),
        ("iscrowd flags filled in", len(crowds)),
        ("unusable segmentations left out", len(outlines)),
        ("unusable keypoints left out", len(keypoints)),
        ("annotation ids numbered anew", renumbered),
    )


def _counted(*notes: tuple[str, int]) -> list[str]:
    return [f"{what}: {count}" for what, count in notes if count]


def is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_COORDINATE


def _is_text(value: Any) -> bool:
    return type(value) is str and bool(value.strip()) and not _CONTROL.search(value)


def _is_name(value: Any) -> bool:
    return _is_text(value) and len(value) <= MAX_NAME


def _stays_inside(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    return parts[0] != "" and ".." not in parts and not re.match(r"[A-Za-z]:", name)


def is_numbers(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) <= _NUMBERS


def _is_coordinates(value: Any) -> bool:
    return is_numbers(value) and all(-MAX_COORDINATE < number < MAX_COORDINATE for number in value)


def _is_box(value: Any) -> bool:
    return _is_coordinates(value) and len(value) == 4


def _is_area(value: Any) -> bool:
    return value is None or (type(value) in _NUMBERS and abs(value) < MAX_COORDINATE**2)


def _is_flag(value: Any) -> bool:
    return value is None or value in (0, 1)


def _is_outline(value: Any) -> bool:
    """Whether detectron2's loader takes the segmentation: none, a polygon or a run-length code."""
    if not value:
        return True
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if type(size) is not list or len(size) != 2 or not all(map(_is_side, size)):
            return False
        return type(counts) is str or (
            type(counts) is list and all(count == 0 or _is_side(count) for count in counts)
        )
    if type(value) is not list or not all(map(is_numbers, value)):
        return False
    return any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in value)


_TEXT = "a text that is not empty, without line breaks and other control characters"
CLASS_NAME = Field("name", _is_name, f"{_TEXT}, of at most {MAX_NAME} characters")
CATEGORY_FIELDS = (Field("id", is_id, "a whole number"), CLASS_NAME)
FILE_NAME = Field("file_name", _is_text, _TEXT)
PICTURE_FIELDS = (  # which picture an entry of images is of
    Field("id", is_id, "a whole number"),
    FILE_NAME,
    Field("file_name", _stays_inside, 'relative to the image folder, without drive or ".."'),
)
SIZE_FIELDS = tuple(
    Field(side, _is_side, "a whole number of pixels above 0") for side in ("width", "height")
)
IMAGE_FIELDS = (*PICTURE_FIELDS, *SIZE_FIELDS)
BOX_FIELDS = (  # what is where
    Field("image_id", is_id, "the id of an entry in images, a whole number"),
    Field("category_id", is_id, "the id of an entry in categories, a whole number"),
    Field("bbox", _is_box, f"four finite numbers [x, y, width, height] below {MAX_COORDINATE:.0e}"),
)
EXTRA_FIELDS = (
    Field("area", _is_area, "a number of square pixels, or left out"),
    Field("iscrowd", _is_flag, "0 or 1, or left out"),
)
ANNOTATION_FIELDS = (*BOX_FIELDS, *EXTRA_FIELDS)
