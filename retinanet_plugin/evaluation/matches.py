"""AP, curves and confusion of detections, all from the same matches, so that they agree."""

from dataclasses import dataclass

import numpy as np

from .matching import AREAS, IOUS, Matches, precisions

SCORES = np.arange(101) / 100  # thresholds
_CONFUSION_SCORES = np.arange(1, 10) / 10


@dataclass(frozen=True)
class ClassAccuracy:
    """AP of one class, or of all (their mean), in percent; None where it is not defined.

    AP is not defined for a class without ground truth, nor for any where nothing was detected.

    Args:
        name: None for all classes together.
        boxes: of ground truth, without crowds.
        boxes_by_size: small, medium and large: areas under 32^2, under 96^2 and above.
        curves: precision (0 to 1) at the recalls 0, 0.01 .. 1, by IoU: "0.50", "0.75" and
            "0.50:0.95", their mean; AP is the mean of a curve. Empty where AP is not defined.
    """

    name: str | None
    boxes: int
    boxes_by_size: list[int]
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    curves: dict[str, list[float]]


@dataclass(frozen=True)
class ThresholdCurve:
    """Detections of one class, or of all, that score at least a threshold, at IoU 0.5.

    Args:
        name: None for all classes together (sums, not means).
        true_positives, detections: at each of :attr:`Thresholds.scores`; detections in crowds are
            not counted.
        precision, recall, f1: from 0 to 1; None where not defined.
        best: the index of the highest F1, None where there is none.
    """

    name: str | None
    boxes: int
    true_positives: list[int]
    detections: list[int]
    precision: list[float | None]
    recall: list[float | None]
    f1: list[float | None]
    best: int | None


@dataclass(frozen=True)
class Thresholds:
    """Args:
    scores: 0, 0.01 .. 1.
    all: all classes together.
    classes: each.
    """

    scores: list[float]
    all: ThresholdCurve
    classes: list[ThresholdCurve]


@dataclass(frozen=True)
class Confusion:
    """What boxes were taken for by the detections that score at least ``threshold``.

    AP's own matches at IoU 0.5 come first: the diagonal is their number. What is left is matched
    over the classes at IoU 0.5. Row sums are the boxes of a class, column sums the detections that
    are not in a crowd.

    Args:
        counts: [row, column, count] where count > 0; row: the class of the ground truth, column:
            that of the detection, the number of classes standing for background: as a row,
            detections of nothing, or of a box that another has found; as a column, boxes missed.
    """

    threshold: float
    counts: list[tuple[int, int, int]]


def accuracy(matches: Matches) -> tuple[ClassAccuracy, list[ClassAccuracy]]:
    """AP of all classes and of each, the numbers of detectron2's COCOEvaluator to the last bit."""
    curves = precisions(matches)
    if not len(matches.detections):
        curves[:] = -1  # as there, where nothing was detected
    boxes = np.stack(
        [
            np.bincount(matches.truths.label[~ignored], minlength=matches.num_classes)
            for ignored in matches.truths.ignored()
        ]
    )  # (A, K)
    classes = [
        _accuracy(name, curves[:, :, [k]], boxes[:, k])
        for k, name in enumerate(matches.class_names)
    ]
    return _accuracy(None, curves, boxes.sum(axis=1)), classes


def _accuracy(name: str | None, curves: np.ndarray, boxes: np.ndarray) -> ClassAccuracy:
    """Of (T, R, K, A) precisions and (A,) boxes."""
    by_iou = {"0.50": curves[IOUS == 0.5], "0.75": curves[IOUS == 0.75], "0.50:0.95": curves}
    ap50, ap75, ap = (_percent(part[..., 0]) for part in by_iou.values())
    small, medium, large = (_percent(curves[..., a]) for a in range(1, len(AREAS)))
    defined = curves[0, 0, :, 0] > -1  # classes
    return ClassAccuracy(
        name=name,
        boxes=int(boxes[0]),
        boxes_by_size=boxes[1:].tolist(),
        ap=ap,
        ap50=ap50,
        ap75=ap75,
        ap_small=small,
        ap_medium=medium,
        ap_large=large,
        curves={
            iou: part[:, :, defined, 0].mean(axis=(0, 2)).round(5).tolist()
            for iou, part in by_iou.items()
            if defined.any()
        },
    )


