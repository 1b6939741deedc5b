"""Reads Pascal VOC: one XML per image in ``Annotations``, lists of splits in ``ImageSets``.

VOC counts pixels from 1 and names the first and the last pixel of a box, whereas a box here goes
from edge to edge: x1 = xmin - 1, x2 = xmax. So ``xmin`` 1 and ``xmax`` W are the whole width.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from tqdm import tqdm

from ...data.coco_fields import show
from ...errors import UserError
from .files import (
    IMAGE_SUFFIXES,
    SPLITS,
    files_below,
    folder_of,
    read_classes,
    read_text,
    split_of,
)
from .labeled import LEFT_OUT, Box, Collector, LabeledDataset, number

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")


def read_voc(path: Path, collector: Collector) -> LabeledDataset:
    """Reads all XMLs in a folder and its subfolders, or in the folder of one XML."""
    folder = folder_of(path)
    files = list(files_below(folder, {".xml"}))
    if not files:
        raise UserError(f"{folder}: no .xml files; name the folder with VOC's Annotations.")
    classes = None if collector.class_file is None else read_classes(collector.class_file)
    splits = _read_splits(folder, files, collector)
    from_zero = 0
    for file in tqdm(files, desc="reading", leave=False, disable=None):
        root = _parse(file)
        width, height = (
            number(_text(root, f"size/{x}") or "0", f"<{x}>", str(file))
            for x in ("width", "height")
        )
        size = (width, height) if min(width, height) > 0 else None
        image = collector.image(_find_image(file, root, collector.image_folder), str(file), size)
        if image is None:
            continue
        first_pixel = 0 if collector.zero_based else 1
        for i, element in enumerate(root.iterfind("object"), start=1):
            image.boxes.append(_read_box(element, f"{file}, object {i}", first_pixel))
        image.splits |= splits.get(file, set())
        from_zero += sum(min(box.corners[:2]) < 0 for box in image.boxes)
    if from_zero:
        collector.notes.append(
            f"{from_zero} boxes begin at pixel 0, but VOC counts from 1; if the XMLs count from 0, "
            "give --zero-based"
        )
    return collector.dataset(classes)


def is_voc(file: Path) -> bool:
    """Whether an XML describes an image."""
    with open(file, "rb") as stream:
        return b"<annotation" in stream.read(4096)


def _read_splits(folder: Path, files: Sequence[Path], collector: Collector) -> dict[Path, set[str]]:
    """Returns the splits of each XML by ImageSets/Main, or else by the names of folders."""
    by_root: dict[Path, dict[str, Path]] = {}
    for file in files:
        root = next((x for x in file.parents if x.name == "Annotations"), file.parent)
        by_root.setdefault(root, {})[file.relative_to(root).with_suffix("").as_posix()] = file
    splits: dict[Path, set[str]] = {}
    for root, known in by_root.items():
        lists = root.parent / "ImageSets" / "Main"
        names = {name: name for name in SPLITS if (lists / f"{name}.txt").is_file()}
        if "train" not in names and (lists / "trainval.txt").is_file():
            names["trainval"] = "train"
        for name, split in names.items():
            file = lists / f"{name}.txt"
            for line, text in enumerate(read_text(file).splitlines(), start=1):
                if (entry := text.strip()) in known:
                    splits.setdefault(known[entry], set()).add(split)
                elif entry:
                    collector.add_fault(LEFT_OUT, f"{file}, line {line}: no {root / entry}.xml")
    if splits:
        return splits
    named = {file: split_of(file.relative_to(folder).parent) for file in files}
    return {file: {split} for file, split in named.items() if split}


def _find_image(file: Path, root: Element, image_folder: Path | None) -> Path:
    """Returns the image with the name of the XML, or else the one that <filename> names.

    Folders in <filename> are ignored: they are often those of another machine.
    """
    filename = Path(_text(root, "filename").replace("\\", "/")).name or f"{file.stem}.jpg"
    near = [file.parent, *(parent / x for parent in file.parents[:3] for x in _IMAGE_FOLDERS)]
    folders = near if image_folder is None else [image_folder]
    names = [f"{file.stem}{suffix}" for x in IMAGE_SUFFIXES for suffix in (x, x.upper())]
    names.insert(0 if Path(filename).stem == file.stem else len(names), filename)
    paths = (folder / name for name in names for folder in folders)
    return next((path for path in paths if os.path.isfile(path)), folders[0] / filename)


def _parse(file: Path) -> Element:
    text = read_text(file)
    if "<!DOCTYPE" in text:  # which entities need, and these can expand to gigabytes
        raise UserError(f"{file}: has a DOCTYPE, which VOC does not need; remove it.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: not valid XML ({error}); export it again.") from None
    if root.tag != "annotation":
        raise UserError(f"{file}: the root is <{root.tag}>, not <annotation>; give VOC files only.")
    return root


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _read_box(element: Element, where: str, first_pixel: int) -> Box:
    label, difficult = _text(element, "name"), _text(element, "difficult") or "0"
    if not label:
        raise UserError(f"{where}: no <name>; give the class.")
    if difficult not in {"0", "1"}:
        raise UserError(f"{where}: <difficult> is {show(difficult)}; it must be 0 or 1.")
    x1, y1, x2, y2 = (
        number(_text(element, f"bndbox/{side}"), f"<{side}>", where)
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return Box(label, (x1 - first_pixel, y1 - first_pixel, x2, y2), where, difficult == "1")
