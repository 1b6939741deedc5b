"""The test images on which a detector does best and worst."""

from collections.abc import Container
from typing import Any

import numpy as np

from ...evaluation.matching import Matches


def choose_examples(
    matches: Matches, known: Container[Any], score: float, *, count: int
) -> tuple[list[int], list[int]]:
    """Returns the worst images by F1 at a score, and the best, as indices of :class:`.Matches`.

    With equal F1, images with fewer errors are better, then those with more boxes. Images without
    boxes and detections are skipped.

    Args:
        known: image ids to choose from.
        count: of both lists together; no image is in both.
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
    usable = np.array([image_id in known for image_id in matches.image_ids], bool)
    order = np.lexsort((-num_boxes, errors, -f1))
    order = order[((num_boxes + num_detections > 0) & usable)[order]]
    num_best = min(count, len(order)) // 2
    num_worst = min(count, len(order)) - num_best
    return order[::-1][:num_worst].tolist(), order[:num_best].tolist()
