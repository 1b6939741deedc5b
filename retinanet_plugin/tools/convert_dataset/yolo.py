"""YOLO: a text file a picture, rows ``class x y width height`` of its centre in shares of it.

Labels lie where the last folder ``images`` of the picture's path is ``labels``, else beside the
picture. Rows of polygons and of rotated boxes (``class x1 y1 x2 y2 x3 y3 ...``) become the box
around them, as do those of poses where data.yaml has ``kpt_shape``.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...config_file import load_yaml
from ...data.coco_entries import shortened, show
from ...data.images import names_in
from ...errors import UserError, did_you_mean
from .files import (
    PICTURES,
    SPLITS,
    files_below,
    read_classes,
    read_text,
    split_of,
)
from .labelled import Box, Faults, LabelledSet, Options, Picture, assemble, found_picture, number

YAML = frozenset({".yaml", ".yml"})
CLASS_FILES = ("classes.txt", "obj.names")


def read_yolo(path: Path, options: Options) -> LabelledSet:
    """Reads a data.yaml, or a folder that holds one or ``images``, ``labels`` and classes.txt.

    Raises:
        UserError: for the first fault, with file and line.
    """
    file = data_yaml(path)
    content = {} if file is None else load_yaml(file)
    classes_file = options.classes_file or file or _class_file(path)
    classes = read_classes(classes_file)
    if file is not None and options.images_folder is None and any(map(content.get, SPLITS)):
        found = list(_listed(file, content))
    else:
        folder = options.images_folder or (path if path.is_dir() else path.parent)
        below = files_below(folder, PICTURES)
        found = [(x, split_of(x.relative_to(folder).parent), "") for x in below]
    if not found:
        raise UserError(f"{path}: no picture found; name their folder by --images (images=)")
    faults, pictures = Faults(options.fix), dict[Path, Picture]()
    rows = _Rows(classes, classes_file, _pose_values(file, content))
    used = set[Path]()
    for picture_file, split, where in options.track(found):
        picture = pictures.get(picture_file) or found_picture(picture_file, where, faults)
        if picture is None:
            continue
        if picture_file not in pictures:
            labels = label_file(picture_file)
            if labels.is_file():
                used.add(labels)
                picture.boxes += rows.read(labels, picture.size)
            pictures[picture_file] = picture
        if split:
            picture.splits.add(split)
    if not used:
        raise UserError(
            f"{label_file(found[0][0])}: no such file, nor one for any other picture; put labels "
            "into a folder labels beside images, or beside the pictures"
        )
    notes = _notes(pictures, used)
    return assemble("yolo", list(pictures.values()), classes, faults, notes)


def label_file(picture: Path) -> Path:
    """Where the labels of a picture are."""
    parts = list(picture.with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def data_yaml(path: Path) -> Path | None:
    """The YAML that describes a set: ``path`` itself, or the one below that folder."""
    if path.is_file():
        return path
    fitting = [file for file in files_below(path, YAML) if describes_set(file)]
    if len(fitting) > 1:
        raise UserError(
            f"{path}: holds several YAMLs with names and train "
            f"({shortened(fitting)}); give the one that is meant"
        )
    return fitting[0] if fitting else None


def describes_set(file: Path) -> bool:
    """Whether a YAML is a data.yaml, or another with its keys."""
    try:
        content = load_yaml(file)
    except UserError:
        if file.stem == "data":
            raise
        return False
    return "names" in content and (file.stem == "data" or "train" in content)


def _class_file(folder: Path) -> Path:
    for place in (folder, folder / "labels", folder / "data"):
        for name in CLASS_FILES:
            if (place / name).is_file():
                return place / name
    raise UserError(
        f"{folder}: no data.yaml that names classes, and no {' or '.join(CLASS_FILES)} that "
        "names the classes; give a file with a name a line by --classes (classes=)"
    )


def _pose_values(file: Path | None, content: dict[str, Any]) -> int:
    """How many numbers of keypoints follow a box."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(x) is int for x in shape)):
        raise UserError(f"{file}: kpt_shape must be two whole numbers, as in [17, 3]")
    return int(shape[0] * shape[1])


# ---------------------------------------------------------------- which pictures


