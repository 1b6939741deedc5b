"""The rules for image files: they are there, readable, and of the size that the dataset says.

:func:`check_image_files` looks before training, at names and headers only. ``check-dataset``
decodes all images and applies the same rules.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .coco_fields import SIZE_FIELDS, first_fault
from .coco_json import raise_first_error
from .coco_rules import CocoDataset
from .findings import Finding, Rule
from .images import is_sideways, names_in, open_image, reason_of

MAX_HEADERS = 5000  # images whose header is read before training, evenly spread over the dataset

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What is known about an image file.

    Args:
        rule: the rule that makes it unusable, with a ``message``; None: it can be used.
        stored, size: width and height before and after EXIF rotation.
        pixels: hash of the decoded pixels; empty before decoding.
    """

    rule: Rule | None = None
    message: str = ""
    stored: Size = (0, 0)
    size: Size = (0, 0)
    pixels: bytes = b""


def read_header(path: Path) -> ImageFile:
    """Looks at an image without decoding its pixels."""
    try:
        with open_image(path) as image:
            width, height = image.size
            sideways = is_sideways(image)
    except Exception as error:  # PIL's readers raise nearly everything on damaged files
        message = f"cannot be read as an image ({reason_of(error)}); replace the file or its entry"
        return ImageFile("unreadable-image", message)
    stored = (width, height)
    return ImageFile(stored=stored, size=(height, width) if sideways else stored)


def missing_images(folder: Path, names: Iterable[str]) -> dict[Path, ImageFile]:
    """Finds the names that ``folder`` does not hold; lists each folder below it only once."""
    listings: dict[str, set[str]] = {}
    missing: dict[Path, ImageFile] = {}
    for name in names:
        parent, base = os.path.split(os.path.normpath(name))
        if parent not in listings:
            listings[parent] = set(names_in(folder / parent))
        if base not in listings[parent]:
            message = f"is not in {folder}; add it, correct the folder or remove the entry"
            missing[folder / name] = ImageFile("missing-image", message)
    return missing


def check_image_files(dataset: CocoDataset, folder: Path) -> None:
    """Checks that all images are in ``folder``, and the headers of at most ``MAX_HEADERS``.

    Raises:
        UserError: for an image that is missing, unreadable or has another size.
    """
    names = [row["file_name"] for row in dataset.images.values()]
    files = missing_images(folder, names)
    sample = np.linspace(0, len(names) - 1, min(len(names), MAX_HEADERS)).astype(int)
    for path in (folder / names[i] for i in sample.tolist()):
        if path not in files:
            files[path] = read_header(path)
    raise_first_error(image_findings(dataset, folder, files))


def image_findings(
    dataset: CocoDataset, folder: Path, files: Mapping[Path, ImageFile]
) -> Iterator[Finding]:
    """Yields images that are unusable, or differ from what the dataset says.

    Args:
        folder: that the file names of the dataset are relative to.
        files: by path; images that are not in it are skipped.
    """
    for image_id, row in dataset.images.items():
        file, entry = files.get(folder / row["file_name"]), dataset.image_entry(image_id)
        if file is None:
            continue
        size, remove = dataset.size_of(image_id), {entry: None}
        resize = {entry: {"width": file.size[0], "height": file.size[1]}}
        if file.rule:
            yield dataset.finding("error", file.rule, file.message, entry, fixes=remove)
        elif size is None:
            fault = first_fault(row, SIZE_FIELDS) or ""
            yield dataset.finding("error", "malformed-entry", fault, entry, fixes=resize)
        elif size != file.size and size == file.stored:
            message = (
                f"is {_by(file.size)} after its EXIF rotation, which detectron2 applies, but the "
                f"JSON says {_by(size)}, the size as stored; if the boxes are right for that, "
                "remove the EXIF orientation from the file"
            )
            yield dataset.finding("error", "exif-rotation", message, entry, fixes=remove)
        elif size != file.size:
            rotated = " after its EXIF rotation" if file.stored != file.size else ""
            message = (
                f"is {_by(file.size)}{rotated}, but the JSON says {_by(size)}; correct width and "
                "height there, or the image"
            )
            rank = abs(float(np.log(np.prod(file.size) / np.prod(size, dtype=float))))
            yield dataset.finding("error", "image-size", message, entry, rank=rank, fixes=resize)


def _by(size: Size) -> str:
    return "{} x {}".format(*size)
