"""The rules for image files: they are there, readable, and of the size that the dataset says.

:func:`check_image_files` looks before training, at names and headers only. ``check-dataset``
decodes all images and applies the same rules.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .coco_fields import SIZE_FIELDS, Row, first_fault
from .coco_json import raise_first_error
from .coco_rules import CocoDataset
from .findings import Finding
from .images import SIDEWAYS, names_in, open_image, orientation_of, reason_of

MAX_HEADERS = 5000  # images whose header is read before training, evenly spread over the dataset
_MAX_HINTS = 20  # missing images that are looked for elsewhere
_MAX_HINT_FOLDERS = 50

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What is known about an image file.

    Args:
        rule: the rule that makes it unusable, with a ``message``; None: it can be used.
        stored, size: width and height before and after EXIF rotation.
        orientation: in EXIF.
        pixels: hash of the decoded pixels; empty before decoding.
    """

    rule: str | None = None
    message: str = ""
    stored: Size = (0, 0)
    size: Size = (0, 0)
    orientation: int = 1
    pixels: bytes = b""

    def is_unrotated(self, size: Size | None) -> bool:
        """Whether ``size`` is that of the image before EXIF rotation swaps its sides."""
        return self.orientation in SIDEWAYS and size == self.stored != self.size


def read_header(path: Path) -> ImageFile:
    """Looks at an image without decoding its pixels."""
    try:
        with open_image(path) as image:
            stored, orientation = image.size, orientation_of(image)
    except Exception as error:  # PIL's readers raise nearly everything on damaged files
        message = f"cannot be read as an image ({reason_of(error)}); replace the file or its entry"
        return ImageFile("unreadable-image", message)
    size = stored[::-1] if orientation in SIDEWAYS else stored
    return ImageFile(None, "", stored, size, orientation)


def missing_images(folder: Path, names: Iterable[str]) -> dict[Path, ImageFile]:
    """Finds the names that ``folder`` does not hold; lists each folder below it only once."""
    listings: dict[str, set[str]] = {}
    missing: dict[Path, ImageFile] = {}
    for name in names:
        parent, base = os.path.split(os.path.normpath(name))
        if parent not in listings:
            listings[parent] = set(names_in(folder / parent))
        if base not in listings[parent]:
            hint = _where_instead(folder, name) if len(missing) < _MAX_HINTS else ""
            message = f"is not in {folder}{hint}; add it, correct the folder or remove the entry"
            missing[folder / name] = ImageFile("missing-image", message)
    return missing


def _where_instead(folder: Path, file_name: str) -> str:
    """A hint at a file near by whose name differs in case or extension at most."""
    parent, name = os.path.split(file_name.replace("\\", "/"))
    below = [folder / sub for sub in names_in(folder)[:_MAX_HINT_FOLDERS]]
    for location in (folder / parent, folder, folder.parent, *below):
        for other in names_in(location):
            if Path(other).stem.lower() == Path(name).stem.lower():
                return f" (there is {location / other})"
    return ""


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
        size, size_fault = dataset.size_of(image_id), first_fault(row, SIZE_FIELDS)
        if file is None or file.rule:
            if file and file.rule:
                yield dataset.finding("error", file.rule, file.message, entry, fixes={entry: None})
            continue
        resize = {entry: {"width": file.size[0], "height": file.size[1]}}
        if size_fault:
            yield dataset.finding("error", "malformed-entry", size_fault, entry, fixes=resize)
        elif file.is_unrotated(size):
            message = (
                f"is {_by(file.size)} after its EXIF rotation, which detectron2 applies, but the "
                f"JSON says {_by(file.stored)}, the size as stored; rotate the boxes, too"
            )
            fixes = {**resize, **_rotate_annotations(dataset, image_id, file)}
            yield dataset.finding("error", "exif-rotation", message, entry, fixes=fixes)
        elif size and size != file.size:
            rotated = " after its EXIF rotation" if file.orientation in SIDEWAYS else ""
            message = (
                f"is {_by(file.size)}{rotated}, but the JSON says {_by(size)}; correct width and "
                "height there, or the image"
            )
            rank = abs(float(np.log(np.prod(file.size) / np.prod(size, dtype=float))))
            yield dataset.finding("error", "image-size", message, entry, rank=rank, fixes=resize)
        elif file.orientation != 1:
            rotated_size = file.orientation in SIDEWAYS and file.stored != file.size
            message = f"detectron2 applies its EXIF rotation ({file.orientation}); " + (
                "the JSON has the size of the rotated image"
                if rotated_size
                else "the size does not tell whether the boxes are rotated, too"
            )
            severity = "info" if rotated_size else "warning"
            yield dataset.finding(severity, "exif-rotation", message, entry)


def _by(size: Size) -> str:
    return "{} x {}".format(*size)


def _rotate_annotations(
    dataset: CocoDataset, image_id: int, file: ImageFile
) -> dict[tuple[str, int], Row]:
    return {
        ("annotations", index): {
            "bbox": rotated_box(dataset.annotations[index]["bbox"], file),
            **dict.fromkeys(("segmentation", "keypoints")),
        }
        for index in dataset.annotations_of_images.get(image_id, ())
    }


def rotated_box(box: Sequence[float], file: ImageFile) -> list[float]:
    """Rotates a box of the stored image, XYWH, like EXIF rotates the image sideways."""
    x, y, width, height = box
    right, below = file.stored[0] - x - width, file.stored[1] - y - height
    assert file.orientation in SIDEWAYS
    left, top = {5: (y, x), 6: (below, x), 7: (below, right), 8: (y, right)}[file.orientation]
    return [left, top, height, width]
