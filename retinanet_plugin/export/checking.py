"""Whether an exported file finds what the model finds, at sizes that it was not made with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from .runtimes import Detections, Runtime

# Sides of the pictures compared, as parts of those of the config's test pictures: none a multiple
# of another, so that the padding differs too.
SHAPES = ((1.0, 1.0), (0.73, 0.91), (1.13, 0.61), (0.47, 0.52), (0.29, 1.07))
BATCHES = (1, 4)
BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-4  # pixels; float32
_IOU_TOLERANCE = 1e-3  # what rounding of boxes can do to an IoU
_CONFIDENT = 0.3


@dataclass
class Comparison:
    """What came of it.

    Args:
        score_threshold, nms_threshold, most: of the detector.

    Attributes:
        pictures, detections: how many were compared; the latter are the model's.
        box, score: the largest differences, in pixels, and of scores, among those that correspond.
        missed: descriptions of pictures where detections lack their like.
        at_edge: detections that lack theirs because rounding decides about them: see :meth:`add`.
        confident, agreed: of the detections of either that score above 0.3 there, how many there
            are, and how many of them the other has too, with IoU above 0.8 and at most 0.1 off in
            score.
    """

    score_threshold: float
    nms_threshold: float
    most: int
    pictures: int = 0
    detections: int = 0
    box: float = 0.0
    score: float = 0.0
    missed: list[str] = field(default_factory=list)
    at_edge: int = 0
    confident: int = 0
    agreed: int = 0

    @property
    def agreement(self) -> float:
        return self.agreed / self.confident if self.confident else 1.0

    def add(self, found: Detections, expected: Detections, what: str) -> None:
        """Compares two sets of detections of a picture.

        They correspond one by one where class, box and score agree within the tolerances; equal
        scores may come in another order. One without its like is at an edge, where the last bits
        decide, if its score is at the threshold, or is that of the last of a full list; if another
        of its class there has its score, or an IoU with it at the threshold of NMS, and so takes
        its place; or if one that is at an edge itself suppresses it.
        """
        self.pictures += 1
        self.detections += len(expected.scores)
        unused = np.ones(len(expected.scores), dtype=bool)
        alone = np.zeros(len(found.scores), dtype=bool)
        for k, (box, score, label) in enumerate(zip(*found, strict=True)):
            off = np.abs(expected.boxes - box).max(axis=1, initial=0.0)
            fits = unused & (expected.classes == label) & (off <= BOX_TOLERANCE)
            fits &= np.abs(expected.scores - score) <= SCORE_TOLERANCE
            if not fits.any():
                alone[k] = True
                continue
            best = np.flatnonzero(fits)[np.argmin(off[fits])]
            unused[best] = False
            self.box = max(self.box, float(off[best]))
            self.score = max(self.score, float(abs(expected.scores[best] - score)))
        real = self._without_edges((found, expected), (alone, unused))
        self.at_edge += int(alone.sum() + unused.sum() - real)
        if real:
            self.missed.append(
                f"{what}: {len(found.scores)} detections, {len(expected.scores)} expected; "
                f"{alone.sum()} and {unused.sum()} of them without their like"
            )
        for one, other in ((found, expected), (expected, found)):
            self.confident += int((one.scores > _CONFIDENT).sum())
            self.agreed += _agreed(one, other)

    def _without_edges(
        self, both: tuple[Detections, Detections], alone: tuple[np.ndarray, np.ndarray]
    ) -> int:
        """How many of those that are alone are at no edge."""
        edge = [np.zeros(len(x.scores), dtype=bool) for x in both]
        while True:
            before = sum(int(x.sum()) for x in edge)
            for side in (0, 1):
                for k in np.flatnonzero(alone[side] & ~edge[side]).tolist():
                    edge[side][k] = self._is_at_edge(both[side], k, both[1 - side], edge[1 - side])
            now = sum(int(x.sum()) for x in edge)
            if now == before:
                return int(alone[0].sum() + alone[1].sum()) - now

    def _is_at_edge(self, one: Detections, k: int, other: Detections, edge: np.ndarray) -> bool:
        score = one.scores[k]
        if score <= self.score_threshold + SCORE_TOLERANCE:
            return True
        if len(other.scores) == self.most and score <= other.scores[-1] + SCORE_TOLERANCE:
            return True
        iou = _iou(other.boxes, one.boxes[k]) * (other.classes == one.classes[k])
        suppresses = iou > self.nms_threshold - _IOU_TOLERANCE
        as_good = other.scores >= score - SCORE_TOLERANCE
        even = np.abs(other.scores - score) <= SCORE_TOLERANCE
        near = iou < self.nms_threshold + _IOU_TOLERANCE
        return bool((suppresses & as_good & (even | near | edge)).any())


def _agreed(one: Detections, other: Detections) -> int:
    count = 0
    for box, score, label in zip(*one, strict=True):
        if score > _CONFIDENT:
            near = (other.classes == label) & (np.abs(other.scores - score) <= 0.1)
            count += bool((_iou(other.boxes[near], box) > 0.8).any())
    return count


def _iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    size = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    overlap = size.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return overlap / np.maximum(areas - overlap, 1e-9)


def eager(model: torch.nn.Module, pictures: np.ndarray) -> list[Detections]:
    """The model's own detections of pictures (N, H, W, 3) in its channel order."""
    with torch.no_grad():
        images = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in pictures]
        results = [x["instances"].to("cpu") for x in model([{"image": x} for x in images])]
    return [
        Detections(x.pred_boxes.tensor.numpy(), x.scores.numpy(), x.pred_classes.numpy())
        for x in results
    ]


def batches(
    pictures: Sequence[np.ndarray], shapes: Iterable[tuple[float, float]] = SHAPES
) -> Iterator[tuple[str, np.ndarray]]:
    """Batches of 1 and 4 of the pictures (H, W, 3), at several sizes, with a name each."""
    height, width = pictures[0].shape[:2]
    turn = 0
    for down, across in shapes:
        size = max(round(height * down), 1), max(round(width * across), 1)
        for count in BATCHES:
            chosen = [pictures[(turn + i) % len(pictures)] for i in range(count)]
            turn += count
            resized = [cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA) for x in chosen]
            yield f"{count} of {size[0]} x {size[1]} pixels", np.stack(resized)


def compare(
    runtime: Runtime,
    model: torch.nn.Module,
    channels: str,
    given: Iterable[tuple[str, np.ndarray]],
) -> Comparison:
    """Runs both on each batch, in the model's order of channels."""
    decoder: Any = model.decoder
    comparison = Comparison(decoder.score_thresh, decoder.nms_thresh, decoder.max_detections)
    flips = channels != runtime.metadata["input"]["channels"]
    for name, pictures in given:
        expected = eager(model, pictures)
        found = runtime(pictures[..., ::-1] if flips else pictures)
        for i, (one, other) in enumerate(zip(found, expected, strict=True), start=1):
            comparison.add(one, other, f"picture {i} of a batch of {name}")
    return comparison
