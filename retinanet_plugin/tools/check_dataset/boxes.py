"""Boxes: empty, outside, there twice, very large, out of reach of anchors; and their classes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from ...data.coco_entries import Row, box_faults, fault_of_empty, is_id, show
from ...data.dataset_boxes import DatasetBoxes, ImageScale
from ...evaluation.anchor_coverage import Anchors, measure
from .entries import CheckedSet
from .pictures import Files, is_unturned

SAME_BOX = 0.95  # IoU of two boxes of one object: people never draw one alike twice
LARGE = 0.9  # of the picture's area
RARE = 10  # boxes: LVIS calls a class rare that is in at most so many pictures ...
RARE_SHARE = 0.2  # ... and if all classes are small, none is: of the boxes of the largest
_PIECE = 2**22  # IoUs at a time


def is_crowd(row: Row) -> bool:
    return bool(row.get("iscrowd") == 1)


# ---------------------------------------------------------------- one box


def check_boxes(checked: CheckedSet, files: Files) -> None:
    """Tells of boxes that are empty, outside, there twice or nearly as large as the picture."""
    indices = list(checked.annotations)
    rows = list(checked.annotations.values())
    limits = {number: _limit(checked, files, image) for number, image in checked.images.items()}
    limit = np.array([limits[row["image_id"]] for row in rows], dtype=np.float64).reshape(-1, 2)
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    empty, outside, gone, inner = box_faults(boxes, limit)

    def tell(severity: str, kind: str, i: int, text: str, rank: float = 0.0) -> None:
        x, y, width, height = boxes[i].tolist()
        box = (x, y, x + width, y + height)
        index = indices[i]
        checked.tell_of_annotation(severity, kind, index, rows[i], text, box=box, rank=rank)

    for i in np.flatnonzero(empty).tolist():
        tell("error", "empty box", i, fault_of_empty(rows[i]))
    lost = 1 - inner[:, 2:].prod(axis=1) / np.where(empty, 1, boxes[:, 2:].prod(axis=1))
    for i in np.flatnonzero(outside).tolist():
        width, height = limit[i].astype(int)
        text = f"bbox {show(rows[i]['bbox'])} reaches outside its picture of {width} x {height}"
        tell("error", "box outside", i, text, lost[i])
    judged = ~gone & ~np.array([is_crowd(row) for row in rows], dtype=bool)
    share = inner[:, 2:].prod(axis=1) / limit.prod(axis=1)
    for i in np.flatnonzero(judged & ~outside & (share >= LARGE)).tolist():
        text = f"bbox {show(rows[i]['bbox'])} covers {share[i]:.0%} of its picture"
        tell("warning", "large box", i, text, share[i])
    checked.sound = {indices[i] for i in np.flatnonzero(judged & ~outside)}
    some = np.flatnonzero(judged).tolist()
    for i, first, iou in same_boxes([rows[i] for i in some], inner[some]):
        i, first = some[i], some[first]
        name = checked.categories[rows[i]["category_id"]]
        text = (
            f"bbox {show(rows[i]['bbox'])} of class {show(name)} is that of "
            f"annotations[{indices[first]}] again (IoU {iou:.3f})"
        )
        tell("warning", "duplicate box", i, text, iou)


def _limit(checked: CheckedSet, files: Files, image: Row) -> tuple[float, float]:
    """Width and height that a box may reach to.

    Where the size is told to be wrong, boxes may be of the one or the other: only those that fit
    neither are faults of their own.
    """
    size, file = checked.size_of(image), files[checked.source.folder, image["file_name"]]
    if size is None:
        return np.inf, np.inf
    if file.kind or is_unturned(file, size):
        return size
    return max(size[0], file.size[0]), max(size[1], file.size[1])


def same_boxes(rows: Sequence[Row], boxes: np.ndarray) -> list[tuple[int, int, float]]:
    """Which boxes, XYWH, repeat an earlier one of their picture and class that repeats none.

    Returns:
        the box, the earlier one, and their IoU.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row["image_id"], row["category_id"]), []).append(i)
    found = []
    corners = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    for group in groups.values():
        repeats: dict[int, tuple[int, float]] = {}
        part, step = Boxes(corners[group]), max(_PIECE // len(group), 1)
        for start in range(0, len(group) if len(group) > 1 else 0, step):
            iou = pairwise_iou(part[start : start + step], part)
            for later, earlier in torch.nonzero(iou >= SAME_BOX).tolist():
                if earlier < start + later and not {earlier, start + later} & repeats.keys():
                    repeats[start + later] = earlier, float(iou[later, earlier])
        found += [(group[i], group[first], iou) for i, (first, iou) in repeats.items()]
    return found


# ---------------------------------------------------------------- anchors


@dataclass(frozen=True)
class AnchorRule:
    """What a box needs of its best anchor.

    Args:
        scales: that training resizes to.
        background: IoU below which an anchor is background; positive: from which it is a positive.
        low_quality: whether a box takes its best anchors, however far they are.
    """

    anchors: Anchors
    scales: Sequence[ImageScale]
    background: float
    positive: float
    low_quality: bool


def check_anchors(
    checked: CheckedSet, files: Files, rule: AnchorRule, track: Callable[[int], object]
) -> None:
    """Tells of boxes of which no anchor becomes a positive by its IoU, at any of the sizes.

    Pictures whose size is not what the JSON says are left out.

    Args:
        track: is told how many boxes have been done, each once for each size.
    """
    known = {
        number: file.size[::-1]
        for number, row in checked.images.items()
        if checked.size_of(row) == (file := files[checked.source.folder, row["file_name"]]).size
    }
    if not known:
        return
    sizes = np.array(list(known.values()))
    least = np.min([scale.resized(sizes).min(axis=1) for scale in rule.scales], axis=0)
    sizes = sizes[least > 0]  # a strip of a picture may be resized to nothing
    place = {number: i for i, number in enumerate(np.array(list(known))[least > 0].tolist())}
    chosen = [
        (index, row)
        for index, row in checked.annotations.items()
        if index in checked.sound and row["image_id"] in place
    ]
    if not chosen:
        return
    boxes = np.array([row["bbox"] for _, row in chosen], dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    data = DatasetBoxes(
        boxes,
        np.zeros(len(boxes), dtype=np.int64),
        np.array([place[row["image_id"]] for _, row in chosen]),
        sizes,
        [""] * len(sizes),
        list(place),
        ("box",),
    )
    found = measure(data, rule.anchors, rule.scales, (rule.background,), progress=track)
    best = np.zeros(len(boxes))
    np.maximum.at(best, found.box, found.iou)
    for i in np.flatnonzero(best < np.float32(rule.positive)).tolist():
        index, row = chosen[i]
        alone = rule.low_quality and best[i] >= rule.background
        text = (
            f"bbox {show(row['bbox'])}: the best anchor has an IoU of {best[i]:.2f}, and a "
            f"positive {rule.positive:g}; "
        )
        if rule.low_quality:
            text += "it trains by its best anchor alone, which low-quality matches allow"
        else:
            text += "nothing trains towards it"
        severity = "info" if alone else "warning"
        checked.tell_of_annotation(
            severity,
            "unmatched box",
            index,
            row,
            text,
            box=tuple(boxes[i].tolist()),
            rank=1 - float(best[i]),
        )


# ---------------------------------------------------------------- classes


def counts_of(checked: CheckedSet) -> Counter[int]:
    """Boxes of each category id, crowds left out."""
    return Counter(row["category_id"] for row in checked.annotations.values() if not is_crowd(row))


def check_classes(sets: Sequence[CheckedSet]) -> None:
    """Tells of classes that differ between sets, have no box or few, and pictures without boxes."""
    read = [checked for checked in sets if checked.content is not None]
    for other in read[1:]:
        _check_same(read[0], other)
    training = [checked for checked in read if checked.source.training]
    for checked in training:
        if not counts_of(checked):
            checked.tell("error", "unusable file", "holds no usable box to train on")
    # Faulty boxes count: what is wrong with them is told already.
    trained = training or read
    rows = [row for checked in trained for row in checked.objects("annotations")]
    given = (row.get("category_id") for row in rows if not is_crowd(row))
    counts = Counter(number for number in given if is_id(number))
    most = max(counts.values(), default=0)
    named = {number: checked for checked in reversed(trained) for number in checked.categories}
    for number, checked in named.items():
        count, known_as = counts[number], f"{show(checked.categories[number])} (id {number})"
        if not count:
            checked.tell("warning", "unused class", f"{known_as} has no box")
        elif count <= RARE and count <= RARE_SHARE * most:
            boxes = "box" if count == 1 else "boxes"
            text = f"{known_as} has {count} {boxes}, the largest class {most:,}"
            checked.tell("warning", "rare class", text, rank=-float(count))
    for checked in read:
        with_boxes = {
            row["image_id"] for row in checked.objects("annotations") if is_id(row.get("image_id"))
        }
        for number, row in checked.images.items():
            if number not in with_boxes:
                checked.tell_of_image("info", "no boxes", row, "has no boxes")


def _check_same(first: CheckedSet, other: CheckedSet) -> None:
    for number, name in other.categories.items():
        there = first.categories.get(number)
        if there != name and (there or number not in first.declared):
            is_there = f"is {show(there)}" if there else "is not declared"
            text = f"id {number} {show(name)} {is_there} in {first.source.file}"
            other.tell("error", "classes differ", text)
    for number, name in first.categories.items():
        if number not in other.declared:
            text = f"id {number} {show(name)} of {first.source.file} is missing"
            other.tell("error", "classes differ", text)
