"""Reads YOLO: one text file per image with rows ``class x y width height``.

x and y are the center of the box; all are fractions of the image's size. The labels of
``.../images/.../a.jpg`` are in ``.../labels/.../a.txt``, or else next to the image. Polygons and
rotated boxes (``class x1 y1 x2 y2 x3 y3 ...``) become the box around them; keypoints
(``kpt_shape`` in data.yaml) are ignored.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
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
    files_below,
    read_classes,
    read_text,
    split_of,
)
from .labeled import Box, Collector, LabeledDataset, number

CLASS_FILES = ("classes.txt", "obj.names")

ImageEntry = tuple[Path, str | None, str]  # an image, its split, and where it is listed


def read_yolo(path: Path, collector: Collector) -> LabeledDataset:
    """Reads a data.yaml, or a folder with one, or with ``images``, ``labels`` and classes.txt."""
    file = _find_yaml(path)
    content = {} if file is None else load_yaml(file)
    class_file = collector.class_file or file or _find_classes(path)
    rows = _RowReader(class_file, read_classes(class_file), _num_keypoint_values(file, content))
    if file is not None and collector.image_folder is None and any(map(content.get, SPLITS)):
        entries = list(_listed_images(file, content))
    else:
        folder = collector.image_folder or (path if path.is_dir() else path.parent)
        below = files_below(folder, IMAGE_SUFFIXES)
        entries = [(x, split_of(x.relative_to(folder).parent), str(folder)) for x in below]
    if not entries:
        raise UserError(f"{path}: no images; name their folder by --images")
    used = set[Path]()
    for image_file, split, where in tqdm(entries, desc="reading", leave=False, disable=None):
        image = collector.image(image_file, where)
        if image is None:
            continue
        labels = label_file(image_file)
        if labels not in used and labels.is_file():
            used.add(labels)
            image.boxes += rows.read(labels, image.size)
        if split:
            image.splits.add(split)
    if not used:
        raise UserError(
            f"{label_file(entries[0][0])}: no such file, and none for other images; labels belong "
            "in a folder labels beside images, or next to the images"
        )
    collector.notes += _unused_labels(used)
    return collector.dataset(rows.classes)


def label_file(image: Path) -> Path:
    """Returns the path of an image's labels: the last folder "images" becomes "labels"."""
    parts = list(image.with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def _unused_labels(used: set[Path]) -> list[str]:
    unused = [
        folder / name
        for folder in sorted({file.parent for file in used})
        for name in names_in(folder)
        if name.endswith(".txt") and name not in CLASS_FILES and folder / name not in used
    ]
    return [f"{len(unused)} label files have no image, such as {unused[0]}"] if unused else []


# ---------------------------------------------------------------- data.yaml


def describes_dataset(file: Path) -> bool:
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
    files = [file for file in files_below(path, YAML_SUFFIXES) if describes_dataset(file)]
    if len(files) > 1:
        raise UserError(f"{path}: several YAMLs with names and train ({shorten(files)}); give one")
    return files[0] if files else None


def _find_classes(folder: Path) -> Path:
    folders = (folder, folder / "labels", folder / "data")
    files = [path / name for path in folders for name in CLASS_FILES if (path / name).is_file()]
    if not files:
        known = " or ".join(CLASS_FILES)
        raise UserError(f"{folder}: no data.yaml and no {known}; name the classes by --classes")
    return files[0]


def _num_keypoint_values(file: Path | None, content: dict[str, Any]) -> int:
    shape = content.get("kpt_shape", [0, 0])
    if not (isinstance(shape, list) and [type(x) for x in shape] == [int, int]):
        raise UserError(f"{file}: kpt_shape must be two whole numbers, as in [17, 3]")
    return int(shape[0] * shape[1])


def _listed_images(file: Path, content: dict[str, Any]) -> Iterator[ImageEntry]:
    """The images that data.yaml names as folders or lists."""
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
                raise UserError(f"{file}: {split} is {show(entry)}; give a folder or a .txt list")


def _find_entry(file: Path, content: dict[str, Any], split: str, entry: str) -> Path | None:
    """The path of an entry: relative to ``path``, to the YAML, or as Roboflow writes it."""
    root = content.get("path")
    roots = [file.parent]
    if isinstance(root, str) and root:
        roots = [file.parent / root, Path(root), file.parent]
    entry = entry.replace("\\", "/")
    for candidate in (entry, entry.removeprefix("../")):
        for base in roots:
            path = Path(os.path.abspath(base / candidate))
            if os.path.exists(path):  # pathlib would raise an error for very long names
                return path
    if split == "test":  # exports name it even if they leave it out
        return None
    path = Path(os.path.abspath(roots[0] / entry))
    near = did_you_mean(path.name, names_in(path.parent))
    raise UserError(f"{file}: {split} is {show(entry)}, but there is no {path}{near}")


def _read_list(file: Path, split: str, root: Path) -> Iterator[ImageEntry]:
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        name = text.strip().replace("\\", "/")
        if name:
            paths = [Path(os.path.abspath(base / name)) for base in (file.parent, root, Path())]
            path = next((path for path in paths if os.path.isfile(path)), paths[0])
            yield path, split, f"{file}, line {line}"


# ---------------------------------------------------------------- labels


@dataclass(frozen=True)
class _RowReader:
    """Reads label files."""

    class_file: Path
    classes: list[str]
    num_keypoint_values: int  # that may follow a box

    def read(self, file: Path, size: tuple[int, int]) -> list[Box]:
        rows = (text.split() for text in read_text(file).splitlines())
        return [self._box(row, file, line, size) for line, row in enumerate(rows, 1) if row]

    def _box(self, row: list[str], file: Path, line: int, size: tuple[int, int]) -> Box:
        where = f"{file}, line {line}"
        index = number(row[0], "the class", where)
        if index not in range(len(self.classes)):
            raise UserError(
                f"{where}: class {row[0]}, but {self.class_file} names {len(self.classes)}; "
                f"give 0 to {len(self.classes) - 1}"
            )
        values = [number(text, "a coordinate", where) for text in row[1:]]
        if self.num_keypoint_values and len(values) == 4 + self.num_keypoint_values:
            values = values[:4]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise UserError(
                f"{where}: {len(row)} values; give class x y width height, or class and three or "
                "more corners (remove a confidence at the end)"
            )
        if max(map(abs, values)) > 2:
            raise UserError(
                f"{where}: {max(values, key=abs):g}; coordinates must be fractions of the image's "
                "size, not pixels"
            )
        xs, ys = values[0::2], values[1::2]
        if len(values) == 4:
            (x, width), (y, height) = xs, ys
            xs, ys = [x - width / 2, x + width / 2], [y - height / 2, y + height / 2]
            if width < 0 or height < 0:
                raise UserError(f"{where}: negative width or height")
        corners = (min(xs) * size[0], min(ys) * size[1], max(xs) * size[0], max(ys) * size[1])
        return Box(self.classes[int(index)], corners, file, line)
