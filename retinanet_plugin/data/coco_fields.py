"""The form that the fields of COCO categories, images and annotations must have."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import printable

Row = dict[str, Any]

MAX_COORDINATE = 1e9  # far beyond any image, far below where sums and areas overflow
MAX_NAME = 250  # characters of a class name
_NUMBERS = {int, float}
# C0 and C1, which terminals obey, Unicode's line ends and writing directions, and surrogates
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Field:
    """The rule for the value that an entry has under ``key``."""

    key: str
    accepts: Callable[[Any], bool]
    allowed: str  # in words
    default: Any = None  # the value of an entry without the key

    def fits(self, row: Row) -> bool:
        """Whether the entry has a valid value."""
        return self.accepts(row.get(self.key, self.default))

    def fault(self, row: Row) -> str:
        """What the entry has instead, and what is allowed."""
        found = f"is {show(row[self.key])}" if self.key in row else "is missing"
        return f"{self.key} {found}; it must be {self.allowed}"


def first_fault(row: Row, fields: Sequence[Field]) -> str | None:
    """The first field that does not fit, in words; later fields of a key build on earlier ones."""
    return next((field.fault(row) for field in fields if not field.fits(row)), None)


def show(value: object) -> str:
    """``value`` as JSON, on one line, printable and short."""
    try:
        return printable(json.dumps(value, ensure_ascii=False), 80)
    except RecursionError:
        return "nested too deeply"


def is_id(value: Any) -> bool:
    """Whether it is a whole number that fits 64 bits, and no boolean."""
    return type(value) is int and abs(value) < 2**63


def is_crowd(row: Row) -> bool:
    """Whether an annotation covers a group of objects, which is not trained on."""
    return bool(row.get("iscrowd") == 1)


def is_numbers(value: Any) -> bool:
    """Whether it is a list of numbers, finite or not."""
    return type(value) is list and set(map(type, value)) <= _NUMBERS


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_COORDINATE


def _is_text(value: Any) -> bool:
    return type(value) is str and bool(value.strip()) and not _CONTROL.search(value)


def _stays_inside(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    return parts[0] != "" and ".." not in parts and not re.match(r"[A-Za-z]:", name)


def is_coordinates(value: Any) -> bool:
    """Whether it is a list of finite numbers below ``MAX_COORDINATE``."""
    return is_numbers(value) and all(-MAX_COORDINATE < number < MAX_COORDINATE for number in value)


def is_outline(value: Any) -> bool:
    """Whether detectron2's loader accepts the segmentation: none, polygons or run lengths."""
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


def _is_area(value: Any) -> bool:
    return value is None or (type(value) in _NUMBERS and abs(value) < MAX_COORDINATE**2)


_TEXT = "a non-empty string without line breaks and other control characters"
_ID = "a whole number"
CLASS_NAME = Field(
    "name",
    lambda value: _is_text(value) and len(value) <= MAX_NAME,
    f"{_TEXT}, of at most {MAX_NAME} characters",
)
FILE_NAME = Field("file_name", _is_text, _TEXT)
CATEGORY_FIELDS = (Field("id", is_id, _ID), CLASS_NAME)
IMAGE_FIELDS = (
    Field("id", is_id, _ID),
    FILE_NAME,
    Field("file_name", _stays_inside, 'relative to the image folder, without drive or ".."'),
)
SIZE_FIELDS = tuple(
    Field(side, _is_side, "a whole number of pixels above 0") for side in ("width", "height")
)
BOX_FIELDS = (
    Field("image_id", is_id, 'the id of an entry of "images", a whole number'),
    Field("category_id", is_id, 'the id of an entry of "categories", a whole number'),
    Field(
        "bbox",
        lambda value: is_coordinates(value) and len(value) == 4,
        f"four finite numbers [x, y, width, height] below {MAX_COORDINATE:.0e}",
    ),
)
OPTIONAL_FIELDS = (
    Field("area", _is_area, "a number of square pixels, or left out"),
    Field("iscrowd", lambda value: value is None or value in (0, 1), "0 or 1, or left out"),
    Field("ignore", lambda value: value == 0, 'left out: write "iscrowd": 1 instead', default=0),
)
