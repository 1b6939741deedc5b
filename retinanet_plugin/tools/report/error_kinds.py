"""Where errors come from, and what AP50 each kind costs.

The kinds and how they are mended are those of Bolya et al., "TIDE: A General Toolbox for
Identifying Object Detection Errors", ECCV 2020, section 2. Their package, tidecv, gives the same
counts but is not used: it has had no release since 2020, needs pandas and seaborn, takes ten times
as long, and has rules of its own about crowds and recall, so that its AP50 is not quite the one of
COCOeval. Where a box could be found by mending a class or a place, it lets only one of the two
count; here each kind is mended alone, as the paper says.
"""

from dataclasses import dataclass

import numpy as np

from ...evaluation.matching import BACKGROUND, IOUS, Matches, Overlaps, precision_at_recalls

# The last is of boxes, the others of detections.
KINDS = ("class", "place", "both", "duplicate", "background", "missed")
RIGHT, IGNORED = "right", "ignored"  # of detections that are no error
_CLASS, _PLACE, _BOTH, _DUPLICATE, _BACKGROUND, _RIGHT, _IGNORED = range(7)
NAMES = (*KINDS[:-1], RIGHT, IGNORED)  # of the numbers in Kinds.detection


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error.

    Args:
        kind: one of :data:`KINDS`.
        count: of detections with any score; of boxes for "missed".
        count_at_threshold: where only detections with at least :attr:`Errors.threshold` are there.
        d_ap50: percent of AP50 that would be gained if this kind alone were mended; None where
            there is no ground truth.
        count_by_class: of those, by the class of the detection; of the box for "missed".
        d_ap50_by_class: what each class's AP50 would gain; None for one without ground truth.
    """

    kind: str
    count: int
    count_at_threshold: int
    d_ap50: float | None
    count_by_class: list[int]
    d_ap50_by_class: list[float | None]


@dataclass(frozen=True)
class Errors:
    """All kinds, and what all false positives, and all false negatives, cost together.

    Args:
        ap50: what they are measured from, in percent: 0 where nothing was detected.
    """

    ap50: float | None
    threshold: float
    kinds: list[ErrorKind]
    d_ap50_false_positives: float | None
    d_ap50_false_negatives: float | None


@dataclass(frozen=True)
class Kinds:
    """The kind of each detection and box.

    Args:
        detection: (N,) int8, an index of :data:`NAMES`.
        mends: (N,) int64, the box that mending a detection's class or place finds, else -1: of
            the detections that would find the same box, only that of the highest score does.
        missed: (M,) bool, boxes that were not found, and that no such mending finds.
    """

    detection: np.ndarray
    mends: np.ndarray
    missed: np.ndarray


def kinds_of(matches: Matches) -> Kinds:
    """By the IoU with boxes of a wrong detection's class, and of others; crowds are no boxes.

    The first that holds, for where the paper leaves more than one:

    ========== ========================================================
    place      of 0.1 to 0.5 with one of its class
    class      0.5 or more with one of another class
    duplicate  0.5 or more with one of its class, which another found
    background under 0.1 with all
    both       what is left: of 0.1 to 0.5 with one of another class
    ========== ========================================================
    """
    truths, detections, overlaps = matches.truths, matches.detections, matches.overlaps
    overlaps = overlaps.where(~truths.crowd[overlaps.truth])
    same = detections.label[overlaps.detection] == truths.label[overlaps.truth]
    own_iou, own_box = _nearest(overlaps.where(same), len(detections))
    other_iou, other_box = _nearest(overlaps.where(~same), len(detections))
    foreground = IOUS[0]
    kind = np.select(
        [
            ~matches.judged,
            matches.found >= 0,
            (own_iou >= BACKGROUND) & (own_iou < foreground),
            other_iou >= foreground,
            own_iou >= foreground,
            other_iou < BACKGROUND,
        ],
        [_IGNORED, _RIGHT, _PLACE, _CLASS, _DUPLICATE, _BACKGROUND],
        _BOTH,
    )
    lost = ~truths.crowd
    lost[matches.found[matches.found >= 0]] = False
    mends = np.full(len(detections), -1)
    missed = lost.copy()
    for which, box in ((_PLACE, own_box), (_CLASS, other_box)):
        rows = np.flatnonzero((kind == which) & np.append(lost, False)[box])
        rows = rows[np.argsort(-detections.score[rows], kind="stable")]
        found, first = np.unique(box[rows], return_index=True)
        mends[rows[first]] = found
        missed[found] = False
    return Kinds(kind.astype(np.int8), mends, missed)


def _nearest(overlaps: Overlaps, num_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) IoU with, and row of, the box that each detection overlaps most; 0 and -1 for none."""
    iou, box = np.zeros(num_detections), np.full(num_detections, -1)
    order = np.argsort(overlaps.iou, kind="stable")  # the last that is written stays
    iou[overlaps.detection[order]] = overlaps.iou[order]
    box[overlaps.detection[order]] = overlaps.truth[order]
    return iou, box


