"""Boxes that are labeled twice or suspiciously large, and classes and images without boxes."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from ...data.coco_fields import is_crowd, is_id, show
from ...data.coco_rules import CocoDataset, box_faults
from ...data.findings import Finding, Rule
from .checked_set import CheckedSet

SAME_BOX = 0.95  # IoU of two boxes of one object; nobody draws the same box twice this precisely
LARGE = 0.9  # of the image's area


def find_suspicious(dataset: CocoDataset) -> Iterator[Finding]:
    """Yields usable boxes that repeat another one, or nearly cover their image; no crowds."""
    boxes, limits = dataset.boxes()
    _, outside, gone, clipped = box_faults(boxes, limits)
    rows, indices = list(dataset.annotations.values()), list(dataset.annotations)
    judged = ~gone & ~np.array([is_crowd(row) for row in rows], dtype=bool)
    share = clipped[:, 2:].prod(axis=1) / limits.prod(axis=1)

    def finding(rule: Rule, i: int, message: str, rank: float, *, remove: bool = False) -> Finding:
        entry = ("annotations", indices[i])
        x, y, width, height = boxes[i].tolist()
        text = f"bbox {show(rows[i]['bbox'])} {message}"
        box = (x, y, x + width, y + height)
        fixes = {entry: None} if remove else None
        return dataset.finding("warning", rule, text, entry, box=box, rank=rank, fixes=fixes)

    for i in np.flatnonzero(judged & ~outside & (share >= LARGE)).tolist():
        yield finding("large-box", i, f"covers {share[i]:.0%} of its image", float(share[i]))
    groups: dict[tuple[int, int], list[int]] = {}
    for i in np.flatnonzero(judged).tolist():
        groups.setdefault((rows[i]["image_id"], rows[i]["category_id"]), []).append(i)
    for (_, category), group in groups.items():
        if len(group) < 2:
            continue
        for repeat, first, iou in _repeats(clipped[group]):
            name = show(dataset.categories[category])
            message = (
                f"of class {name} repeats annotations[{indices[group[first]]}] (IoU {iou:.3f})"
            )
            yield finding("duplicate-box", group[repeat], message, iou, remove=True)


def _repeats(boxes: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yields boxes, XYWH, that repeat an earlier one which repeats none: both, and their IoU."""
    starts, sizes = torch.from_numpy(boxes).split(2, dim=1)
    corners = Boxes(torch.cat([starts, starts + sizes], dim=1))
    iou = pairwise_iou(corners, corners).tril(diagonal=-1)
    repeats: set[int] = set()
    for later, earlier in torch.nonzero(iou >= SAME_BOX).tolist():
        if not {earlier, later} & repeats:
            repeats.add(later)
            yield later, earlier, float(iou[later, earlier])


def count_boxes(dataset: CocoDataset) -> Counter[int]:
    """Usable boxes by category id, without crowds."""
    rows = dataset.annotations.values()
    return Counter(row["category_id"] for row in rows if not is_crowd(row))


def find_class_problems(sets: Sequence[CheckedSet]) -> Iterator[tuple[CheckedSet, Finding]]:
    """Yields classes that differ between datasets or have no boxes, and images without boxes.

    The finding is about the dataset that it is yielded with.
    """
    sets = [split for split in sets if split.readable]
    for other in sets[1:]:
        for finding in other.dataset.compare_classes(sets[0].dataset):
            yield other, finding
    for split in sets:
        for finding in split.dataset.check_training() if split.source.training else ():
            yield split, finding
    trained = [split for split in sets if split.source.training] or sets
    # Faulty boxes count as well: they are reported already.
    rows = [row for split in trained for _, row in split.dataset.rows("annotations")]
    used = {number for row in rows if is_id(number := row.get("category_id")) and not is_crowd(row)}
    named = {number: split for split in reversed(trained) for number in split.dataset.categories}
    for number, split in named.items():
        if number not in used:
            message = f"{show(split.dataset.categories[number])} (id {number}) has no box"
            yield split, split.dataset.finding("warning", "unused-class", message)
    for split in sets:
        ids = (row.get("image_id") for _, row in split.dataset.rows("annotations"))
        with_boxes = {number for number in ids if is_id(number)}
        for number in split.dataset.images.keys() - with_boxes:
            entry = split.dataset.image_entry(number)
            yield split, split.dataset.finding("info", "no-boxes", "has no boxes", entry)
