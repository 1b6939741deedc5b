"""Pictures and boxes as the readers find them, and how they become a COCO detection dict."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.coco_entries import (
    CLASS_NAME,
    FILE_NAME,
    MAX_COORDINATE,
    Row,
    box_faults,
    shortened,
    show,
)
from ...errors import UserError, did_you_mean
from .files import SPLITS, absolute, size_of

TRAIN = SPLITS[0]
# What is wrong but can be left out, and what --fix then does.
CLIPPED, DROPPED, LEFT_OUT = "boxes clipped", "boxes dropped", "pictures left out"
_REMEDY = {
    CLIPPED: "clips such boxes to their picture",
    DROPPED: "drops such boxes",
    LEFT_OUT: "leaves such pictures out",
}


@dataclass(frozen=True)
class Options:
    """How a set is read.

    Args:
        images: folder of the pictures, where it is not the format's usual one.
        classes: file that fixes classes and their order (:func:`.files.read_classes`).
        fix: leave out what cannot be used (boxes clipped or dropped, pictures left out) and count
            it, instead of stopping there.
        zero_based: VOC's coordinates count from 0, not from 1.
        track: wraps what is gone through, for a progress bar.
    """

    images: str | os.PathLike[str] | None = None
    classes: str | os.PathLike[str] | None = None
    fix: bool = False
    zero_based: bool = False
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter

    @property
    def images_folder(self) -> Path | None:
        return None if self.images is None else absolute(self.images)

    @property
    def classes_file(self) -> Path | None:
        return None if self.classes is None else absolute(self.classes)


@dataclass(frozen=True, slots=True)
class Box:
    """One object, and the line that tells of it."""

    label: str
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2: pixels from the upper left corner
    file: Path
    line: int
    difficult: bool = False


@dataclass(slots=True)
class Picture:
    """One picture; its size is after EXIF's rotation."""

    file: Path
    size: tuple[int, int]  # width, height
    boxes: list[Box] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class LabelledSet:
    """A whole set as read.

    Args:
        kind: its format.
        images: folder that the ``file_name`` of all pictures are relative to.
        content: a COCO detection dict; VOC's difficult boxes bear ``"difficult": 1``.
        splits: ids of pictures by the split that the files name ("train", "val", "test"); empty
            where they name none.
        notes: what a person should know, each a sentence's part.
    """

    kind: str
    images: Path
    content: dict[str, Any]
    splits: dict[str, list[int]]
    notes: tuple[str, ...] = ()

    def part(self, ids: Iterable[int], split: str = TRAIN) -> dict[str, Any]:
        """The COCO dict of some pictures; ``ids`` are of its images.

        As detectron2 does with VOC, difficult boxes are trained on, but evaluation ignores them: in
        another split than "train" they are crowds.
        """
        wanted = set(ids)
        ignored = {"iscrowd": 1} if split != TRAIN else {}
        return {
            **self.content,
            "images": [row for row in self.content["images"] if row["id"] in wanted],
            "annotations": [
                row | ignored if row.get("difficult") else row
                for row in self.content["annotations"]
                if row["image_id"] in wanted
            ],
        }

    def of_split(self, split: str | None) -> dict[str, Any]:
        """The COCO dict of one split, or of all for None.

        Raises:
            UserError: where the files name no such split.
        """
        if split is None:
            return self.part(row["id"] for row in self.content["images"])
        if split not in self.splits:
            named = shortened(self.splits) or "no split at all"
            raise UserError(f"split {show(split)}: the files name {named}; give that, or None")
        return self.part(self.splits[split], split)


class Faults:
    """Faults that ``fix`` mends and counts; else the first is refused, with the others' number."""

    def __init__(self, fix: bool) -> None:
        self._fix = fix
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, what: str, sentence: str) -> None:
        first, count = self._found.get(what, (sentence, 0))
        self._found[what] = (first, count + 1)

    def settle(self) -> list[str]:
        """What was mended, in words; UserError where nothing may be."""
        for what, (first, count) in self._found.items():
            if not self._fix:
                others = f" ({count - 1} more like it)" if count > 1 else ""
                raise UserError(
                    f"{first}{others}; mend it, or give --fix (fix=True in Python), which "
                    f"{_REMEDY[what]}"
                )
        return [f"{what}: {n}, such as {first}" for what, (first, n) in self._found.items()]


