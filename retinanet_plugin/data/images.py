"""Pictures on disk: are they all there, as the annotations say, and readable when their turn comes.

:func:`check_pictures` looks before training, at names and headers only. A file whose pixels are
damaged shows only when it is decoded: :class:`ReadableDatasetMapper` then names it.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import UserError
from .coco_entries import Entries, Row, show

MAX_HEADERS = 5000  # pictures whose header is opened; of more, as many are taken evenly
MAX_HINT_FOLDERS = 50
# Those that Pillow decodes in this process: for EPS it would start Ghostscript, a language's
# interpreter. Phones' MPO counts as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ReadableDatasetMapper(DatasetMapper):
    """detectron2's mapper, for training and for testing, that names a picture it cannot read.

    Raises:
        UserError: when called on a picture that is absent, damaged, of none of ``FORMATS``, larger
            than PIL's guard against decompression bombs allows, or not of the size that the
            annotations say.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            with open_picture(dataset_dict["file_name"]):
                pass  # the header is in order
            return super().__call__(dataset_dict)
        except Exception:
            # Only if the picture fails on its own too is the file at fault, not an augmentation
            fault = _fault_when_decoded(dict(dataset_dict), self.image_format)
            if fault is None:
                raise
            raise UserError(f"{dataset_dict['file_name']}: {fault}") from None


def read_picture(file: str, image_format: str) -> np.ndarray:
    """(H, W, C) uint8: detectron2's ``read_image`` of what :func:`open_picture` opens."""
    with open_picture(file):
        pass
    image: np.ndarray = utils.read_image(file, format=image_format)
    return image


@contextmanager
def open_picture(file: str | Path) -> Iterator[Image.Image]:
    """A picture, of which only the header has been read.

    Raises:
        OSError: for what is no ordinary file, or of none of ``FORMATS``, or has too deep a grey;
            and what PIL's readers raise, among it its guard against decompression bombs.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        # Reading a pipe or device could last for ever
        is_folder = stat.S_ISDIR(os.stat(file).st_mode)
        number = errno.EISDIR if is_folder else errno.EINVAL
        raise OSError(number, os.strerror(number) if is_folder else "not an ordinary file")
    with PathManager.open(str(file), "rb") as opened:
        try:
            image = Image.open(opened, formats=_formats())
        except UnidentifiedImageError:
            raise OSError(f"it is none of {', '.join(_formats())}") from None
        with image:
            refuse_deep(image)
            yield image


def refuse_deep(image: Image.Image) -> None:
    """OSError for more than 8 bits of grey: Pillow, and so detectron2, would make them white."""
    if image.mode[0] in "IF":  # 16 and 32 bits, and floating point
        raise OSError(
            f"its grey has more than 8 bits (Pillow's mode {image.mode}), which would turn white; "
            "save it with 8, spreading the brightness that matters over 0 to 255"
        )


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _fault_when_decoded(dataset_dict: dict[str, Any], image_format: str) -> str | None:
    try:
        image = read_picture(dataset_dict["file_name"], image_format)
        utils.check_image_size(dataset_dict, image)
    except utils.SizeMismatchError:
        return (
            f"the picture is {image.shape[1]} x {image.shape[0]}, but its annotations say "
            f"{dataset_dict['width']} x {dataset_dict['height']}; correct width and height there"
        )
    except Exception as error:  # PIL's decoders raise nearly everything on damaged files
        return f"the picture cannot be read ({reason_of(error)}); replace the file or its entry"
    return None


def check_pictures(images: Entries, folder: Path) -> None:
    """Checks that all pictures lie in ``folder``, and the headers of at most ``MAX_HEADERS``.

    Args:
        images: rows with ``file_name`` (inside ``folder``), ``width`` and ``height`` in pixels.
        folder: what the names are relative to.

    Raises:
        UserError: for a picture that is absent, is no picture or has another size.
    """
    is_absent = absent_from(folder)
    images.refuse(
        (i for i, row in enumerate(images.rows) if is_absent(row["file_name"])),
        lambda row: (
            f"no picture {show(row['file_name'])} in {folder}"
            f"{where_instead(folder, row['file_name'])}; "
            f"add it, correct the folder or remove the entry"
        ),
    )

    def fault_of(row: Row) -> str:
        return _fault_of_header(folder / row["file_name"], (row["width"], row["height"]))

    count = len(images.rows)
    sample = np.linspace(0, count - 1, min(count, MAX_HEADERS)).astype(int).tolist()
    images.refuse((i for i in sample if fault_of(images.rows[i])), fault_of)


def absent_from(folder: Path) -> Callable[[str], bool]:
    """Tells of a picture's name whether ``folder`` lacks it; each folder below is listed once."""
    listings: dict[str, set[str]] = {}

    def is_absent(file_name: str) -> bool:
        parent, name = os.path.split(os.path.normpath(file_name))
        if parent not in listings:
            listings[parent] = set(names_in(folder / parent))
        return name not in listings[parent]

    return is_absent


def names_in(folder: Path) -> list[str]:
    """Names of the files in ``folder``, sorted; none where it cannot be looked into."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []


def where_instead(folder: Path, file_name: str) -> str:
    """A hint at a file of the same name near by, or with other case or extension."""
    parent, name = os.path.split(file_name.replace("\\", "/"))
    near = [folder / parent, folder, folder.parent]
    near += [folder / sub for sub in names_in(folder)[:MAX_HINT_FOLDERS] if (folder / sub).is_dir()]
    for same in (lambda found: found == name, lambda found: _stem(found) == _stem(name)):
        for place in near:
            for found in filter(same, names_in(place)):
                return f" (there is {place / found})"
    return ""


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()


def _fault_of_header(file: Path, expected: tuple[int, int]) -> str:
    """What is wrong with a picture as far as its header tells, or nothing; no pixel is decoded."""
    try:
        with open_picture(file) as image:
            size, turned = image.size, orientation_of(image) in SIDEWAYS
    except Exception as error:
        return f"{file} cannot be read as a picture ({reason_of(error)}); replace it or its entry"
    if turned:
        size = size[::-1]
    if size == expected:
        return ""
    return (
        f"{file} is {size[0]} x {size[1]}{' after its EXIF rotation' if turned else ''}, but the "
        f"JSON says {expected[0]} x {expected[1]}; correct width and height there, or the picture"
    )


def orientation_of(image: Image.Image) -> int:
    """By which of EXIF's orientations, 1 to 8, detectron2's ``read_image`` turns; 1: not at all."""
    try:
        # PngImageFile's own getexif would decode the whole picture
        orientation: Any = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:
        return 1  # as detectron2 does: broken EXIF counts as none
    return int(orientation) if orientation in range(2, 9) else 1


def reason_of(error: Exception) -> str:
    text = " ".join(str(error).split()) if not isinstance(error, OSError) else error.strerror
    return text or " ".join(str(error).split()) or type(error).__name__