def _percent(precision: np.ndarray) -> float | None:
    """The mean of what is defined."""
    defined = precision[precision > -1]
    return float(np.mean(defined) * 100) if defined.size else None


def threshold_curves(matches: Matches) -> Thresholds:
    """Precision, recall and F1 over the score threshold."""
    label = matches.detections.label
    right = matches.found >= 0
    at = np.searchsorted(SCORES, matches.detections.score, side="right")  # thresholds it reaches
    shape = (matches.num_classes, len(SCORES) + 1)
    counts = []
    for kept in (right, matches.judged):
        count = np.zeros(shape, np.int64)
        np.add.at(count, (label[kept], at[kept]), 1)
        counts.append(count[:, ::-1].cumsum(axis=1)[:, -2::-1])  # (K, S)
    boxes = matches.num_boxes
    return Thresholds(
        SCORES.tolist(),
        _curve(None, int(boxes.sum()), *(count.sum(axis=0) for count in counts)),
        [
            _curve(name, int(boxes[k]), *(count[k] for count in counts))
            for k, name in enumerate(matches.class_names)
        ],
    )


def _curve(
    name: str | None, boxes: int, true_positives: np.ndarray, detections: np.ndarray
) -> ThresholdCurve:
    f1 = _ratios(2 * true_positives, detections + boxes)
    known = [i for i, value in enumerate(f1) if value]
    return ThresholdCurve(
        name,
        boxes,
        true_positives.tolist(),
        detections.tolist(),
        _ratios(true_positives, detections),
        _ratios(true_positives, np.full_like(true_positives, boxes)),
        f1,
        max(known, key=lambda i: (f1[i], -i)) if known else None,
    )


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return [round(part / whole, 5) if whole else None for part, whole in pairs]


def best_threshold(thresholds: Thresholds) -> float:
    """The score at which F1 of all classes together is highest; 0.5 where nothing was found."""
    best = thresholds.all.best
    return 0.5 if best is None else thresholds.scores[best]


def confusions(matches: Matches, first: float) -> list[Confusion]:
    """At the threshold ``first``, then at 0.1, 0.2 .. 0.9."""
    return [confusion(matches, threshold) for threshold in [first, *_CONFUSION_SCORES.tolist()]]


def confusion(matches: Matches, threshold: float) -> Confusion:
    """What boxes were taken for by the detections that score at least ``threshold``."""
    background = matches.num_classes
    truths, detections = matches.truths, matches.detections
    shown = matches.judged & (detections.score >= threshold)
    partner = np.where(shown, matches.found, -1)  # (N,) rows of boxes
    taken = truths.crowd.copy()
    taken[partner[partner >= 0]] = True
    # Detections of no box of their class, by falling score, each to the nearest box that is left.
    overlaps = matches.overlaps
    free = shown & (partner < 0)
    across = detections.label[overlaps.detection] != truths.label[overlaps.truth]
    near = overlaps.where(
        across & (overlaps.iou >= IOUS[0]) & free[overlaps.detection] & ~taken[overlaps.truth]
    )
    order = np.lexsort((-near.iou, near.detection, -detections.score[near.detection]))
    for n, m in zip(near.detection[order].tolist(), near.truth[order].tolist(), strict=True):
        if partner[n] < 0 and not taken[m]:
            partner[n], taken[m] = m, True
    missed = truths.label[~taken]
    row = np.append(np.append(truths.label, background)[partner[shown]], missed)
    column = np.append(detections.label[shown], np.full_like(missed, background))
    cells, counts = np.unique(np.stack([row, column]), axis=1, return_counts=True)
    return Confusion(
        float(threshold),
        list(zip(*cells.tolist(), counts.tolist(), strict=True)),
    )
