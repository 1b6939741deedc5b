"""Comparison of an exported file with its model, at image sizes it was not traced with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.ops import box_iou

from ...runtimes.exported_files import Detections, Runtime

# Sides of the compared images relative to the config's test size. None is a multiple of another,
# so the padding differs, too.
SCALES = ((1.0, 1.0), (0.73, 0.91), (1.13, 0.61), (0.47, 0.52), (0.29, 1.07))
BATCH_SIZES = (1, 4)
BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-4  # pixels; float32
_IOU_TOLERANCE = 1e-3  # effect of rounded boxes on an IoU
_CONFIDENT = 0.3


@dataclass
class Comparison:
    """Differences between the detections of an exported file and those of its model.

    Args:
        score_threshold, nms_threshold, max_detections: of the model.

    Attributes:
        images, detections: how many were compared; detections are the model's.
        box, score: largest differences between matched detections, in pixels and of scores.
        mismatches: descriptions of images with unmatched detections.
        at_edge: unmatched detections that rounding decides about, see :meth:`add`.
        confident, agreed: number of detections, of either, that score above 0.3; and how many of
            them the other has, too, with an IoU above 0.8 and a score within 0.1.
    """

    score_threshold: float
    nms_threshold: float
    max_detections: int
    images: int = 0
    detections: int = 0
    box: float = 0.0
    score: float = 0.0
    mismatches: list[str] = field(default_factory=list)
    at_edge: int = 0
    confident: int = 0
    agreed: int = 0

    @property
    def agreement(self) -> float:
        return self.agreed / self.confident if self.confident else 1.0

    def add(
        self,
        exported: Detections,
        expected: Detections,
        name: str,
        candidates: Callable[[], Detections],
    ) -> None:
        """Compares two sets of detections of an image.

        Detections match one to one if class, box and score agree within the tolerances; equal
        scores may come in any order. An unmatched detection is at an edge if it is one of the
        model's candidates and the last bits decide about it:

        - its score is at the threshold, or equals the last score of a full list; or
        - the other set has a box of its class that suppresses it, and that has the same score,
          or an IoU with it at the NMS threshold, or is at an edge itself.

        Args:
            name: of the image, for ``mismatches``.
            candidates: returns the model's detections before NMS.
        """
        self.images += 1
        self.detections += len(expected.scores)
        match = _match(exported, expected)
        matched, other = match >= 0, match[match >= 0]
        differences = np.abs(exported.boxes[matched] - expected.boxes[other])
        self.box = max(self.box, float(differences.max(initial=0.0)))
        differences = np.abs(exported.scores[matched] - expected.scores[other])
        self.score = max(self.score, float(differences.max(initial=0.0)))
        unmatched = ~matched, ~np.isin(np.arange(len(expected.scores)), other)
        if unmatched[0].any() or unmatched[1].any():
            known = _match(exported, candidates()) >= 0
            possible = unmatched[0] & known, unmatched[1]
            at_edge = self._count_at_edge((exported, expected), possible)
            self.at_edge += at_edge
            if at_edge < unmatched[0].sum() + unmatched[1].sum():
                self.mismatches.append(
                    f"{name}: {len(exported.scores)} detections instead of {len(expected.scores)}, "
                    f"unmatched: {unmatched[0].sum()} and {unmatched[1].sum()}"
                )
        for one, two in ((exported, expected), (expected, exported)):
            self.confident += int((one.scores > _CONFIDENT).sum())
            self.agreed += _count_agreed(one, two)

    def _count_at_edge(
        self, both: tuple[Detections, Detections], possible: tuple[np.ndarray, np.ndarray]
    ) -> int:
        edge = [np.zeros(len(x.scores), dtype=bool) for x in both]
        for side in (0, 1) * 5:  # repeated, as one may depend on another
            for i in np.flatnonzero(possible[side] & ~edge[side]).tolist():
                edge[side][i] = self._is_at_edge(both[side], i, both[1 - side], edge[1 - side])
        return int(edge[0].sum() + edge[1].sum())

    def _is_at_edge(self, one: Detections, i: int, other: Detections, edge: np.ndarray) -> bool:
        score = one.scores[i]
        if score <= self.score_threshold + SCORE_TOLERANCE:
            return True
        if len(other.scores) == self.max_detections and (
            score <= other.scores[-1] + SCORE_TOLERANCE
        ):
            return True
        iou = _iou(one.boxes[i : i + 1], other.boxes)[0] * (other.classes == one.classes[i])
        suppresses = iou > self.nms_threshold - _IOU_TOLERANCE
        suppresses &= other.scores >= score - SCORE_TOLERANCE
        same_score = np.abs(other.scores - score) <= SCORE_TOLERANCE
        at_threshold = iou < self.nms_threshold + _IOU_TOLERANCE
        return bool((suppresses & (same_score | at_threshold | edge)).any())


def _match(one: Detections, other: Detections) -> np.ndarray:
    """Returns for each of ``one`` the index of the nearest match, used once; -1 without one."""
    unused = np.ones(len(other.scores), dtype=bool)
    match = np.full(len(one.scores), -1)
    for i, (box, score, label) in enumerate(zip(*one, strict=True)):
        distance = np.abs(other.boxes - box).max(axis=1, initial=0.0)
        fits = unused & (other.classes == label) & (distance <= BOX_TOLERANCE)
        fits &= np.abs(other.scores - score) <= SCORE_TOLERANCE
        if fits.any():
            match[i] = np.flatnonzero(fits)[np.argmin(distance[fits])]
            unused[match[i]] = False
    return match


def _count_agreed(one: Detections, other: Detections) -> int:
    close = np.abs(one.scores[:, None] - other.scores) <= 0.1
    close &= one.classes[:, None] == other.classes
    close &= _iou(one.boxes, other.boxes) > 0.8
    return int((close.any(axis=1) & (one.scores > _CONFIDENT)).sum())


def _iou(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    iou: np.ndarray = box_iou(torch.from_numpy(boxes), torch.from_numpy(other)).numpy()
    return iou


def eager_detections(model: torch.nn.Module, images: np.ndarray) -> list[Detections]:
    """Returns the model's own detections of images (N, H, W, 3) in its channel order."""
    with torch.no_grad():
        tensors = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in images]
        results = [x["instances"].to("cpu") for x in model([{"image": x} for x in tensors])]
    return [
        Detections(x.pred_boxes.tensor.numpy(), x.scores.numpy(), x.pred_classes.numpy())
        for x in results
    ]


