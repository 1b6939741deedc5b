"""Detections matched with ground truth as AP matches them, for all classes and pictures at once.

The rules, IoU and thresholds are those of pycocotools' ``COCOeval``, and so is every match, to the
last tie: the tests compare. That one goes through every detection anew for each threshold and area,
and knows no IoU between classes; here only detections that reach an IoU of 0.5 with a box of their
class are gone through, for all thresholds and areas together, which takes a tenth of its time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.cocoeval import Params

PARAMS = Params(iouType="bbox")
IOUS: np.ndarray = PARAMS.iouThrs  # (T,): 0.5, 0.55 .. 0.95
RECALLS: np.ndarray = PARAMS.recThrs  # (R,): 0, 0.01 .. 1
AREAS = np.array(PARAMS.areaRng)  # (A, 2): all, small, medium, large; both ends belong to it
MAX_DETECTIONS: int = PARAMS.maxDets[
    -1
]  # of a class in a picture; those of low score are passed over
BACKGROUND = 0.1  # IoU below which a detection has nothing to do with a box (TIDE, section 2.2)


@dataclass(frozen=True)
class Truths:
    """The M boxes of ground truth, by picture, in the order of the JSON.

    Args:
        image, label: (M,) int64, indices of picture and class.
        box: (M, 4) float64, x, y, width, height.
        area: (M,) float64, as the JSON says, which may be a mask's.
        crowd: (M,) bool, regions in which detections are not judged.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def ignored(self) -> np.ndarray:
        """(A, M) bool: crowds, and what is not of the area."""
        return self.crowd | _outside(self.area)


@dataclass(frozen=True)
class Detections:
    """The N detections by picture, then class, then falling score.

    Args:
        image, label: (N,) int64, indices of picture and class.
        box: (N, 4) float64, x, y, width, height.
        score: (N,) float64.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def where(self, kept: np.ndarray) -> "Detections":
        """Those that a (N,) bool keeps."""
        return Detections(*(column[kept] for column in vars(self).values()))


@dataclass(frozen=True)
class Overlaps:
    """The pairs of detections and boxes of a picture whose IoU is at least :data:`BACKGROUND`.

    With a crowd it is the share of the detection that lies in it. By detection, then box.

    Args:
        detection, truth: (P,) int64, their rows.
        iou: (P,) float64.
    """

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray

    def where(self, kept: np.ndarray) -> "Overlaps":
        """Those that a (P,) bool keeps."""
        return Overlaps(*(column[kept] for column in vars(self).values()))


@dataclass(frozen=True)
class Matches:
    """What AP is made of.

    Args:
        image_ids, class_ids: ascending, those of the JSON.
        class_names: as ``class_ids``.
        truth: (A, T, N) int32, the row of the box that a detection was matched with, else -1.
        ignored: (A, T, N) bool, detections that are neither right nor wrong.
    """

    image_ids: list[Any]
    class_ids: list[int]
    class_names: list[str]
    truths: Truths
    detections: Detections
    overlaps: Overlaps
    truth: np.ndarray
    ignored: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.class_ids)

    @cached_property
    def found(self) -> np.ndarray:
        """(N,) int32: :attr:`truth` at IoU 0.5 and any size, -1 also where it is a crowd."""
        return np.where(self.ignored[0, 0], -1, self.truth[0, 0])

    @cached_property
    def judged(self) -> np.ndarray:
        """(N,) bool: right or wrong at IoU 0.5, and not in a crowd."""
        return ~self.ignored[0, 0]

    @cached_property
    def num_boxes(self) -> np.ndarray:
        """(K,) int64: boxes of each class, without crowds."""
        return np.bincount(self.truths.label[~self.truths.crowd], minlength=self.num_classes)

    def above(self, threshold: float) -> "Matches":
        """Of the detections that score at least that; the others took nothing from them."""
        kept = self.detections.score >= threshold
        overlaps = self.overlaps.where(kept[self.overlaps.detection])
        return replace(
            self,
            detections=self.detections.where(kept),
            overlaps=replace(overlaps, detection=(np.cumsum(kept) - 1)[overlaps.detection]),
            truth=self.truth[:, :, kept],
            ignored=self.ignored[:, :, kept],
        )


def match(coco: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Matches:
    """Matches detections in COCO's result format with a COCO JSON's boxes.

    Raises:
        KeyError, TypeError, ValueError: where ``results`` are not of that format.
    """
    image_ids = sorted({image["id"] for image in coco["images"]})
    names = {category["id"]: str(category["name"]) for category in coco["categories"]}
    class_ids = sorted(names)
    image_of = {number: i for i, number in enumerate(image_ids)}
    label_of = {number: i for i, number in enumerate(class_ids)}
    annotations = [
        a for a in coco["annotations"] if a["image_id"] in image_of and a["category_id"] in label_of
    ]
    annotations.sort(key=lambda a: image_of[a["image_id"]])
    truths = Truths(
        *_image_label_box(annotations, image_of, label_of),
        np.array([a["area"] for a in annotations], float),
        np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
    )
    image, label, box = _image_label_box(
        [r for r in results if r["category_id"] in label_of], image_of, label_of
    )
    score = np.array([r["score"] for r in results if r["category_id"] in label_of], float)
    rows = _highest(image, label, score)
    detections = Detections(image[rows], label[rows], box[rows], score[rows])
    overlaps = _overlaps(truths, detections, len(image_ids))
    truth, ignored = _match(truths, detections, overlaps)
    # COCOeval writes down the box's id, and takes one of 0 for no match.
    nameless = np.array([a["id"] == 0 for a in annotations] + [False])
    truth[nameless[truth]] = -1
    return Matches(
        image_ids,
        class_ids,
        [names[number] for number in class_ids],
        truths,
        detections,
        overlaps,
        truth,
        ignored,
    )


def precisions(matches: Matches) -> np.ndarray:
    """``COCOeval.eval["precision"]`` for 100 detections: (T, R, K, A), -1 without ground truth."""
    truths, detections = matches.truths, matches.detections
    curves = np.full((len(IOUS), len(RECALLS), matches.num_classes, len(AREAS)), -1.0)
    in_area = ~truths.ignored()
    by_class = np.argsort(detections.label, kind="stable")
    ends = np.searchsorted(detections.label[by_class], np.arange(matches.num_classes + 1))
    for k in range(matches.num_classes):
        rows = by_class[ends[k] : ends[k + 1]]
        rows = rows[np.argsort(-detections.score[rows], kind="stable")]
        num_boxes = np.count_nonzero(in_area[:, truths.label == k], axis=1)
        for a in np.flatnonzero(num_boxes):
            judged = ~matches.ignored[a][:, rows]
            right = matches.truth[a][:, rows] >= 0
            curves[:, :, k, a] = [
                precision_at_recalls(*both, num_boxes[a])
                for both in zip(right & judged, ~right & judged, strict=True)
            ]
    return curves


def precision_at_recalls(right: np.ndarray, wrong: np.ndarray, num_boxes: int) -> np.ndarray:
    """(R,): the highest precision at each recall of :data:`RECALLS` or more, 0 beyond all.

    Args:
        right, wrong: (n,) bool, of detections by falling score.
        num_boxes: that could be found.
    """
    tp, fp = np.cumsum(right).astype(float), np.cumsum(wrong).astype(float)
    precision = tp / (fp + tp + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(tp / num_boxes, RECALLS, side="left")
    return np.append(envelope, np.zeros(1))[np.minimum(at, len(envelope))]


def _image_label_box(
    entries: Sequence[Mapping[str, Any]], image_of: Mapping[Any, int], label_of: Mapping[Any, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([image_of[e["image_id"]] for e in entries], np.int64),
        np.array([label_of[e["category_id"]] for e in entries], np.int64),
        np.array([e["bbox"] for e in entries], float).reshape(-1, 4),
    )


def _highest(image: np.ndarray, label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Rows by picture, class and falling score, the first 100 of each picture and class."""
    rows = np.lexsort((-score, label, image))
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(image[rows]) != 0) | (np.diff(label[rows]) != 0)
    position = np.arange(len(rows))
    first = np.maximum.accumulate(np.where(new, position, 0))
    return rows[position - first < MAX_DETECTIONS]


