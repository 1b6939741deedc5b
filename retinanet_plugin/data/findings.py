"""Findings about a COCO dataset, and the fixes that they carry."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .coco_fields import Row, is_coordinates, is_id, is_outline

SEVERITIES = ("error", "warning", "info")

Rule = Literal[
    "unusable-file",
    "malformed-entry",
    "duplicate-id",
    "duplicate-class-name",
    "classes-differ",
    "undeclared-class",
    "unused-class",
    "unknown-image",
    "missing-image",
    "unreadable-image",
    "truncated-image",
    "image-size",
    "exif-rotation",
    "duplicate-image",
    "image-in-both-splits",
    "box-not-finite",
    "empty-box",
    "box-outside",
    "duplicate-box",
    "large-box",
    "no-boxes",
]

Box = tuple[float, float, float, float]  # XYXY in pixels
Entry = tuple[str, int]  # a list of the dataset, such as "annotations", and an index into it
Changes = Mapping[str, Any]  # of an entry: new values by key; None deletes the key


@dataclass(frozen=True, slots=True)
class Finding:
    """An entry of a dataset, or its file, that breaks a rule.

    Args:
        severity: "error": training refuses it, fails at it or reports a wrong AP; "warning": worth
            a look; "info": not a fault.
        rule: the rule's name.
        file: the COCO JSON.
        message: which entry, what was found, what is allowed, and what to do; without a period.
        entry: the entry, unless the finding is about the whole file.
        image: ``file_name`` of the image concerned, if there is one.
        box: the box concerned.
        rank: the higher, the worse among findings of the same rule.
        fixes: changes of entries that resolve it, None to remove one. Empty: a person must decide.
    """

    severity: str
    rule: Rule
    file: Path
    message: str
    entry: Entry | None = None
    image: str | None = None
    box: Box | None = None
    rank: float = 0.0
    fixes: Mapping[Entry, Changes | None] | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def apply_fixes(content: Row, findings: Iterable[Finding]) -> tuple[Row, Counter[str]]:
    """Returns a copy of a COCO dict with all fixes applied, and how many entries they changed."""
    fixes: dict[Entry, Changes | None] = {}
    counts = Counter[str]()
    for finding in findings:
        for entry, changes in (finding.fixes or {}).items():
            before = fixes.get(entry, {})
            if before is not None:  # else it is removed already
                fixes[entry] = None if changes is None else {**before, **changes}
                verb = "removed" if changes is None else "changed"
                counts[f"{entry[0]} {verb} ({finding.rule})"] += 1
    fixed = dict(content)
    for name in {name for name, _ in fixes}:
        fixed[name] = []
        for index, row in enumerate(content[name]):
            changes = fixes.get((name, index), {})
            if changes is not None:
                fixed[name].append(_changed(row, changes) if changes else row)
    return fixed, counts


def complete(content: Row) -> tuple[Row, Counter[str]]:
    """Returns a copy of a COCO dict with all that can be derived, and counts of what was added.

    COCO's evaluation needs areas, crowd flags and annotation ids; detectron2's loader drops boxes
    whose segmentation it cannot use.
    """
    counts = Counter[str]()
    content = dict(content)
    if not isinstance(content.get("info"), dict):  # older pycocotools fail without
        content["info"] = {}
        counts["info filled in"] = 1
    rows = [_completed(row, counts) for row in content["annotations"]]
    # Evaluation takes a match with id 0 for no match, and detectron2 refuses duplicate ids.
    ids = {row.get("id") for row in rows if is_id(row.get("id")) and row["id"] > 0}
    if len(ids) < len(rows):
        rows = [{**row, "id": i} for i, row in enumerate(rows, start=1)]
        counts["annotation ids numbered anew"] = len(rows)
    content["annotations"] = rows
    return content, counts


def _completed(row: Row, counts: Counter[str]) -> Row:
    changes: Row = {}
    if row.get("area") is None or row["area"] < 0:
        changes["area"] = row["bbox"][2] * row["bbox"][3]
        counts["areas filled in"] += 1
    if type(row.get("iscrowd")) is not int:
        changes["iscrowd"] = int(row.get("iscrowd") or 0)
        counts["iscrowd flags filled in"] += 1
    if not is_outline(row.get("segmentation")):
        changes["segmentation"] = None
        counts["unusable segmentations removed"] += 1
    if not is_coordinates(row.get("keypoints") or []):
        changes["keypoints"] = None
        counts["unusable keypoints removed"] += 1
    return _changed(row, changes) if changes else row


def _changed(row: Row, changes: Changes) -> Row:
    changed = {**row, **changes}
    return {key: value for key, value in changed.items() if value is not None or key not in changes}
