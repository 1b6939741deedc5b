"""Where errors come from, and what AP50 each kind costs (TIDE, Bolya et al., ECCV 2020)."""

from dataclasses import dataclass

# The last is of boxes, the others of detections.
KINDS = ("class", "place", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error.

    Args:
        kind: one of :data:`KINDS`.
        count: of detections with any score; of boxes for "missed".
        d_ap50: percent of AP50 that would be gained if this kind alone were mended.
        count_by_class: by the class of the detection; of the box for "missed".
        d_ap50_by_class: gain of each class's AP50; None for one without ground truth.
    """

    kind: str
    count: int
    d_ap50: float | None
    count_by_class: list[int]
    d_ap50_by_class: list[float | None]


@dataclass(frozen=True)
class Errors:
    """All kinds, and what all false positives, and all false negatives, cost together."""

    ap50: float | None
    kinds: list[ErrorKind]
    d_ap50_false_positives: float | None
    d_ap50_false_negatives: float | None
