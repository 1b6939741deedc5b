"""Which format a set is in, and its reader."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...data.coco_entries import show
from ...data.images import names_in
from ...errors import UserError, did_you_mean
from .coco import is_coco, read_coco_set
from .files import absolute, files_below, forget_listings, read_text
from .keras_csv import has_columns, read_csv
from .labelled import LabelledSet, Options
from .voc import read_voc
from .yolo import CLASS_FILES, YAML, describes_set, read_yolo

READERS: dict[str, Callable[[Path, Options], LabelledSet]] = {
    "coco": read_coco_set,
    "voc": read_voc,
    "yolo": read_yolo,
    "csv": read_csv,
}
_BY_SUFFIX = {".json": "coco", ".xml": "voc", ".csv": "csv"} | dict.fromkeys(YAML, "yolo")
_NEEDED = (
    "COCO JSON: a .json with images, annotations and categories; Pascal VOC: an .xml a picture; "
    "YOLO: a data.yaml with names and train, or labels/*.txt and classes.txt; CSV: rows of "
    "path,x1,y1,x2,y2,class"
)


def read(path: str | os.PathLike[str], kind: str | None = None, **options: Any) -> dict[str, Any]:
    """Any set as a COCO detection dict of all its pictures; see :func:`read_set`."""
    return read_set(path, kind, Options(**options)).of_split(None)


def read_set(
    path: str | os.PathLike[str], kind: str | None = None, options: Options | None = None
) -> LabelledSet:
    """Reads a set in any of the formats.

    Args:
        path: a folder, or the file that leads to the rest: a COCO JSON, data.yaml, CSV, or an XML.
        kind: "coco", "voc", "yolo" or "csv"; None: recognised from the files.

    Raises:
        UserError: for the first fault, with file, line and what is allowed.
    """
    place = absolute(path)
    if not place.exists():
        raise UserError(
            f"{place}: no such file or folder{did_you_mean(place.name, names_in(place.parent))}; "
            "correct the path"
        )
    if kind is not None and kind not in READERS:
        raise UserError(
            f"format {show(kind)}: unknown{did_you_mean(kind, READERS)}; known: "
            f"{', '.join(READERS)}"
        )
    forget_listings()
    return READERS[kind or recognise(place)](place, options or Options())


def recognise(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        UserError: where it is none, or several.
    """
    if path.is_file():
        kind = _BY_SUFFIX.get(path.suffix.lower())
        if kind is None:
            raise UserError(
                f"{path}: a {path.suffix or 'file without suffix'} does not tell the format; give "
                f"the folder of the set, or a file of these: {_NEEDED}"
            )
        return kind
    signs, class_files, csvs = dict[str, Path](), list[Path](), list[Path]()
    for file in files_below(path, {".json", ".xml", ".csv", ".txt", ".names", *YAML}):
        if file.name in CLASS_FILES:
            class_files.append(file)  # other formats have such a list too, at times
        elif kind := _sign(file, path):
            signs.setdefault(kind, file)
        elif file.suffix.lower() == ".csv":
            csvs.append(file)
    if not signs and class_files:
        return "yolo"
    if len(signs) == 1:
        return next(iter(signs))
    if signs:
        found = ", ".join(f"{kind} ({file})" for kind, file in sorted(signs.items()))
        raise UserError(
            f"{path}: could be of several formats: {found}; say which by --format (kind=), or give "
            "the file itself"
        )
    for file in csvs:
        read_text(file)  # tells of those that are no UTF-8, which could be what is meant
    raise UserError(f"{path}: no format recognised; needed is one of these: {_NEEDED}")


def _sign(file: Path, root: Path) -> str | None:
    """The format that a file is of, by its content's first sight."""
    suffix = file.suffix.lower()
    if suffix == ".json":
        return "coco" if is_coco(file) else None
    if suffix == ".csv":
        return "csv" if has_columns(file) else None
    if suffix in YAML:
        return "yolo" if describes_set(file) else None
    if suffix == ".txt":
        is_label = "labels" in (root.name, *file.relative_to(root).parent.parts)
        return "yolo" if is_label else None
    if suffix != ".xml":
        return None
    with open(file, "rb") as stream:
        return "voc" if b"<annotation" in stream.read(4096) else None