def _overlaps(truths: Truths, detections: Detections, num_images: int) -> Overlaps:
    images = np.arange(num_images + 1)
    first_truth = np.searchsorted(truths.image, images)
    first_detection = np.searchsorted(detections.image, images)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for i in images[:-1]:
        t = slice(first_truth[i], first_truth[i + 1])
        d = slice(first_detection[i], first_detection[i + 1])
        if t.start < t.stop and d.start < d.stop:
            ious = mask.iou(detections.box[d], truths.box[t], truths.crowd[t].astype(np.uint8))
            row, column = np.nonzero(ious >= BACKGROUND)
            parts.append((row + d.start, column + t.start, ious[row, column]))
    return Overlaps(*map(np.concatenate, zip(*parts, strict=True)))


def _outside(areas: np.ndarray) -> np.ndarray:
    """(A, n) bool: whether ``areas`` (n,) are not in each of :data:`AREAS`."""
    return (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])


def _match(
    truths: Truths, detections: Detections, overlaps: Overlaps
) -> tuple[np.ndarray, np.ndarray]:
    """By falling score each detection takes, of the boxes of its class that are left and reach the
    threshold, the one of the highest IoU, the last of equals, an ignored one only if no other is
    there. Crowds are never taken away. What is unmatched is ignored outside of the area.
    """
    num_areas, num_ious = len(AREAS), len(IOUS)
    match = np.full((num_areas, num_ious, len(detections)), -1, np.int32)
    ignored = np.repeat(
        _outside(detections.box[:, 2] * detections.box[:, 3])[:, None], num_ious, axis=1
    )
    taken = np.zeros((num_areas, num_ious, len(truths)), bool)
    truth_ignored = truths.ignored()
    thresholds = np.minimum(IOUS, 1 - 1e-10)[None, :, None]
    same = detections.label[overlaps.detection] == truths.label[overlaps.truth]
    near = overlaps.where(same & (overlaps.iou >= IOUS[0]))
    for n, start, count in zip(
        *np.unique(near.detection, return_index=True, return_counts=True), strict=True
    ):
        pairs = slice(start, start + count)
        order = np.argsort(near.iou[pairs], kind="stable")
        boxes, ious = near.truth[pairs][order], near.iou[pairs][order]
        free = (ious >= thresholds) & (truths.crowd[boxes] | ~taken[:, :, boxes])  # (A, T, n)
        rank = np.arange(1, len(boxes) + 1) + len(boxes) * ~truth_ignored[:, None, boxes]
        best = np.argmax(free * rank, axis=2)
        area, threshold = np.nonzero(free.any(axis=2))
        chosen = boxes[best[area, threshold]]
        match[area, threshold, n] = chosen
        ignored[area, threshold, n] = truth_ignored[area, chosen]
        taken[area, threshold, chosen] = True
    return match, ignored
