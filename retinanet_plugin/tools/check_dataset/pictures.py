"""The one pass over pictures: each is decoded as detectron2 does it, several at a time."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...data.coco_entries import Row, show
from ...data.images import (
    SIDEWAYS,
    absent_from,
    open_picture,
    orientation_of,
    read_picture,
    reason_of,
    where_instead,
)
from .entries import CheckedSet

_HINTS = 20  # absent pictures that are looked for elsewhere, folder by folder

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file as it was found.

    Args:
        kind: of the fault that makes it unusable, with ``text``; None: it can be read.
        stored, size: before and after EXIF's ``orientation``.
        content, pixels: hashes of the file, and of what was decoded.
    """

    kind: str | None = None
    text: str = ""
    stored: Size = (0, 0)
    size: Size = (0, 0)
    orientation: int = 1
    content: bytes = b""
    pixels: bytes = b""


Files = dict[tuple[Path, str], PictureFile]  # by folder and name in the JSON


def look_at(sets: Sequence[CheckedSet], workers: int) -> Files:
    """Decodes each picture of the sets once, and keeps what was found but not its pixels.

    Args:
        workers: threads, each with one picture in memory at a time: decoding needs no Python.
    """
    folders = {checked.source.folder for checked in sets}
    is_absent = {folder: absent_from(folder) for folder in folders}
    named = [(c.source.folder, row["file_name"]) for c in sets for row in c.images.values()]
    wanted = list(dict.fromkeys(named))
    absent = {
        (folder, name): f"is not in {folder}" for folder, name in wanted if is_absent[folder](name)
    }
    for folder, name in list(absent)[:_HINTS]:
        absent[folder, name] += where_instead(folder, name)

    def look(key: tuple[Path, str]) -> PictureFile:
        if key in absent:
            return PictureFile("absent picture", f"{absent[key]}; add it or remove the entry")
        return look_at_file(key[0] / key[1])

    files = {}
    with warnings.catch_warnings(), tqdm(total=len(wanted), desc="pictures", unit="picture") as bar:
        warnings.simplefilter("ignore")  # PIL's, of what is reported here, without a name
        pool = ThreadPoolExecutor(workers)
        try:
            for key, file in zip(wanted, pool.map(look, wanted), strict=True):
                files[key] = file
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C only those begun are waited for
    return files


def look_at_file(path: Path) -> PictureFile:
    """Reads a file to its last pixel."""
    stored = None
    try:
        with open_picture(path) as image:
            stored, orientation = image.size, orientation_of(image)
        pixels = read_picture(str(path), "RGB")
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    except Exception as error:  # PIL's decoders raise nearly everything on damaged files
        kind = "truncated picture" if stored else "unreadable picture"
        what = "its pixels cannot be decoded" if stored else "cannot be read as a picture"
        return PictureFile(kind, f"{what} ({reason_of(error)}); replace it or its entry")
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width} x {height}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return PictureFile(None, "", stored, (width, height), orientation, content, digest.digest())


def check_pictures(checked: CheckedSet, files: Files) -> None:
    """Tells of pictures that are not usable, or not of the size that the JSON says."""
    for row in checked.images.values():
        file = files[checked.source.folder, row["file_name"]]
        if file.kind:
            checked.tell_of_image("error", file.kind, row, file.text)
            continue
        size = checked.size_of(row)
        if is_unturned(file, size):
            checked.tell_of_image(
                "error",
                "EXIF rotation",
                row,
                f"EXIF asks to turn it ({file.orientation}), and detectron2 does: it is "
                f"{_by(file.size)} then, but the JSON says {_by(size)}, as it is stored, so its "
                "boxes are those of the picture before it is turned",
            )
        elif size and size != file.size:
            turned = " after its EXIF rotation" if file.orientation in SIDEWAYS else ""
            checked.tell_of_image(
                "error",
                "picture size",
                row,
                f"is {_by(file.size)}{turned}, but the JSON says {_by(size)}",
                rank=abs(np.log(np.prod(file.size) / np.prod(size, dtype=float))),
            )
        elif file.orientation != 1:
            told = file.orientation in SIDEWAYS and file.stored != file.size and size
            checked.tell_of_image(
                "info" if told else "warning",
                "EXIF rotation",
                row,
                f"EXIF asks to turn or flip it ({file.orientation}), and detectron2 does; "
                + (
                    "the JSON has the size of the turned picture"
                    if told
                    else "its size does not tell whether its boxes are turned too: look at them"
                ),
            )


def is_unturned(file: PictureFile, size: Size | None) -> bool:
    """Whether the JSON's size is that of the picture before EXIF swaps its sides."""
    return file.orientation in SIDEWAYS and size == file.stored != file.size


def _by(size: Size | None) -> str:
    return "{} x {}".format(*size) if size else "nothing"


def check_repeated(sets: Sequence[CheckedSet], files: Files) -> list[tuple[CheckedSet, int]]:
    """Tells of pictures that come twice, by their pixels; in training alone, or in both splits.

    Returns:
        the training sets' images that a test set has too, by id.
    """
    # What cannot be decoded is told of already; files of one content have the same pixels.
    seen: dict[bytes, list[tuple[CheckedSet, Row]]] = defaultdict(list)
    for checked in sets:
        for row in checked.images.values():
            file = files[checked.source.folder, row["file_name"]]
            if not file.kind:
                seen[file.pixels].append((checked, row))
    leaked = []
    for places in seen.values():
        for training in (True, False):
            alike = [place for place in places if place[0].source.training is training]
            for checked, row in alike[1:]:
                text = f"{_same(files, (checked, row), alike[0])}, which is there already"
                checked.tell_of_image("warning", "picture twice", row, text)
        tested = [place for place in places if not place[0].source.training]
        for checked, row in places if tested else ():
            if checked.source.training:
                leaked.append((checked, row["id"]))
                text = f"{_same(files, (checked, row), tested[0])}, which is tested on"
                checked.tell_of_image("error", "picture in both splits", row, text)
    return leaked


def _same(files: Files, one: tuple[CheckedSet, Row], other: tuple[CheckedSet, Row]) -> str:
    a, b = (files[checked.source.folder, row["file_name"]] for checked, row in (one, other))
    what = "the same file" if a.content == b.content else "the same pixels in another file"
    checked, row = other
    return f"{what} as {show(row['file_name'])} (id {row['id']}) of {checked.source.name}"
