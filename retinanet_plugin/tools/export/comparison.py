"""Comparison of an exported file with its model, at image sizes it was not traced with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

# Sides of the compared images relative to the config's test size. None is a multiple of another,
# so the padding differs, too.
SCALES = ((1.0, 1.0), (0.73, 0.91), (1.13, 0.61), (0.47, 0.52), (0.29, 1.07))
BATCH_SIZES = (1, 4)


@dataclass(frozen=True)
class Tolerance:
    """When a detection counts as the same in the file and in the model, and how many must.

    Attributes:
        share: lowest share of detections, of either, that the other must have, too.
        min_score: detections below it are not compared.
        score: largest difference of scores.
        pixels: largest difference of box coordinates; None: an IoU above 0.8 suffices.
    """

    share: float
    min_score: float = 0.3
    score: float = 0.1
    pixels: float | None = None


# In float32, rounding decides about detections at the score threshold or at the NMS threshold.
TOLERANCES = {
    "float32": Tolerance(0.99, min_score=0.0, score=1e-4, pixels=0.1),
    "float16": Tolerance(0.98),
    "bfloat16": Tolerance(0.9),
    "int8": Tolerance(0.8),
}


@dataclass
class Comparison:
    """Counts of a comparison.

    Attributes:
        images, detections: how many were compared; detections of both, so at most twice as many
            as the model has.
        same: how many of the detections the other has, too.
    """

    images: int = 0
    detections: int = 0
    same: int = 0

    @property
    def share(self) -> float:
        return self.same / self.detections if self.detections else 1.0


def compare(
    exported: Any, model: Any, tolerance: Tolerance, batches: Iterable[Tensor]
) -> Comparison:
    """Runs an exported file and its model on batches of images (N, 3, H, W)."""
    result = Comparison()
    exported.input_format = model.input_format
    for images in batches:
        for pair in zip(detect(exported, images), detect(model, images), strict=True):
            result.images += 1
            for one, other in (pair, pair[::-1]):
                one = one[one.scores > tolerance.min_score]
                result.detections += len(one)
                result.same += int(_is_in(one, other, tolerance).sum())
    return result


def detect(model: Any, images: Tensor) -> list[Instances]:
    """Returns a model's detections in images (N, 3, H, W), on the CPU."""
    with torch.no_grad():
        return [x["instances"].to("cpu") for x in model([{"image": x} for x in images])]


def _is_in(one: Instances, other: Instances, tolerance: Tolerance) -> Tensor:
    """Returns which detections of ``one`` are in ``other``, too: (len(one),), bool."""
    if tolerance.pixels is None:
        is_same = pairwise_iou(one.pred_boxes, other.pred_boxes) > 0.8
    else:
        boxes = one.pred_boxes.tensor, other.pred_boxes.tensor
        is_same = torch.cdist(*boxes, p=torch.inf) <= tolerance.pixels
    is_same &= (one.scores[:, None] - other.scores).abs() <= tolerance.score
    is_same &= one.pred_classes[:, None] == other.pred_classes
    return is_same.any(dim=1)


def batches(images: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields uint8 batches of the images (3, H, W) in all ``BATCH_SIZES`` and ``SCALES``."""
    height, width = images[0].shape[1:]
    start = 0
    for scale_y, scale_x in SCALES:
        size = max(round(height * scale_y), 1), max(round(width * scale_x), 1)
        for count in BATCH_SIZES:
            selected = [images[(start + i) % len(images)] for i in range(count)]
            start += count
            resized = [F.interpolate(x[None].float(), size, mode="area") for x in selected]
            yield torch.cat(resized).round().byte()
