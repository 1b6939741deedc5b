"""Reads YOLO: one text file per image with rows ``class x y width height``.

x and y are the center of the box; all are fractions of the image's size. The labels of
``.../images/.../a.jpg`` are in ``.../labels/.../a.txt``, or else next to the image. Polygons and
rotated boxes (``class x1 y1 x2 y2 x3 y3 ...``) become the box around them; keypoints after a box
(``kpt_shape`` in data.yaml) are ignored.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...config_file import load_yaml
from ...data.coco_fields import show
from ...data.images import names_in
from ...errors import UserError, did_you_mean
from ...utils import shorten
from .files import (
    IMAGE_SUFFIXES,
    SPLITS,
    YAML_SUFFIXES,
    absolute,
    files_below,
    folder_of,
    read_classes,
    read_text,
    split_of,
)
from .labeled import Box, Collector, LabeledDataset, number

CLASS_FILES = ("classes.txt", "obj.names")

ImageEntry = tuple[Path, str | None, str]  # an image, its split, and where it is listed


def read_yolo(path: Path, collector: Collector) -> LabeledDataset:
    """Reads a data.yaml, or a folder with one, or with ``images``, ``labels`` and classes.txt."""
    folder = collector.image_folder or folder_of(path)
    file = _find_yaml(path)
    content = {} if file is None else load_yaml(file)
    classes = read_classes(collector.class_file or file or _find_classes(path))
    if file is not None and collector.image_folder is None and any(map(content.get, SPLITS)):
        entries = list(_listed_images(file, content))
    else:
        below = files_below(folder, IMAGE_SUFFIXES)
        entries = [(x, split_of(x.relative_to(folder).parent), str(folder)) for x in below]
    if not entries:
        raise UserError(f"{path}: no images; name their folder by --images.")
    used = set[Path]()
    for image_file, split, where in tqdm(entries, desc="reading", leave=False, disable=None):
        image = collector.image(image_file, where)
        if image is None:
            continue
        labels = label_file(image_file)
        if labels not in used and labels.is_file():
            used.add(labels)
            image.boxes += _read_labels(labels, classes, image.size, "kpt_shape" in content)
        if split:
            image.splits.add(split)
    if not used:
        raise UserError(
            f"{label_file(entries[0][0])}: no such file, and none for other images; labels belong "
            "in a folder labels beside images, or next to the images."
        )
    unused = [
        folder / name
        for folder in sorted({file.parent for file in used})
        for name in names_in(folder)
        if name.endswith(".txt") and name not in CLASS_FILES and folder / name not in used
    ]
    if unused:
        collector.notes.append(f"{len(unused)} label files have no image, such as {unused[0]}")
    return collector.dataset(classes)


def label_file(image: Path) -> Path:
    """Returns the path of an image's labels: the last folder "images" becomes "labels"."""
    parts = list(image.with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


# ---------------------------------------------------------------- data.yaml


def is_yolo_yaml(file: Path) -> bool:
    """Whether a YAML is a data.yaml, or another with its keys."""
    try:
        content = load_yaml(file)
    except UserError:
        if file.stem == "data":
            raise
        return False
    return "names" in content and (file.stem == "data" or "train" in content)


def _find_yaml(path: Path) -> Path | None:
    if path.is_file():
        return path
    files = [file for file in files_below(path, YAML_SUFFIXES) if is_yolo_yaml(file)]
    if len(files) > 1:
        raise UserError(f"{path}: several YAMLs with names and train ({shorten(files)}); give one.")
    return files[0] if files else None


def _find_classes(folder: Path) -> Path:
    folders = (folder, folder / "labels", folder / "data")
    files = [path / name for path in folders for name in CLASS_FILES if (path / name).is_file()]
    if not files:
        known = " or ".join(CLASS_FILES)
        raise UserError(f"{folder}: no data.yaml and no {known}; name the classes by --classes.")
    return files[0]


def _listed_images(file: Path, content: dict[str, Any]) -> Iterator[ImageEntry]:
    """Yields the images that data.yaml names as folders or lists."""
    for split in SPLITS:
        entries = content.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            path = _find_entry(file, content, split, entry) if isinstance(entry, str) else file
            if path is None:
                continue
            if path.is_dir():
                for image in files_below(path, IMAGE_SUFFIXES):
                    yield image, split, str(file)
            elif path.suffix.lower() == ".txt":
                yield from _read_list(path, split, file.parent)
            else:
                raise UserError(f"{file}: {split} is {show(entry)}; give a folder or a .txt list.")


def _find_entry(file: Path, content: dict[str, Any], split: str, entry: str) -> Path | None:
    """Returns the path of an entry: relative to ``path``, to the YAML, or as Roboflow writes it."""
    root, roots = content.get("path"), [file.parent]
    if isinstance(root, str) and root:
        roots = [file.parent / root, Path(root), file.parent]
    entry = entry.replace("\\", "/")
    for candidate in (entry, entry.removeprefix("../")):
        for base in roots:
            path = absolute(base / candidate)
            if os.path.exists(path):  # pathlib would raise an error for very long names
                return path
    if split == "test":  # exports name it even if they leave it out
        return None
    path = absolute(roots[0] / entry)
    near = did_you_mean(path.name, names_in(path.parent))
    raise UserError(
        f"{file}: {split} is {show(entry)}, but there is no {path}{near}; correct the path."
    )


def _read_list(file: Path, split: str, root: Path) -> Iterator[ImageEntry]:
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        name = text.strip().replace("\\", "/")
        if name:
            paths = [absolute(base / name) for base in (file.parent, root, Path())]
            path = next((path for path in paths if os.path.isfile(path)), paths[0])
            yield path, split, f"{file}, line {line}"


# ---------------------------------------------------------------- labels


def _read_labels(file: Path, classes: list[str], size: tuple[int, int], pose: bool) -> list[Box]:
    """Reads the boxes of an image; with ``pose``, keypoints may follow them."""
    boxes = []
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        if row := text.split():
            where = f"{file}, line {line}"
            index = number(row[0], "the class", where)
            if index not in range(len(classes)):
                raise UserError(f"{where}: class {row[0]}; give 0 to {len(classes) - 1}.")
            values = [number(value, "a coordinate", where) for value in row[1:]]
            x1, y1, x2, y2 = _corners(values[:4] if pose else values, where)
            corners = (x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1])
            boxes.append(Box(classes[int(index)], corners, where))
    return boxes


def _corners(values: list[float], where: str) -> tuple[float, float, float, float]:
    """Returns the corners of a box, or of the box around a polygon, as fractions."""
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise UserError(
            f"{where}: {len(values) + 1} values; give class x y width height, or class and three "
            "or more corners (remove a confidence at the end)."
        )
    if max(map(abs, values)) > 2:
        raise UserError(
            f"{where}: {max(values, key=abs):g}; coordinates must be fractions of the image's "
            "size, not pixels."
        )
    xs, ys = values[0::2], values[1::2]
    if len(values) == 4:
        (x, width), (y, height) = xs, ys
        if width < 0 or height < 0:
            raise UserError(f"{where}: negative width or height; correct the row.")
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(xs), min(ys), max(xs), max(ys)
