"""Reads images, and refuses what is not safe to open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, UnidentifiedImageError

# Formats that Pillow decodes in this process: for EPS it would start Ghostscript, which runs
# programs. Phones' MPO counts as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")


def read_image(file: str, image_format: str) -> np.ndarray:
    """Reads an image like detectron2's ``read_image``, after the checks of :func:`open_image`.

    Returns:
        (H, W, C) uint8
    """
    with open_image(file):
        pass
    image: np.ndarray = utils.read_image(file, format=image_format)
    return image


@contextmanager
def open_image(file: str | Path) -> Iterator[Image.Image]:
    """Opens an image and reads its header.

    Raises:
        OSError: if it is not a regular file, not in one of ``FORMATS``, or more than 8 bits deep.
        Exception: whatever PIL's readers raise, such as its guard against decompression bombs.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        raise OSError("not a regular file")  # reading a pipe or device could block forever
    with PathManager.open(str(file), "rb") as opened:
        try:
            image = Image.open(opened, formats=_formats())
        except UnidentifiedImageError:
            raise OSError(f"it is none of {', '.join(_formats())}") from None
        with image:
            require_8_bit(image)
            yield image


def require_8_bit(image: Image.Image) -> None:
    """Raises OSError for deeper gray levels, which Pillow and so detectron2 would turn white."""
    if image.mode[0] in "IF":  # 16 and 32 bits, and floating point
        raise OSError(
            f"its gray levels have more than 8 bits (Pillow's mode {image.mode}) and would turn "
            "white; save it with 8 bits"
        )


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def is_sideways(image: Image.Image) -> bool:
    """Whether detectron2's ``read_image`` swaps width and height, as the EXIF orientation says."""
    try:
        # PngImageFile's own getexif would decode the whole image
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:
        return False  # detectron2, too, ignores broken EXIF data
    return orientation in (5, 6, 7, 8)


def reason_of(error: Exception) -> str:
    """What an error of a file or decoder says, on one line."""
    text = " ".join(str(error).split()) if not isinstance(error, OSError) else error.strerror
    return text or " ".join(str(error).split()) or type(error).__name__


def names_in(folder: Path) -> list[str]:
    """Sorted names of the files and folders in ``folder``; empty if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []
