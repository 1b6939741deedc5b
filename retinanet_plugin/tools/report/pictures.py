"""The test pictures on which a detector does best and worst."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...evaluation.matching import Matches
from .error_kinds import NAMES, Kinds, kinds_of


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
        width, height: None where the data set does not tell.
        errors: false positives and missed boxes at that threshold.
        detections: of any score, highest first.
    """

    image_id: int | str
    file: str
    width: int | None
    height: int | None
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


def choose(
    matches: Matches,
    entries: Mapping[Any, Mapping[str, Any]],
    threshold: float,
    *,
    count: int,
) -> Pictures:
    """Of ``count`` pictures the half that is best by F1 at a threshold, and the half that is worst.

    Of equal F1, those with fewer errors are better, then those with more boxes.

    Args:
        entries: detectron2's dataset dicts by image id; pictures not among them are passed over.
    """
    truths, detections, kinds = matches.truths, matches.detections, kinds_of(matches)
    shown = matches.judged & (detections.score >= threshold)

    def per_picture(image: np.ndarray) -> np.ndarray:
        return np.bincount(image, minlength=len(matches.image_ids))

    boxes = per_picture(truths.image[~truths.crowd])
    detected = per_picture(detections.image[shown])
    right = per_picture(detections.image[shown & (matches.found >= 0)])
    errors = boxes + detected - 2 * right
    f1 = 2 * right / np.maximum(boxes + detected, 1)
    known = np.array([number in entries for number in matches.image_ids], bool)
    order = np.lexsort((-boxes, errors, -f1))
    order = order[((boxes + detected > 0) & known)[order]]
    num_best = min(count, len(order)) // 2
    num_worst = min(count, len(order)) - num_best

    def pictures(chosen: np.ndarray) -> list[Picture]:
        return [
            _picture(matches, kinds, entries, i, f1=float(f1[i]), errors=int(errors[i]))
            for i in chosen.tolist()
        ]

    return Pictures(
        threshold,
        pictures(order[:num_best]),
        pictures(order[::-1][:num_worst]),
        len(order),
    )


def _picture(
    matches: Matches,
    kinds: Kinds,
    entries: Mapping[Any, Mapping[str, Any]],
    image: int,
    *,
    f1: float,
    errors: int,
) -> Picture:
    truths, detections = matches.truths, matches.detections
    entry = entries[matches.image_ids[image]]
    rows = np.flatnonzero(detections.image == image)
    score_of = {
        int(matches.found[n]): float(detections.score[n])
        for n in rows.tolist()
        if matches.found[n] >= 0
    }
    return Picture(
        matches.image_ids[image],
        str(entry["file_name"]),
        entry.get("width"),
        entry.get("height"),
        f1,
        errors,
        [
            Truth(
                _corners(truths.box[m]),
                int(truths.label[m]),
                bool(truths.crowd[m]),
                score_of.get(m),
            )
            for m in np.flatnonzero(truths.image == image).tolist()
        ],
        [
            Detection(
                _corners(detections.box[n]),
                int(detections.label[n]),
                float(detections.score[n]),
                NAMES[kinds.detection[n]],
            )
            for n in rows[np.argsort(-detections.score[rows], kind="stable")].tolist()
        ],
    )


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of x, y, width, height."""
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height
