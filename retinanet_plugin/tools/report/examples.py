"""The test images on which a detector does best and worst."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...evaluation.matching import Matches


@dataclass(frozen=True)
class Example:
    """A test image.

    Args:
        f1: from 0 to 1, of all classes together.
        errors: false positives and missed boxes.
        truths: rows of :attr:`.Matches.truths`.
        detections: rows of :attr:`.Matches.detections`, by falling score.
    """

    file: str
    f1: float
    errors: int
    truths: list[int]
    detections: list[int]


def choose_examples(
    matches: Matches, files: Mapping[Any, str], score: float, *, count: int
) -> tuple[list[Example], list[Example]]:
    """The best images by F1 at a score, and the worst: ``count`` together, none in both lists.

    With equal F1, images with fewer errors are better, then those with more boxes. Images without
    boxes and detections are skipped.

    Args:
        files: by image id; images that are not in it are skipped.
    """
    truths, detections = matches.truths, matches.detections
    shown = ~detections.ignored & (detections.score >= score)

    def per_image(image: np.ndarray) -> np.ndarray:
        return np.bincount(image, minlength=len(matches.image_ids))

    num_boxes = per_image(truths.image[~truths.crowd])
    num_detections = per_image(detections.image[shown])
    right = per_image(detections.image[shown & (detections.truth >= 0)])
    errors = num_boxes + num_detections - 2 * right
    f1 = 2 * right / np.maximum(num_boxes + num_detections, 1)
    known = np.array([image_id in files for image_id in matches.image_ids], bool)
    order = np.lexsort((-num_boxes, errors, -f1))
    order = order[((num_boxes + num_detections > 0) & known)[order]]
    num_best = min(count, len(order)) // 2
    num_worst = min(count, len(order)) - num_best

    def example(i: int) -> Example:
        rows = np.flatnonzero(detections.image == i)
        rows = rows[np.argsort(-detections.score[rows], kind="stable")]
        boxes = np.flatnonzero(truths.image == i)
        file = files[matches.image_ids[i]]
        return Example(file, float(f1[i]), int(errors[i]), boxes.tolist(), rows.tolist())

    best, worst = order[:num_best].tolist(), order[::-1][:num_worst].tolist()
    return [example(i) for i in best], [example(i) for i in worst]
