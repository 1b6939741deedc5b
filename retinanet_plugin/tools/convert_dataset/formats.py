"""Reads a dataset in any format."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...data.coco_fields import show
from ...data.images import names_in
from ...errors import UserError, did_you_mean
from .coco import is_coco, read_coco_dataset
from .files import YAML_SUFFIXES, absolute, files_below
from .keras_csv import has_columns, read_csv
from .labeled import Collector, LabeledDataset
from .voc import read_voc
from .yolo import CLASS_FILES, describes_dataset, read_yolo

FORMATS: dict[str, Callable[[Path, Collector], LabeledDataset]] = {
    "coco": read_coco_dataset,
    "voc": read_voc,
    "yolo": read_yolo,
    "csv": read_csv,
}
_BY_SUFFIX = {".json": "coco", ".xml": "voc", ".csv": "csv"} | dict.fromkeys(YAML_SUFFIXES, "yolo")
_EXPECTED = (
    "COCO: a .json with images, annotations and categories; Pascal VOC: one .xml per image; "
    "YOLO: a data.yaml with names and train, or labels/*.txt and classes.txt; "
    "CSV: rows path,x1,y1,x2,y2,class"
)


def read(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> dict[str, Any]:
    """Reads a dataset as a COCO dict of all its images; see :func:`read_dataset`."""
    return read_dataset(path, format, **options).of_split(None)


def read_dataset(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | None = None,
    fix: bool = False,
    zero_based: bool = False,
) -> LabeledDataset:
    """Reads and checks a dataset.

    Args:
        path: a folder, a COCO JSON, a data.yaml, a CSV or an XML.
        format: "coco", "voc", "yolo" or "csv"; None: found out from the files.
        images, classes, fix, zero_based: see :class:`~.labeled.Collector`.

    Raises:
        UserError: for the first fault, with file and line.
    """
    path = existing(path)
    if format is not None and format not in FORMATS:
        raise UserError(
            f"format {show(format)}: unknown{did_you_mean(format, FORMATS)}; "
            f"known: {', '.join(FORMATS)}"
        )
    folder, file = (None if x is None else absolute(x) for x in (images, classes))
    collector = Collector(folder, file, fix, zero_based)
    return FORMATS[format or format_of(path)](path, collector)


def existing(path: str | os.PathLike[str]) -> Path:
    """Returns the absolute path; raises UserError if it does not exist."""
    path = absolute(path)
    if not path.exists():
        near = did_you_mean(path.name, names_in(path.parent))
        raise UserError(f"{path}: no such file or folder{near}")
    return path


def format_of(path: Path) -> str:
    """Finds out the format of a file or folder; raises UserError if there are none or several."""
    if path.is_file():
        if path.suffix.lower() not in _BY_SUFFIX:
            raise UserError(
                f"{path}: unknown format; expected a folder or one of these: {_EXPECTED}"
            )
        return _BY_SUFFIX[path.suffix.lower()]
    examples, has_classes = dict[str, Path](), False
    for file in files_below(path, {*_BY_SUFFIX, ".txt", ".names"}):
        if file.name in CLASS_FILES:
            has_classes = True  # other formats may have such a file, too
        elif format := _format_of_file(file, path):
            examples.setdefault(format, file)
    if len(examples) > 1:
        found = ", ".join(f"{format} ({file})" for format, file in sorted(examples.items()))
        raise UserError(f"{path}: several formats: {found}; choose one by --format")
    if examples or has_classes:
        return next(iter(examples), "yolo")
    raise UserError(f"{path}: unknown format; expected one of these: {_EXPECTED}")


def _format_of_file(file: Path, root: Path) -> str | None:
    suffix = file.suffix.lower()
    if suffix == ".txt":
        return "yolo" if "labels" in (root.name, *file.relative_to(root).parent.parts) else None
    if suffix == ".xml":
        with open(file, "rb") as stream:
            return "voc" if b"<annotation" in stream.read(4096) else None
    checks = {".json": is_coco, ".csv": has_columns} | dict.fromkeys(
        YAML_SUFFIXES, describes_dataset
    )
    return _BY_SUFFIX[suffix] if suffix in checks and checks[suffix](file) else None
