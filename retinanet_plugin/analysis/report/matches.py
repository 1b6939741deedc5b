"""Detections matched with ground truth by pycocotools, and the numbers that follow from that.

All come from the matches that AP is computed from, so that they agree with it and each other.
"""

from dataclasses import dataclass

FOREGROUND = 0.5  # IoU of the matches that are counted


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
    """Detections of one class, or of all, that score at least a threshold, matched at IoU 0.5.

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
    over the classes at IoU 0.5. Row sums are the boxes of a class, column sums the detections.

    Args:
        counts: [row, column, count] where count > 0; row: the class of the ground truth, column:
            that of the detection, the number of classes standing for background: as a row,
            detections of nothing; as a column, boxes missed.
    """

    threshold: float
    counts: list[tuple[int, int, int]]
