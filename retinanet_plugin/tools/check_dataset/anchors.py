"""Boxes that no anchor matches at any training size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...data.coco_fields import Row, is_crowd, show
from ...data.coco_rules import box_faults
from ...data.dataset_boxes import DatasetBoxes, ImageScale
from ...data.findings import Finding
from ...evaluation.anchor_coverage import Anchors, measure
from .checked_set import CheckedSet, Files


@dataclass(frozen=True)
class AnchorRule:
    """What a box needs of its best anchor.

    Args:
        scales: that training resizes images to.
        background: IoU below which an anchor is background.
        positive: IoU from which an anchor is positive.
        low_quality: whether a box takes its best anchors, whatever their IoU.
    """

    anchors: Anchors
    scales: Sequence[ImageScale]
    background: float
    positive: float
    low_quality: bool


def find_unmatched(
    one: CheckedSet, files: Files, rule: AnchorRule, progress: Callable[[int], object]
) -> Iterator[Finding]:
    """Yields sound boxes that reach a positive's IoU with no anchor, at any training size.

    Args:
        progress: is called with the number of boxes done since the last call; each box counts
            once per size.
    """
    rows = _sound_boxes(one, files)
    if not rows:
        return
    boxes = np.array([row["bbox"] for row in rows.values()], dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    ids = [row["image_id"] for row in rows.values()]
    image_ids, image = np.unique(ids, return_inverse=True)
    sizes = np.array([files[one.path_of(number)].size[::-1] for number in image_ids.tolist()])
    data = DatasetBoxes(
        boxes,
        np.zeros(len(boxes), dtype=np.int64),
        image,
        sizes,
        ("box",),
    )
    coverage = measure(data, rule.anchors, rule.scales, (rule.background,), progress=progress)
    best = np.zeros(len(boxes))
    np.maximum.at(best, coverage.box, coverage.iou)
    indices = list(rows)
    for i in np.flatnonzero(best < np.float32(rule.positive)).tolist():
        message = (
            f"bbox {show(rows[indices[i]]['bbox'])}: its best anchor has an IoU of {best[i]:.2f}, "
            f"a positive one {rule.positive:g}; "
        )
        if rule.low_quality:
            message += "only its best anchor is trained on it, as a low-quality match"
        else:
            message += "no anchor is trained on it"
        is_low_quality_match = rule.low_quality and best[i] >= rule.background
        yield one.dataset.finding(
            "info" if is_low_quality_match else "warning",
            "unmatched-box",
            message,
            ("annotations", indices[i]),
            box=tuple(boxes[i].tolist()),
            rank=1 - float(best[i]),
        )


def _sound_boxes(one: CheckedSet, files: Files) -> dict[int, Row]:
    """Annotations by index whose box is trained on, in images whose size in the JSON is right."""
    dataset = one.dataset
    images = {
        number
        for number in dataset.images
        if dataset.size_of(number) == files[one.path_of(number)].size
    }
    _, outside, gone, _ = box_faults(*dataset.boxes())
    faulty = (outside | gone).tolist()
    return {
        index: row
        for (index, row), bad in zip(dataset.annotations.items(), faulty, strict=True)
        if not bad and row["image_id"] in images and not is_crowd(row)
    }
