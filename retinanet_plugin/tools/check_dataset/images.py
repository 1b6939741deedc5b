"""Decodes every image once, several at a time, and finds images that occur twice."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...data.coco_fields import show
from ...data.findings import Finding, Rule
from ...data.image_rules import ImageFile, missing_images, read_header
from ...data.images import read_image, reason_of
from ...utils import cpu_count
from .checked_set import CheckedSet, Files


def decode_images(sets: Sequence[CheckedSet]) -> Files:
    """Decodes the images of all datasets; keeps what the rules need, but no pixels."""
    files: Files = {}
    paths: dict[Path, None] = {}
    for split in sets:
        names = [row["file_name"] for row in split.dataset.images.values()]
        files |= missing_images(split.source.images, names)
        paths |= dict.fromkeys(split.source.images / name for name in names)
    present = [path for path in paths if path not in files]
    with warnings.catch_warnings(), tqdm(total=len(present), desc="images", unit="image") as bar:
        warnings.simplefilter("ignore")  # PIL's, about what is reported here anyway
        # Decoding releases the interpreter lock. Ctrl-C ends the pool without decoding the rest.
        with ThreadPool(cpu_count()) as pool:
            for path, file in zip(present, pool.imap(decode, present), strict=True):
                files[path] = file
                bar.update()
    return files


def decode(path: Path) -> ImageFile:
    """Reads an image to its last pixel, like detectron2 does."""
    header = read_header(path)
    if header.rule:
        return header
    try:
        pixels = read_image(str(path), "RGB")
    except Exception as error:  # PIL's decoders raise nearly everything on damaged files
        message = f"its pixels cannot be decoded ({reason_of(error)}); replace it or its entry"
        return ImageFile("truncated-image", message)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width} x {height}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return replace(header, size=(width, height), pixels=digest.digest())


Item = tuple[CheckedSet, int]  # an image, by its id


def find_repeated(sets: Sequence[CheckedSet], files: Files) -> Iterator[tuple[CheckedSet, Finding]]:
    """Yields images whose pixels occur before in their split, or in both splits.

    The finding is about the dataset that it is yielded with.
    """
    groups: dict[bytes, list[Item]] = defaultdict(list)
    for split in sets:
        for image_id in split.dataset.images:
            file = files[split.path_of(image_id)]
            if not file.rule:  # else it is reported already
                groups[file.pixels].append((split, image_id))
    for group in groups.values():
        trained = [item for item in group if item[0].source.training]
        tested = [item for item in group if not item[0].source.training]
        for items in (trained, tested):
            for item in items[1:]:
                yield _repeated("warning", "duplicate-image", item, items[0])
        for item in trained if tested else ():
            yield _repeated("error", "image-in-both-splits", item, tested[0])


def _repeated(severity: str, rule: Rule, item: Item, other: Item) -> tuple[CheckedSet, Finding]:
    split, entry = item[0], item[0].dataset.image_entry(item[1])
    name = show(other[0].dataset.images[other[1]]["file_name"])
    message = f"has the same pixels as {name} (id {other[1]}) of {other[0].source.name}"
    fixes = {entry: None} if severity == "error" else None
    return split, split.dataset.finding(severity, rule, message, entry, fixes=fixes)
