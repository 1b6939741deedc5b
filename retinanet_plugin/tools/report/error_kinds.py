"""The kinds of errors of a detector, and how much AP50 each kind costs.

The kinds and their fixes are those of Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", ECCV 2020, section 2. As in the paper, each kind is fixed alone; their package
lets fixing either a class or a location detect a box.
"""

from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import Params

from ...evaluation.matching import BACKGROUND_IOU, MATCH_IOU, Matches

_RECALLS = Params(iouType="bbox").recThrs  # 0, 0.01 .. 1
# Errors of detections, then the one of boxes.
KINDS = ("class", "fit", "both", "duplicate", "background", "missed")
_CLASS, _FIT, _BOTH, _DUPLICATE, _BACKGROUND, _RIGHT, _IGNORED = range(7)
NAMES = (*KINDS[:-1], "right", "ignored")  # of the numbers that kinds_of returns


@dataclass(frozen=True)
class Errors:
    """The errors by kind.

    Args:
        kinds: (N,) of each detection, as indices of :data:`NAMES`.
        ap50: in percent; 0 if nothing was detected, None without boxes.
        score: detections below it are not counted as errors.
        counts: (K,) by kind of :data:`KINDS`: errors by class of the detection (of the box for
            "missed").
        gains: by kind, how many percent AP50 rises if it alone is fixed; also for all
            "false positives" and all "false negatives". None without boxes.
    """

    kinds: np.ndarray
    ap50: float | None
    score: float
    counts: dict[str, list[int]]
    gains: dict[str, float | None]


def kinds_of(matches: Matches) -> np.ndarray:
    """Returns the kind of each detection, (N,) indices of :data:`NAMES`.

    Wrong detections are of the first kind that applies, by their IoU with boxes (not crowds):

    ========== ========================================================
    fit        0.1 to 0.5 with a box of their class
    class      at least 0.5 with a box of another class
    duplicate  at least 0.5 with a box of their class, detected by another
    background less than 0.1 with all boxes
    both       the rest: 0.1 to 0.5 with a box of another class
    ========== ========================================================
    """
    detections = matches.detections
    own, _ = _nearest(matches, same_class=True)
    other, _ = _nearest(matches, same_class=False)
    conditions = {
        _IGNORED: detections.ignored,
        _RIGHT: detections.truth >= 0,
        _FIT: (own >= BACKGROUND_IOU) & (own < MATCH_IOU),
        _CLASS: other >= MATCH_IOU,
        _DUPLICATE: own >= MATCH_IOU,
        _BACKGROUND: other < BACKGROUND_IOU,
    }
    return np.select(list(conditions.values()), list(conditions), _BOTH)


def _nearest(matches: Matches, *, same_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the IoU with the nearest box, and its row, (N,) each; 0 and -1 if there is none."""
    overlaps = matches.overlaps.where(matches.overlaps.same_class == same_class)
    num_detections = len(matches.detections.score)
    iou, box = np.zeros(num_detections), np.full(num_detections, -1)
    order = np.argsort(overlaps.iou, kind="stable")  # the last value written stays
    iou[overlaps.detection[order]] = overlaps.iou[order]
    box[overlaps.detection[order]] = overlaps.truth[order]
    return iou, box


def fixes_of(matches: Matches, kinds: np.ndarray, score: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes that detections of at least ``score`` would match if they were fixed.

    Returns:
        (N,) row of the box that a detection matches with the right class or location, or -1; if
        several would match the same box, the one with the highest score does. And (M,) bool, the
        missed boxes, which neither a detection nor a fixed one matches.
    """
    detections = matches.detections
    shown = detections.score >= score
    lost = ~matches.truths.crowd
    lost[detections.truth[shown & (detections.truth >= 0)]] = False
    fixes, missed = np.full(len(shown), -1), lost.copy()
    for kind in (_FIT, _CLASS):
        _, box = _nearest(matches, same_class=kind == _FIT)
        rows = np.flatnonzero(shown & (kinds == kind) & np.append(lost, False)[box])
        rows = rows[np.argsort(-detections.score[rows], kind="stable")]
        detected, first = np.unique(box[rows], return_index=True)
        fixes[rows[first]] = detected
        missed[detected] = False
    return fixes, missed


def errors(matches: Matches, score: float) -> Errors:
    """Counts the errors at a score, and measures what AP50 gains if each kind is fixed.

    Fixed detections of a wrong class or fit match their box with the score they have; all other
    wrong detections are removed. Missed boxes are removed from the ground truth; a class left
    without boxes is perfect if nothing is detected as it.
    """
    detections, boxes, labels = matches.detections, matches.num_boxes[0], matches.truths.label
    label, judged, right = detections.label, ~detections.ignored, detections.truth >= 0
    kinds = kinds_of(matches)
    fixes, missed = fixes_of(matches, kinds, 0)

    def count(labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=len(boxes))

    def ap50(
        right: np.ndarray, kept: np.ndarray, label: np.ndarray = label, left: np.ndarray = boxes
    ) -> np.ndarray:
        """Returns (K,) AP50 in percent of the kept detections, given ``left[k]`` boxes each."""
        aps = np.zeros(len(left))
        for k, num_boxes in enumerate(left):
            rows = np.flatnonzero(kept & (label == k))
            rows = rows[np.argsort(-detections.score[rows], kind="stable")]
            if num_boxes:
                aps[k] = _average_precision(right[rows], kept[rows], num_boxes)
            elif not len(rows):
                aps[k] = 100
        return aps

    counts, after = {}, {}
    for number, kind in enumerate(KINDS[:-1]):
        of_kind = kinds == number
        fixed = of_kind & (fixes >= 0)
        new_label = label.copy()
        new_label[fixed] = labels[fixes[fixed]]
        after[kind] = ap50(right | fixed, judged & (~of_kind | fixed), new_label)
        counts[kind] = count(label[of_kind & (detections.score >= score)])
    after["missed"] = ap50(right, judged, left=boxes - count(labels[missed]))
    counts["missed"] = count(labels[fixes_of(matches, kinds, score)[1]])
    after["false positives"] = ap50(right, right)
    after["false negatives"] = ap50(right, judged, left=count(label[right]))
    before = ap50(right, judged)
    return Errors(
        kinds,
        _mean(before, boxes),
        score,
        {kind: by_class.tolist() for kind, by_class in counts.items()},
        {kind: _mean(np.maximum(aps - before, 0), boxes) for kind, aps in after.items()},
    )


def _average_precision(right: np.ndarray, judged: np.ndarray, num_boxes: int) -> float:
    """Returns COCO's AP in percent from (D,) true positives and all positives by falling score."""
    true_positives = right.cumsum()
    precision = true_positives / (judged.cumsum() + np.spacing(1))
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return float(highest[np.searchsorted(true_positives / num_boxes, _RECALLS)].mean() * 100)


def _mean(values: np.ndarray, boxes: np.ndarray) -> float | None:
    """Returns the mean over the classes that have boxes."""
    return float(values[boxes > 0].mean()) if boxes.any() else None
