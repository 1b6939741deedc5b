"""Reads one COCO detection JSON and checks it to its last entry before anything trains on it."""

import codecs
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from .coco_fields import Row
from .coco_rules import CocoDataset
from .findings import Finding, apply_fixes, complete

# COCO's own largest file has 0.45 GB; reading a file takes about 8 times its size in memory.
MAX_BYTES = 2 * 1024**3


class UnusableFileError(UserError):
    """A file that is no COCO JSON at all; ``finding`` says why."""

    def __init__(self, file: Path, message: str) -> None:
        self.finding = Finding("error", "unusable-file", file, message)
        super().__init__(f"{self.finding}.")


def read_coco(
    path: Path,
    *,
    for_training: bool = True,
    bad_boxes: str = "error",
    remedy: str = 'set DATASETS.OWN.BAD_BOXES to "fix"',
) -> CocoDataset:
    """Reads and checks a COCO detection JSON; the file itself is never changed.

    Args:
        path: the file.
        for_training: whether the dataset needs at least one box that is no crowd.
        bad_boxes: "error" refuses boxes that are empty or reach more than a pixel outside their
            image; "fix" clips the latter and removes what is empty.
        remedy: how to ask for "fix", for the error.

    Returns:
        The dataset, with what could be fixed or derived, which its ``changes`` count.

    Raises:
        UserError: for the first error, naming file and entry.
    """
    content, changes = parse(path)
    dataset = CocoDataset(path, content)
    raise_first_error(dataset.check())
    raise_first_error(dataset.check_sizes())
    faults = list(dataset.check_boxes())
    if faults and bad_boxes != "fix":
        raise UserError(f"{faults[0]}; fix it, or {remedy}.")
    content, fixed = apply_fixes(content, faults)
    content, derived = complete(content)
    changes += fixed + derived
    if changes:
        dataset = CocoDataset(path, content)
        raise_first_error(dataset.check())
    if for_training:
        raise_first_error(dataset.check_training())
    dataset.changes = tuple(f"{what}: {count}" for what, count in changes.items())
    return dataset


def raise_first_error(findings: Iterable[Finding]) -> None:
    """Raises UserError for the first finding that is an error; otherwise uses up the iterable."""
    for finding in findings:
        if finding.severity == "error":
            raise UserError(f"{finding}.")


def parse(path: Path) -> tuple[Row, Counter[str]]:
    """Reads a JSON whose top level is an object.

    Returns:
        The object, and what had to be removed to read it.

    Raises:
        UnusableFileError: if the file cannot be read, is too large or is no such JSON.
    """
    if not path.is_file():
        raise UnusableFileError(path, "no such file; correct the path")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnusableFileError(
            path,
            f"{size / 1024**3:.1f} GiB; a COCO JSON may have {MAX_BYTES / 1024**3:.0f} GiB; leave "
            "out what boxes do not need (segmentation)",
        )
    raw = path.read_bytes()
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        message = "lists or objects are nested too deeply for a COCO JSON; export it again"
        raise UnusableFileError(path, message) from None
    except ValueError as error:  # no JSON, not UTF-8, or an integer of thousands of digits
        raise UnusableFileError(
            path,
            f"not valid JSON ({error}); export it again, or make one from VOC, YOLO or CSV by "
            "`retinanet convert-dataset`",
        ) from None
    if not isinstance(content, dict):
        raise UnusableFileError(
            path,
            'the top level is not an object; it must be one with "images", "annotations" and '
            '"categories"',
        )
    has_mark = raw.startswith(codecs.BOM_UTF8)  # pycocotools fails with one
    return content, Counter({"byte order marks removed": 1} if has_mark else {})
