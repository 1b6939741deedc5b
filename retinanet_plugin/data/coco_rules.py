"""The rules for COCO detection annotations, each written once.

Methods of :class:`CocoDataset` yield a :class:`Finding` for every entry that breaks a rule.
Training on ``DATASETS.OWN`` raises the first error, ``check-dataset`` lists all findings, and
``--fix`` and ``DATASETS.OWN.BAD_BOXES`` apply the fixes that findings carry. Other registered
datasets are trained on without these checks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .coco_fields import (
    BOX_FIELDS,
    CATEGORY_FIELDS,
    IMAGE_FIELDS,
    OPTIONAL_FIELDS,
    SIZE_FIELDS,
    Field,
    Row,
    first_fault,
    is_crowd,
    is_id,
    is_numbers,
    show,
)
from .findings import Entry, Finding, Rule

LISTS = ("categories", "images", "annotations")
OUTSIDE_TOLERANCE = 1.0  # pixels: rounding and 1-based boxes; detectron2 clips this much away


class CocoDataset:
    """A COCO detection dict: findings about it, and the entries that can be used.

    :meth:`check` collects the usable entries, so its iteration must end before the other methods
    are called.

    Args:
        file: names the dataset in findings.
        content: the COCO dict; never changed.

    Attributes:
        category_ids, image_ids: all declared ids, also those of unusable entries.
        categories: names of the usable categories by id.
        images: usable entries by id; their width and height may be malformed.
        annotations: usable entries by index: their image and category are usable, their box has
            four finite numbers.
        changes: how the content differs from the file, in words; empty if it does not.
    """

    def __init__(self, file: Path, content: Row) -> None:
        self.file, self.content = file, content
        self.category_ids: set[int] = set()
        self.image_ids: set[int] = set()
        self.categories: dict[int, str] = {}
        self.images: dict[int, Row] = {}
        self.annotations: dict[int, Row] = {}
        self.changes: tuple[str, ...] = ()
        self._image_index: dict[int, int] = {}

    def check(self) -> Iterator[Finding]:
        """Yields what is wrong with lists, entries, ids and references."""
        for name in LISTS:
            yield from self._check_list(name)
        classes: dict[int, int] = {}
        yield from self._check_ids("categories", CATEGORY_FIELDS, self.category_ids, classes)
        first: dict[str, int] = {}
        for number, index in classes.items():
            name = self.content["categories"][index]["name"]
            if first.setdefault(name, number) != number:
                message = f"name {show(name)} is used by id {first[name]}; give each its own"
                yield self.finding("error", "duplicate-class-name", message, ("categories", index))
            self.categories[number] = name
        yield from self._check_ids("images", IMAGE_FIELDS, self.image_ids, self._image_index)
        self.images = {i: self.content["images"][at] for i, at in self._image_index.items()}
        yield from self._check_annotations()

    def rows(self, name: str) -> Iterator[tuple[int, Row]]:
        """Yields index and entry for the objects in a list, however faulty they are."""
        rows = self.content.get(name)
        for index, row in enumerate(rows if isinstance(rows, list) else ()):
            if isinstance(row, dict):
                yield index, row

    @property
    def classes(self) -> dict[int, str]:
        """Names of the usable categories by id, in the order of detectron2's class indices."""
        return dict(sorted(self.categories.items()))

    def image_entry(self, image_id: int) -> Entry:
        """Where a usable image is in the dataset."""
        return "images", self._image_index[image_id]

    def size_of(self, image_id: int) -> tuple[int, int] | None:
        """Width and height of a usable image; None if they are malformed."""
        row = self.images[image_id]
        return None if first_fault(row, SIZE_FIELDS) else (row["width"], row["height"])

    def finding(
        self, severity: str, rule: Rule, message: str, entry: Entry | None = None, **more: Any
    ) -> Finding:
        """A finding whose message begins with the entry; ``more`` are attributes of Finding."""
        if entry is None:
            return Finding(severity, rule, self.file, message, **more)
        name, index = entry
        row = self.content[name][index]
        where, image = f"{name}[{index}]", None
        if isinstance(row, dict):
            where += f" (id {show(row['id'])})" if "id" in row else ""
            number: Any = row.get("id" if name == "images" else "image_id")
            if name != "categories" and is_id(number) and number in self.images:
                image = self.images[number]["file_name"]
                where += f"{' in' if name == 'annotations' else ''} {show(image)}"
        return Finding(severity, rule, self.file, f"{where}: {message}", entry, image, **more)

    def _error(self, rule: Rule, message: str, entry: Entry) -> Finding:
        """An error that removing the entry fixes."""
        return self.finding("error", rule, message, entry, fixes={entry: None})

    # ---------------------------------------------------------------- entries

    def _check_list(self, name: str) -> Iterator[Finding]:
        rows = self.content.get(name)
        if not isinstance(rows, list):
            found = f"is {show(rows)}" if name in self.content else "is missing"
            message = f'"{name}" {found}; it must be a list of objects'
            yield self.finding("error", "unusable-file", message)
            return
        if not rows and name != "annotations":
            yield self.finding("error", "unusable-file", f'"{name}" is empty; it must not be')
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                message = f"{show(row)} is not an object; write it as {{...}}"
                yield self._error("malformed-entry", message, (name, index))

    def _check_ids(
        self, name: str, fields: Sequence[Field], declared: set[int], usable: dict[int, int]
    ) -> Iterator[Finding]:
        """Checks fields and ids of a list; enters all ids and, by id, the indices that pass."""
        for index, row in self.rows(name):
            number: Any = row.get("id")
            fault = first_fault(row, fields)
            if fault:
                yield self._error("malformed-entry", fault, (name, index))
            elif number in declared:
                message = f"id {number} is used by an earlier entry; give each its own"
                yield self._error("duplicate-id", message, (name, index))
            else:
                usable[number] = index
            if is_id(number):
                declared.add(number)

    def _check_annotations(self) -> Iterator[Finding]:
        for index, row in self.rows("annotations"):
            entry = ("annotations", index)
            fault = first_fault(row, BOX_FIELDS)
            if fault:
                bbox: Any = row.get("bbox")
                numbers = is_numbers(bbox) and len(bbox) == 4 and fault.startswith("bbox")
                yield self._error("box-not-finite" if numbers else "malformed-entry", fault, entry)
                continue
            for field in OPTIONAL_FIELDS:
                if not field.fits(row):
                    fix = {field.key: None} | ({"iscrowd": 1} if field.key == "ignore" else {})
                    yield self.finding(
                        "error", "malformed-entry", field.fault(row), entry, fixes={entry: fix}
                    )
            image_id, category_id = row["image_id"], row["category_id"]
            if image_id not in self.image_ids:
                yield self._undeclared("unknown-image", "image_id", "images", entry)
            elif category_id not in self.category_ids:
                yield self._undeclared("undeclared-class", "category_id", "categories", entry)
            elif image_id in self.images and category_id in self.categories:
                self.annotations[index] = row

    def _undeclared(self, rule: Rule, key: str, name: str, entry: Entry) -> Finding:
        number = self.content["annotations"][entry[1]][key]
        message = f'{key} {number} is not declared in "{name}"; declare it or remove the annotation'
        return self._error(rule, message, entry)

    def check_sizes(self) -> Iterator[Finding]:
        """Yields malformed widths and heights."""
        for image_id, row in self.images.items():
            fault = first_fault(row, SIZE_FIELDS)
            if fault:
                yield self.finding("error", "malformed-entry", fault, self.image_entry(image_id))

    # ---------------------------------------------------------------- boxes

    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the usable boxes and the sizes of their images.

        Returns:
            (M, 4) float64, XYWH in pixels; (M, 2) float64, width and height, infinite where they
            are malformed.
        """
        rows = self.annotations.values()
        sizes = {number: self.size_of(number) or (np.inf, np.inf) for number in self.images}
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
        limits = np.array([sizes[row["image_id"]] for row in rows], dtype=np.float64)
        return boxes.reshape(-1, 4), limits.reshape(-1, 2)

    def check_boxes(self) -> Iterator[Finding]:
        """Yields usable boxes that are empty or reach more than a pixel outside their image."""
        boxes, limits = self.boxes()
        empty, outside, gone, clipped = box_faults(boxes, limits)
        lost = 1 - clipped[:, 2:].prod(axis=1) / np.where(empty, 1, boxes[:, 2:].prod(axis=1))
        indices = list(self.annotations)
        for i in np.flatnonzero(empty | outside).tolist():
            entry = ("annotations", indices[i])
            x, y, width, height = boxes[i].tolist()
            more: Row = {"box": (x, y, x + width, y + height), "rank": float(lost[i])}
            changes = None if gone[i] else {"bbox": clipped[i].tolist(), "area": None}
            more["fixes"] = {entry: changes}
            message = f"bbox {show(self.annotations[indices[i]]['bbox'])} "
            if empty[i]:
                message += "is empty; width and height must be above 0"
                yield self.finding("error", "empty-box", message, entry, **more)
            else:
                message += "reaches outside the image, {:.0f} x {:.0f}".format(*limits[i])
                yield self.finding("error", "box-outside", message, entry, **more)

    # ---------------------------------------------------------------- the whole dataset

    def check_training(self) -> Iterator[Finding]:
        """Yields an error if there is no usable box to train on."""
        if all(map(is_crowd, self.annotations.values())):
            message = (
                '"annotations" holds no box to train on; label some objects, or use the file as '
                "DATASETS.OWN.TEST_JSON"
            )
            yield self.finding("error", "unusable-file", message)

    def compare_classes(self, first: "CocoDataset") -> Iterator[Finding]:
        """Yields the classes that differ from those of ``first``, the training set."""
        remedy = "declare the same ids and names in both"
        for number, name in self.categories.items():
            there = first.categories.get(number)
            if there != name and (there or number not in first.category_ids):
                found = f"is {show(there)}" if there else "is not declared"
                message = f"category {number} {show(name)} {found} in {first.file}; {remedy}"
                yield self.finding("error", "classes-differ", message)
        for number, name in first.categories.items():
            if number not in self.category_ids:
                message = f"category {number} {show(name)} of {first.file} is missing; {remedy}"
                yield self.finding("error", "classes-differ", message)


def box_faults(
    boxes: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Finds boxes that are empty, or reach further outside their image than rounding explains.

    Args:
        boxes: (M, 4) float64, XYWH in pixels.
        limits: (M, 2), width and height of their images.

    Returns:
        empty, outside, gone: (M,) bool; outside excludes empty; gone are empty or have no part
        inside the image.
        clipped: (M, 4), the boxes clipped to the image, XYWH.
    """
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inner_start, inner_end = np.clip(start, 0, limits), np.clip(end, 0, limits)
    empty = (end <= start).any(axis=1)
    gone = (inner_end <= inner_start).any(axis=1)
    reaching = (start < -OUTSIDE_TOLERANCE) | (end > limits + OUTSIDE_TOLERANCE)
    outside = (reaching.any(axis=1) | gone) & ~empty
    return (
        empty,
        outside,
        gone,
        np.concatenate([inner_start, inner_end - inner_start], axis=1),
    )
