"""Whether an exported file finds what the model finds, at sizes that it was not made with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from ...runtimes.exported_files import Detections, Runtime

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

    def add(
        self,
        found: Detections,
        expected: Detections,
        what: str,
        candidates: Callable[[], Detections],
    ) -> None:
        """Compares two sets of detections of a picture.

        They correspond one by one where class, box and score agree within the tolerances; equal
        scores may come in another order. One without its like is at an edge, where the last bits
        decide, if it is among the model's candidates, and if its score is at the threshold, or is
        that of the last of a full list; if another of its class there has its score, or an IoU
        with it at the threshold of NMS, and so takes its place; or if one that is at an edge itself
        suppresses it.

        Args:
            candidates: gives the model's detections before NMS, if asked.
        """
        self.pictures += 1
        self.detections += len(expected.scores)
        like = _pairs(found, expected)
        off, score = _differences(found, expected, like)
        self.box, self.score = max(self.box, off), max(self.score, score)
        alone = like < 0, np.isin(np.arange(len(expected.scores)), like, invert=True)
        if alone[0].any() or alone[1].any():
            known = _pairs(found, candidates()) >= 0
            real = self._without_edges((found, expected), alone, known)
            self.at_edge += int(alone[0].sum() + alone[1].sum()) - real
            if real:
                self.missed.append(
                    f"{what}: {len(found.scores)} detections, {len(expected.scores)} expected; "
                    f"{alone[0].sum()} and {alone[1].sum()} of them without their like"
                )
        for one, other in ((found, expected), (expected, found)):
            self.confident += int((one.scores > _CONFIDENT).sum())
            self.agreed += _agreed(one, other)

    def _without_edges(
        self,
        both: tuple[Detections, Detections],
        alone: tuple[np.ndarray, np.ndarray],
        known: np.ndarray,
    ) -> int:
        """How many of those alone are at no edge; ``known``: which of the found are candidates."""
        edge = [np.zeros(len(x.scores), dtype=bool) for x in both]
        possible = alone[0] & known, alone[1]
        before = -1
        while (now := int(edge[0].sum() + edge[1].sum())) != before:
            before = now
            for side in (0, 1):
                for k in np.flatnonzero(possible[side] & ~edge[side]).tolist():
                    edge[side][k] = self._is_at_edge(both[side], k, both[1 - side], edge[1 - side])
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


def _pairs(one: Detections, other: Detections) -> np.ndarray:
    """Of each of ``one`` the nearest like of ``other``, each of which is taken once; -1: none."""
    unused = np.ones(len(other.scores), dtype=bool)
    like = np.full(len(one.scores), -1)
    for k, (box, score, label) in enumerate(zip(*one, strict=True)):
        off = np.abs(other.boxes - box).max(axis=1, initial=0.0)
        fits = unused & (other.classes == label) & (off <= BOX_TOLERANCE)
        fits &= np.abs(other.scores - score) <= SCORE_TOLERANCE
        if fits.any():
            like[k] = np.flatnonzero(fits)[np.argmin(off[fits])]
            unused[like[k]] = False
    return like


def _differences(one: Detections, other: Detections, like: np.ndarray) -> tuple[float, float]:
    """The largest, of boxes and of scores."""
    here, there = like >= 0, like[like >= 0]
    boxes = np.abs(one.boxes[here] - other.boxes[there]).max(initial=0.0)
    return float(boxes), float(np.abs(one.scores[here] - other.scores[there]).max(initial=0.0))


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


def _candidates(model: torch.nn.Module, pictures: np.ndarray, i: int) -> Detections:
    """What NMS chooses from in one of the pictures."""
    decoder: Any = model.decoder
    kept = decoder.nms_thresh, decoder.max_detections
    decoder.nms_thresh, decoder.max_detections = 1.0, 10**9
    try:
        return eager(model, pictures)[i]
    finally:
        decoder.nms_thresh, decoder.max_detections = kept


def batches(
    pictures: Sequence[np.ndarray], smallest_side: int = 1
) -> Iterator[tuple[str, np.ndarray]]:
    """Batches of 1 and 4 of the pictures (H, W, 3), at several sizes, with a name each."""
    height, width = pictures[0].shape[:2]
    turn = 0
    for down, across in SHAPES:
        size = tuple(max(round(x), smallest_side) for x in (height * down, width * across))
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
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            comparison.add(
                one,
                other,
                f"picture {i + 1} of a batch of {name}",
                partial(_candidates, model, pictures, i),
            )
    return comparison