def found_picture(file: Path, where: str, faults: Faults) -> Picture | None:
    """A picture with its size; None, and a fault, where it is absent or cannot be used."""
    try:
        if not FILE_NAME.fits(row := {"file_name": str(file)}):
            raise UserError(FILE_NAME.fault(row))
        return Picture(file, size_of(file))
    except UserError as error:
        faults.add(LEFT_OUT, f"{where}{error}")
        return None


def number(text: str, what: str, where: str) -> float:
    """A finite number; UserError where ``text`` is none."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < MAX_COORDINATE:
        raise UserError(f"{where}: {what} is {show(text)}; it must be a number") from None
    return value


def assemble(
    kind: str,
    pictures: Sequence[Picture],
    classes: Sequence[str] | None,
    faults: Faults,
    notes: Iterable[str] = (),
) -> LabelledSet:
    """The set of all pictures, its boxes checked and clipped to them.

    Args:
        classes: all names, in the order of their ids 1, 2, ...; None: those that occur, sorted.

    Raises:
        UserError: for an unknown class, or one whose name no COCO JSON may have; for a box that is
            empty or reaches more than a pixel outside its picture, and for what ``faults`` holds.
    """
    boxes = [box for picture in pictures for box in picture.boxes]
    names = sorted({box.label for box in boxes}) if classes is None else list(classes)
    ids = {name: i for i, name in enumerate(names, start=1)}
    for box in boxes:
        if box.label not in ids:
            raise UserError(
                f"{box.file}, line {box.line}: unknown class {show(box.label)}"
                f"{did_you_mean(box.label, names)}; known: {shortened(map(show, names))}"
            )
        if classes is None and not CLASS_NAME.fits(row := {"name": box.label}):
            raise UserError(f"{box.file}, line {box.line}: class {CLASS_NAME.fault(row)}")
    annotations = _annotations(pictures, ids, faults)
    mended = faults.settle()
    if not pictures or not ids:
        raise UserError(
            f"no {'class' if pictures else 'picture'} left to use: "
            f"{'no object is labelled' if pictures else 'all were left out'}; look at the files"
        )
    images = common_folder([picture.file for picture in pictures])
    rows, splits = [], dict[str, list[int]]()
    for i, picture in enumerate(pictures, start=1):
        width, height = picture.size
        name = picture.file.relative_to(images).as_posix()
        rows.append({"id": i, "file_name": name, "width": width, "height": height})
        for split in picture.splits:
            splits.setdefault(split, []).append(i)
    content = {
        "info": {"description": f"converted from {kind}"},
        "images": rows,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    return LabelledSet(kind, images, content, in_order(splits), (*notes, *mended))


def _annotations(
    pictures: Sequence[Picture], ids: dict[str, int], faults: Faults
) -> list[dict[str, Any]]:
    owners = [(i, picture) for i, picture in enumerate(pictures, 1) for _ in picture.boxes]
    boxes = [box for picture in pictures for box in picture.boxes]
    corners = np.array([box.corners for box in boxes], dtype=np.float64).reshape(-1, 4)
    limit = np.array([picture.size for _, picture in owners], dtype=np.float64).reshape(-1, 2)
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    empty, outside, gone, inner = box_faults(xywh, limit)
    rows: list[Row] = []
    for i, ((image_id, picture), box) in enumerate(zip(owners, boxes, strict=True)):
        if empty[i] or outside[i]:
            x1, y1, x2, y2 = box.corners
            fault = (
                "has no width or no height above 0"
                if empty[i]
                else f"reaches outside its picture {picture.file.name} "
                f"({picture.size[0]} x {picture.size[1]})"
            )
            faults.add(
                DROPPED if gone[i] else CLIPPED,
                f"{box.file}, line {box.line}: the box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) "
                f"in pixels {fault}",
            )
        if not gone[i]:
            x, y, width, height = (round(value, 3) for value in inner[i].tolist())
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image_id,
                    "category_id": ids[box.label],
                    "bbox": [x, y, width, height],
                    "area": round(width * height, 3),
                    "iscrowd": 0,
                    **({"difficult": 1} if box.difficult else {}),
                }
            )
    return rows


def common_folder(files: Sequence[Path]) -> Path:
    """The lowest folder that all lie below."""
    try:
        return Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:
        raise UserError(
            f"{files[0]}: pictures lie on several drives; bring them below one folder"
        ) from None


def in_order(splits: dict[str, list[int]]) -> dict[str, list[int]]:
    """Train first."""
    return {split: splits[split] for split in SPLITS if split in splits}
