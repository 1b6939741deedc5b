"""Reads images with errors that name the file, and refuses what is not safe to open."""

import os
from collections.abc import Iterator
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

# Formats that Pillow decodes in this process: for EPS it would start Ghostscript, which runs
# programs. Phones' MPO counts as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")


class ReadableDatasetMapper(DatasetMapper):
    """detectron2's mapper for training and testing, with errors that name the image.

    Raises:
        UserError: when called on an image that is missing, damaged, not in one of ``FORMATS``,
            larger than PIL's guard against decompression bombs allows, or not of the size that the
            annotations say.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            with open_image(dataset_dict["file_name"]):
                pass  # the header is in order
            return super().__call__(dataset_dict)
        except Exception:
            # The file is at fault only if it also fails alone; otherwise an augmentation is.
            fault = _fault_when_decoded(dict(dataset_dict), self.image_format)
            if fault is None:
                raise
            raise UserError(f"{dataset_dict['file_name']}: {fault}") from None


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


def _fault_when_decoded(dataset_dict: dict[str, Any], image_format: str) -> str | None:
    try:
        image = read_image(dataset_dict["file_name"], image_format)
        utils.check_image_size(dataset_dict, image)
    except utils.SizeMismatchError:
        return (
            f"the image is {image.shape[1]} x {image.shape[0]}, but its annotations say "
            f"{dataset_dict['width']} x {dataset_dict['height']}; correct width and height there"
        )
    except Exception as error:  # PIL's decoders raise nearly everything on damaged files
        return f"the image cannot be read ({reason_of(error)}); replace the file or its entry"
    return None


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
    """Sorted names of the files in ``folder``; empty if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []
