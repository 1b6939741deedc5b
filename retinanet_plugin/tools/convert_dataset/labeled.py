"""Labeled images as the readers find them, and how they become a COCO dict."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.coco_fields import CLASS_NAME, FILE_NAME, MAX_COORDINATE, Row, show
from ...data.coco_rules import box_faults
from ...data.image_rules import read_header
from ...errors import UserError, did_you_mean
from ...utils import shorten
from .files import SPLITS

CLIPPED, REMOVED, LEFT_OUT = "boxes clipped", "boxes removed", "images left out"


@dataclass(frozen=True, slots=True)
class Box:
    """A labeled object."""

    label: str
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
    where: str  # file and line, for errors
    difficult: bool = False


@dataclass(slots=True)
class LabeledImage:
    """An image with its size after EXIF rotation."""

    file: Path
    size: tuple[int, int]  # width, height
    boxes: list[Box] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class LabeledDataset:
    """A dataset as read.

    Args:
        images: the folder that the ``file_name`` of all images are relative to.
        content: a COCO dict; VOC's difficult boxes have ``"difficult": 1``.
        splits: image ids by split ("train", "val", "test"); empty if the files name no splits.
        notes: what the user should know.
    """

    images: Path
    content: dict[str, Any]
    splits: dict[str, list[int]]
    notes: Sequence[str]

    def subset(self, image_ids: Iterable[int], split: str) -> dict[str, Any]:
        """Returns the COCO dict of some images.

        As detectron2 does with VOC, difficult boxes are trained on but ignored by evaluation: in
        splits other than "train" they are crowds.
        """
        wanted = set(image_ids)
        ignored = {"iscrowd": 1} if split != "train" else {}
        return {
            **self.content,
            "images": [row for row in self.content["images"] if row["id"] in wanted],
            "annotations": [
                row | ignored if row.get("difficult") else row
                for row in self.content["annotations"]
                if row["image_id"] in wanted
            ],
        }


@dataclass
class Collector:
    """Collects images, boxes and notes while a dataset is read.

    Args:
        image_folder: folder of the images, instead of the format's usual one.
        class_file: file with all classes in order, see :func:`~.files.read_classes`.
        fix: clip or remove bad boxes and leave out unusable images, instead of raising an error.
        zero_based: whether VOC coordinates count from 0 instead of 1.
    """

    image_folder: Path | None = None
    class_file: Path | None = None
    fix: bool = False
    zero_based: bool = False
    notes: list[str] = field(default_factory=list)
    _images: dict[Path, LabeledImage | None] = field(default_factory=dict)
    _fixes: dict[str, list[str]] = field(default_factory=dict)

    def add_fault(self, fix: str, message: str) -> None:
        """Counts a fault that is fixed; raises UserError unless ``self.fix``."""
        if not self.fix:
            raise UserError(f"{message}; correct it, or give --fix.")
        self._fixes.setdefault(fix, []).append(message)

    def all_notes(self) -> list[str]:
        """Returns the notes and the number of fixes of each kind."""
        fixes = self._fixes.items()
        return self.notes + [f"{fix}: {len(faults)}, such as {faults[0]}" for fix, faults in fixes]

    def image(
        self, file: Path, where: str, size: tuple[float, float] | None = None
    ) -> LabeledImage | None:
        """Returns the image of a file, or None if it is unusable and left out.

        Args:
            where: the annotation that names the image.
            size: width and height in the annotation, if it has them.

        Raises:
            UserError: if the image is unusable, unless ``self.fix``, or has another size.
        """
        if file not in self._images:
            image, fault = None, ""
            if not os.path.exists(file):
                fault = f"no image {show(str(file))}; --images names another folder"
            elif not FILE_NAME.fits(row := {"file_name": str(file)}):
                fault = FILE_NAME.fault(row)
            elif (header := read_header(file)).rule:
                fault = f"{file} {header.message}"
            else:
                image = LabeledImage(file, header.size)
            self._images[file] = image
            if image is None:
                self.add_fault(LEFT_OUT, f"{where}: {fault}")
        image = self._images[file]
        if image and size and size != image.size:
            raise UserError(
                f"{where}: its size is {size[0]:g} x {size[1]:g}, but {file} has {image.size[0]} x "
                f"{image.size[1]} (after EXIF rotation); correct one of them."
            )
        return image

    def dataset(self, classes: Sequence[str] | None) -> LabeledDataset:
        """Assembles all images and boxes, which are clipped to their images.

        Args:
            classes: all names, whose ids are 1, 2, ...; None: those that occur, sorted.

        Raises:
            UserError: for an unknown or invalid class, or a bad box unless ``self.fix``.
        """
        images = [image for image in self._images.values() if image is not None]
        if classes is None:
            classes = sorted({box.label for image in images for box in image.boxes})
        ids = {name: i for i, name in enumerate(classes, start=1)}
        folder = common_folder([image.file for image in images])
        if not ids:
            raise UserError(f"{folder}: no labeled objects; check the annotations.")
        rows: list[Row] = []
        annotations: list[Row] = []
        for i, image in enumerate(images, start=1):
            width, height = image.size
            file_name = image.file.relative_to(folder).as_posix()
            rows.append({"id": i, "file_name": file_name, "width": width, "height": height})
            annotations += self._annotations(image, i, ids)
        content = {
            "info": {"description": "converted by retinanet convert-dataset"},
            "images": rows,
            "annotations": [row | {"id": i} for i, row in enumerate(annotations, start=1)],
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
        }
        splits = [(i, split) for i, image in enumerate(images, 1) for split in image.splits]
        return LabeledDataset(folder, content, ids_by_split(splits), self.all_notes())

    def _annotations(self, image: LabeledImage, image_id: int, ids: dict[str, int]) -> list[Row]:
        corners = np.array([box.corners for box in image.boxes], dtype=np.float64).reshape(-1, 4)
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        limits = np.array([image.size] * len(corners), dtype=np.float64).reshape(-1, 2)
        empty, outside, gone, clipped = box_faults(xywh, limits)
        rows: list[Row] = []
        for i, box in enumerate(image.boxes):
            if box.label not in ids:
                raise UserError(
                    f"{box.where}: unknown class {show(box.label)}{did_you_mean(box.label, ids)}; "
                    f"known: {shorten(map(show, ids), 10)}."
                )
            if not CLASS_NAME.fits({"name": box.label}):
                raise UserError(f"{box.where}: class {CLASS_NAME.fault({'name': box.label})}.")
            if empty[i] or outside[i]:
                size = "{} x {}".format(*image.size)
                fault = "is empty" if empty[i] else f"reaches outside its image of {size}"
                box_text = "({:g}, {:g}) to ({:g}, {:g})".format(*box.corners)
                fix = REMOVED if gone[i] else CLIPPED
                self.add_fault(fix, f"{box.where}: the box from {box_text} {fault}")
            if not gone[i]:
                bbox = [round(value, 3) for value in clipped[i].tolist()]
                row: Row = {"image_id": image_id, "category_id": ids[box.label], "bbox": bbox}
                row |= {"area": round(bbox[2] * bbox[3], 3), "iscrowd": 0}
                rows.append(row | {"difficult": 1} if box.difficult else row)
        return rows


def ids_by_split(pairs: Iterable[tuple[int, str | None]]) -> dict[str, list[int]]:
    """Groups image ids by their splits, "train" first; images without split are left out."""
    ids: dict[str | None, list[int]] = {}
    for image_id, split in pairs:
        ids.setdefault(split, []).append(image_id)
    return {split: ids[split] for split in SPLITS if split in ids}


def number(text: str, name: str, where: str) -> float:
    """Parses a finite number; raises UserError if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < MAX_COORDINATE:
        raise UserError(f"{where}: {name} is {show(text)}; it must be a number.")
    return value


def common_folder(files: Sequence[Path]) -> Path:
    """Returns the deepest folder that contains all files."""
    if not files:
        raise UserError("INPUT: no images are left; name another folder by --images.")
    return Path(os.path.commonpath([file.parent for file in files]))
