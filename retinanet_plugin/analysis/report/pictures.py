"""The test pictures on which a detector does best and worst."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Truth:
    """A box of ground truth.

    Args:
        box: x0, y0, x1, y1 in pixels of the picture as it is stored (EXIF turned).
        label: class number.
        crowd: a region in which detections are not judged.
        found_score: score of the detection that found it at IoU 0.5: missed above that; None where
            none did.
    """

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    found_score: float | None


@dataclass(frozen=True)
class Detection:
    """A detection.

    Args:
        kind: "right", one of :data:`.error_kinds.KINDS`, or "ignored", in a crowd.
    """

    box: tuple[float, float, float, float]
    label: int
    score: float
    kind: str


@dataclass(frozen=True)
class Picture:
    """A test picture.

    Args:
        file: its path.
        f1: the measure: F1 at the threshold that is best on the whole set, all classes together.
        errors: false positives and missed boxes at that threshold.
        detections: of any score, highest first.
    """

    image_id: int | str
    file: str
    width: int
    height: int
    f1: float
    errors: int
    truths: list[Truth]
    detections: list[Detection]


@dataclass(frozen=True)
class Pictures:
    """Pictures without boxes and detections are not among them; none is in both lists.

    Args:
        threshold: score at which they are compared.
        best: the best first.
        worst: the worst first.
        considered: out of how many.
    """

    threshold: float
    best: list[Picture]
    worst: list[Picture]
    considered: int