def _candidates(model: torch.nn.Module, images: np.ndarray, i: int) -> Detections:
    """Returns what NMS chooses from in one of the images."""
    decoder: Any = model.decoder
    saved = decoder.nms_thresh, decoder.max_detections
    decoder.nms_thresh, decoder.max_detections = 1.0, 10**9
    try:
        return eager_detections(model, images)[i]
    finally:
        decoder.nms_thresh, decoder.max_detections = saved


def batches(
    images: Sequence[np.ndarray], smallest_side: int = 1
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields batches of the images (H, W, 3) in all ``BATCH_SIZES`` and ``SCALES``, with a name."""
    height, width = images[0].shape[:2]
    start = 0
    for scale_y, scale_x in SCALES:
        h, w = (max(round(x), smallest_side) for x in (height * scale_y, width * scale_x))
        for count in BATCH_SIZES:
            selected = [images[(start + i) % len(images)] for i in range(count)]
            start += count
            resized = [cv2.resize(x, (w, h), interpolation=cv2.INTER_AREA) for x in selected]
            yield f"{count} x {h} x {w}", np.stack(resized)


def compare(
    runtime: Runtime,
    model: torch.nn.Module,
    channels: str,
    given: Iterable[tuple[str, np.ndarray]],
) -> Comparison:
    """Runs both on each batch, whose images have the ``channels`` of the model."""
    decoder: Any = model.decoder
    comparison = Comparison(decoder.score_thresh, decoder.nms_thresh, decoder.max_detections)
    flip = channels != runtime.metadata["input"]["channels"]
    for name, images in given:
        expected = eager_detections(model, images)
        exported = runtime(images[..., ::-1] if flip else images)
        for i, pair in enumerate(zip(exported, expected, strict=True)):
            candidates = partial(_candidates, model, images, i)
            comparison.add(*pair, f"image {i + 1} of batch {name}", candidates)
    return comparison