def errors(matches: Matches, threshold: float) -> Errors:
    """How many there are of each kind, and what AP50 would gain if that alone were mended.

    Mended detections of a wrong class or place find their box, with the score that they have; those
    whose box is found by another, and all other wrong detections, are taken away. Missed boxes are
    taken out of the ground truth; a class without boxes then is perfect if nothing is left that was
    detected as it.
    """
    kinds = kinds_of(matches)
    label, right, judged = matches.detections.label, kinds.detection == _RIGHT, matches.judged
    boxes = matches.num_boxes
    counts, shown = _counts(matches, kinds), matches.above(threshold)
    counts_shown = _counts(shown, kinds_of(shown))

    def gain(
        label: np.ndarray, right: np.ndarray, kept: np.ndarray, left: np.ndarray
    ) -> np.ndarray:
        """(K,): of AP50, in percent; NaN for a class without boxes."""
        after = _ap50(matches.detections.score, label, right, kept, left)
        return np.where(boxes > 0, np.maximum(after - before, 0), np.nan)

    before = _ap50(matches.detections.score, label, right, judged, boxes)
    gains = []
    for number in range(len(KINDS) - 1):
        of_kind = kinds.detection == number
        mended = of_kind & (kinds.mends >= 0)
        new_label = label.copy()
        new_label[mended] = matches.truths.label[kinds.mends[mended]]
        gains.append(gain(new_label, right | mended, judged & (~of_kind | mended), boxes))
    gains.append(gain(label, right, judged, boxes - counts[-1]))
    return Errors(
        _mean(np.where(boxes > 0, before, np.nan)),
        threshold,
        [
            ErrorKind(
                kind,
                int(counts[i].sum()),
                int(counts_shown[i].sum()),
                _mean(gains[i]),
                counts_shown[i].tolist(),
                _rounded(gains[i]),
            )
            for i, kind in enumerate(KINDS)
        ],
        _mean(gain(label, right, right, boxes)),
        _mean(gain(label, right, judged, np.bincount(label[right], minlength=len(boxes)))),
    )


def _counts(matches: Matches, kinds: Kinds) -> np.ndarray:
    """(6, K): errors of each kind by class."""
    label, classes = matches.detections.label, matches.num_classes
    of_kind = [label[kinds.detection == number] for number in range(len(KINDS) - 1)]
    of_kind.append(matches.truths.label[kinds.missed])
    return np.stack([np.bincount(labels, minlength=classes) for labels in of_kind])


def _ap50(
    score: np.ndarray, label: np.ndarray, right: np.ndarray, kept: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    """(K,) AP50 in percent of the kept detections, where class k has ``boxes[k]`` boxes."""
    aps = np.zeros(len(boxes))
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((-score[rows], label[rows]))]
    ends = np.searchsorted(label[rows], np.arange(len(boxes) + 1))
    for k, num_boxes in enumerate(boxes):
        of_class = right[rows[ends[k] : ends[k + 1]]]
        if num_boxes:
            aps[k] = precision_at_recalls(of_class, ~of_class, num_boxes).mean() * 100
        elif not of_class.size:
            aps[k] = 100
    return aps


def _mean(values: np.ndarray) -> float | None:
    """Over the classes that have boxes."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 4) for value in values.tolist()]