def _listed(file: Path, content: dict[str, Any]) -> Iterator[tuple[Path, str | None, str]]:
    """Each picture that data.yaml leads to, its split, and where it is said."""
    for split in SPLITS:
        entries = content.get(split)
        for entry in entries if isinstance(entries, list) else [entries]:
            if entry is None or entry == "":
                continue
            if not isinstance(entry, str):
                raise UserError(f"{file}: {split} must be a folder, a list file, or a list of them")
            place = _place(file, content, split, entry)
            if place is None:
                continue
            if place.is_dir():
                yield from ((picture, split, "") for picture in files_below(place, PICTURES))
            elif place.suffix.lower() == ".txt":
                yield from _of_list(place, split, file.parent)
            else:
                raise UserError(f"{file}: {split} is {show(entry)}; give a folder or a .txt list")


def _place(file: Path, content: dict[str, Any], split: str, entry: str) -> Path | None:
    """Where an entry leads: relative to ``path``, to the YAML, or as Roboflow writes it."""
    root = content.get("path")
    roots = [file.parent]
    if isinstance(root, str) and root:
        roots = [file.parent / root, Path(root), file.parent]
    entry = entry.replace("\\", "/")
    for candidate in (entry, entry.removeprefix("../")):
        for base in roots:
            place = Path(os.path.abspath(base / candidate))
            if os.path.exists(place):  # which, unlike pathlib, takes names of any length
                return place
    if split == "test":  # exports name one that they leave out
        return None
    place = Path(os.path.abspath(roots[0] / entry))
    raise UserError(
        f"{file}: {split} is {show(entry)}, but there is no {place}"
        f"{did_you_mean(place.name, names_in(place.parent))}; correct it, or path"
    )


def _of_list(file: Path, split: str, root: Path) -> Iterator[tuple[Path, str | None, str]]:
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        name = text.strip().replace("\\", "/")
        if name:
            places = [Path(os.path.abspath(base / name)) for base in (file.parent, root, Path())]
            found = next((place for place in places if os.path.isfile(place)), places[0])
            yield found, split, f"{file}, line {line}: "


# ---------------------------------------------------------------- what is in them


class _Rows:
    """Reads label files."""

    def __init__(self, classes: list[str], classes_file: Path, pose_values: int) -> None:
        self._classes = classes
        self._classes_file = classes_file
        self._pose_values = pose_values

    def read(self, file: Path, size: tuple[int, int]) -> list[Box]:
        rows = (text.split() for text in read_text(file).splitlines())
        return [self._box(row, file, line, size) for line, row in enumerate(rows, 1) if row]

    def _box(self, row: list[str], file: Path, line: int, size: tuple[int, int]) -> Box:
        where = f"{file}, line {line}"
        index = number(row[0], "the class", where)
        if index not in range(len(self._classes)):
            raise UserError(
                f"{where}: class {row[0]} given, but {self._classes_file} names "
                f"{len(self._classes)}; give 0 to {len(self._classes) - 1}"
            )
        shares = [number(text, "a coordinate", where) for text in row[1:]]
        if self._pose_values and len(shares) == 4 + self._pose_values:
            shares = shares[:4]
        if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
            raise UserError(
                f"{where}: {len(row)} values; give class x y width height, or class and the x y of "
                "at least three corners (a confidence at the end makes them predictions: cut it)"
            )
        if max(map(abs, shares)) > 2:
            raise UserError(
                f"{where}: {max(shares, key=abs):g} given; coordinates are shares of the picture's "
                "width and height, 0 to 1, not pixels"
            )
        xs, ys = shares[0::2], shares[1::2]
        if len(shares) == 4:
            (x, width), (y, height) = xs, ys
            xs, ys = [x - width / 2, x + width / 2], [y - height / 2, y + height / 2]
            if width < 0 or height < 0:
                raise UserError(f"{where}: a width or height below 0; give shares from 0 to 1")
        corners = (min(xs) * size[0], min(ys) * size[1], max(xs) * size[0], max(ys) * size[1])
        return Box(self._classes[int(index)], corners, file, line)


def _notes(pictures: dict[Path, Picture], used: set[Path]) -> list[str]:
    """Labels that no picture has."""
    folders = {file.parent for file in used}
    lost = [
        folder / name
        for folder in sorted(folders)
        for name in names_in(folder)
        if name.endswith(".txt") and name not in CLASS_FILES and folder / name not in used
    ]
    if not lost:
        return []
    return [f"{len(lost)} label files have no picture, such as {lost[0]}"]
