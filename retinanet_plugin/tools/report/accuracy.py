"""AP, precision and recall at each score, and the confusion of classes."""

from dataclasses import dataclass

import numpy as np

from ...evaluation.matching import MATCH_IOU, Matches

SCORES = np.arange(101) / 100


@dataclass(frozen=True)
class Accuracy:
    """AP of one class, or the mean over all classes.

    Args:
        name: of the class; "all classes" for the mean.
        boxes: by size: all, small, medium and large area (COCO's limits), without crowds.
        metrics: by detectron2's names (AP, AP50, AP75, APs, APm, APl), in percent; None without
            such boxes, and if there are no detections at all (detectron2 reports NaN then).
        curve: (101,) precision from 0 to 1 at the recalls 0, 0.01 .. 1, at IoU 0.5; or None.
    """

    name: str
    boxes: list[int]
    metrics: dict[str, float | None]
    curve: np.ndarray | None


def accuracies(matches: Matches) -> list[Accuracy]:
    """Returns the AP of each class, then of all classes."""
    names, num_boxes, precision = matches.class_names, matches.num_boxes, matches.precision
    if not len(matches.detections.score):
        precision = np.full_like(precision, -1)
    boxes = np.append(num_boxes, num_boxes.sum(axis=1, keepdims=True), axis=1)
    results = []
    for k, name in enumerate([*names, "all classes"]):
        own = precision[:, :, k : k + 1] if k < len(names) else precision
        parts = {"AP": own[..., 0], "AP50": own[0, ..., 0], "AP75": own[5, ..., 0]}
        parts |= {"APs": own[..., 1], "APm": own[..., 2], "APl": own[..., 3]}
        metrics = {key: _percent(part[part > -1]) for key, part in parts.items()}
        curves = own[0, :, own[0, 0, :, 0] > -1, 0]  # classes first
        curve = curves.mean(axis=0) if len(curves) else None
        results.append(Accuracy(name, boxes[:, k].tolist(), metrics, curve))
    return results


def _percent(precision: np.ndarray) -> float | None:
    return float(np.mean(precision) * 100) if precision.size else None


@dataclass(frozen=True)
class ScoreCounts:
    """Counts at IoU 0.5 of the detections that reach each of the 101 :data:`SCORES`.

    Row k is class k, the last row all classes together. Detections in crowds are not counted.

    Args:
        boxes: (K + 1,) ground truth without crowds.
        right: (K + 1, 101) true positives.
        detections: (K + 1, 101) true and false positives.
    """

    boxes: np.ndarray
    right: np.ndarray
    detections: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """(K + 1, 101), NaN without detections."""
        return _ratio(self.right, self.detections)

    @property
    def recall(self) -> np.ndarray:
        """(K + 1, 101), NaN without boxes."""
        return _ratio(self.right, self.boxes[:, None])

    @property
    def f1(self) -> np.ndarray:
        """(K + 1, 101), NaN without boxes and detections."""
        return _ratio(2 * self.right, self.detections + self.boxes[:, None])

    @property
    def best_score(self) -> float:
        """The lowest score with the highest F1 of all classes; 0.5 if no detection is correct."""
        f1 = np.nan_to_num(self.f1[-1])
        return float(SCORES[f1.argmax()]) if f1.any() else 0.5


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return np.asarray(part / whole)


def score_counts(matches: Matches) -> ScoreCounts:
    """Counts true positives and all detections by score threshold."""
    detections, num_classes = matches.detections, len(matches.class_names)
    reached = np.searchsorted(SCORES, detections.score, side="right") - 1  # the last threshold
    counts = []
    for kept in (detections.truth >= 0, ~detections.ignored & (reached >= 0)):
        count = np.zeros((num_classes + 1, len(SCORES)), int)
        np.add.at(count, (detections.label[kept], reached[kept]), 1)
        count[-1] = count.sum(axis=0)
        counts.append(count[:, ::-1].cumsum(axis=1)[:, ::-1])
    boxes = matches.num_boxes[0]
    return ScoreCounts(np.append(boxes, boxes.sum()), *counts)


def confusion(matches: Matches, score: float) -> np.ndarray:
    """Counts as what the boxes of each class are detected, with a score of at least ``score``.

    The diagonal holds COCOeval's matches at IoU 0.5. The boxes and detections left over are matched
    across classes at IoU 0.5, by falling score.

    Returns:
        (K + 1, K + 1) int64: row: class of the box, or K for detections of no box (or of one that
        another detection has matched); column: class of the detection, or K for missed boxes.
    """
    background = len(matches.class_names)
    truths, detections, overlaps = matches.truths, matches.detections, matches.overlaps
    shown = ~detections.ignored & (detections.score >= score)
    partner = np.where(shown, detections.truth, -1)
    taken = truths.crowd.copy()
    taken[partner[partner >= 0]] = True
    free = shown & (partner < 0)
    near = overlaps.where(
        ~overlaps.same_class
        & (overlaps.iou >= MATCH_IOU)
        & free[overlaps.detection]
        & ~taken[overlaps.truth]
    )
    order = np.lexsort((-near.iou, near.detection, -detections.score[near.detection]))
    for n, m in zip(near.detection[order].tolist(), near.truth[order].tolist(), strict=True):
        if partner[n] < 0 and not taken[m]:
            partner[n], taken[m] = m, True
    matrix = np.zeros((background + 1, background + 1), np.int64)
    rows = np.append(truths.label, background)[partner[shown]]
    np.add.at(matrix, (rows, detections.label[shown]), 1)
    np.add.at(matrix, (truths.label[~taken], background), 1)
    return matrix
