"""How well anchors cover the boxes of a dataset.

A box is covered if the IoU with its best anchor reaches the threshold of a positive (section 4.1 of
the paper). Boxes are scaled as training resizes images, and each image is padded as if it were
alone in its batch; flips and crops are ignored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ...errors import UserError
from ...modeling import AnchorAssigner, FocalRetinaNet
from ...modeling.anchor_grid import AnchorGrid
from ...modeling.anchors import HostAnchors
from .dataset_boxes import DatasetBoxes, ImageScale

_EMPTY = 1e-5  # pixels: detectron2 drops boxes with a shorter side


@dataclass(frozen=True)
class Anchors:
    """The anchors of a model, for images of any size.

    Args:
        generator: maps feature maps to a ``Boxes`` per level.
        strides: of the levels, in pixels.
        divisor: images are padded to multiples of it.
    """

    generator: nn.Module
    strides: tuple[int, ...]
    divisor: int

    @classmethod
    def of(cls, cfg: CfgNode) -> "Anchors":
        """Returns the anchors of the config's model."""
        parts: Any = FocalRetinaNet.from_config(cfg)
        shapes = parts["backbone"].output_shape()
        strides = tuple(shapes[name].stride for name in parts["head_in_features"])
        divisor = max(parts["backbone"].size_divisibility, 1)
        return cls(parts["anchor_generator"], strides, divisor)

    @cached_property
    def _on_host(self) -> HostAnchors:
        return HostAnchors(self.generator)

    def grid(self, height: int, width: int) -> AnchorGrid:
        """Returns the anchors of a padded image. A level has ``ceil(side / stride)`` locations."""
        blank = torch.zeros(())
        sides = [(-(-height // s), -(-width // s)) for s in self.strides]
        return self._on_host([blank.expand(1, 1, *side) for side in sides])

    @cached_property
    def shapes(self) -> list[Tensor]:
        """Width and height in pixels of the anchors at one location, (A, 2) per level."""
        boxes = self.generator([torch.zeros(1, 1, 1, 1) for _ in self.strides])
        return [b.tensor[:, 2:].cpu() - b.tensor[:, :2].cpu() for b in boxes]

    @property
    def per_location(self) -> int:
        """Anchors per location, of the level that has the most."""
        return max(map(len, self.shapes))


@dataclass(frozen=True)
class Coverage:
    """The IoU of each box with its best anchor. A box counts once for each image scale.

    Args:
        data: the boxes.
        anchors: the anchors.
        scales: of the images.
        thresholds: IoUs at which coverage is reported, ascending.
        positive: the one of them from which an anchor is a positive.
        box: (B,), indices into ``data``.
        boxes: (B, 4) float32, XYXY in pixels of the resized image.
        padded: (B, 2), height and width of the padded image.
        iou: (B,) float32, with the best anchor.
    """

    data: DatasetBoxes
    anchors: Anchors
    scales: Sequence[ImageScale]
    thresholds: tuple[float, ...]
    positive: float
    box: np.ndarray
    boxes: np.ndarray
    padded: np.ndarray
    iou: np.ndarray

    @cached_property
    def width(self) -> np.ndarray:
        """(B,), in pixels of the resized image."""
        return self.boxes[:, 2] - self.boxes[:, 0]

    @cached_property
    def height(self) -> np.ndarray:
        """(B,), in pixels of the resized image."""
        return self.boxes[:, 3] - self.boxes[:, 1]

    @cached_property
    def classes(self) -> np.ndarray:
        """(B,), the class of each box."""
        return self.data.classes[self.box]

    @cached_property
    def num_classes(self) -> int:
        """The number of classes that have boxes."""
        return len(np.unique(self.classes))

    @cached_property
    def weights(self) -> np.ndarray:
        """(B,), with sum 1: weights that make a mean over boxes the mean over classes, as AP is."""
        return 1 / (self.num_classes * np.bincount(self.classes)[self.classes])

    def share(self, threshold: float) -> float:
        """Returns the share of boxes covered at ``threshold``."""
        return float((self.iou >= np.float32(threshold)).mean())

    def class_mean(self, threshold: float) -> float:
        """Returns the mean over classes of the share covered at ``threshold``."""
        return float(np.average(self.iou >= np.float32(threshold), weights=self.weights))

    def class_mean_iou(self) -> float:
        """Returns the mean over classes of the mean IoU with the best anchor."""
        return float(np.average(self.iou, weights=self.weights))


def positive_threshold(cfg: CfgNode) -> float:
    """Returns the lowest IoU at which an anchor is a positive.

    Raises:
        UserError: if ``MODEL.RETINANET.IOU_LABELS`` has no positive, or fits no assigner.
    """
    retinanet = cfg.MODEL.RETINANET
    AnchorAssigner(retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS)  # checks both lists
    labels = list(retinanet.IOU_LABELS[1:])
    if 1 not in labels:
        raise UserError(
            f"MODEL.RETINANET.IOU_LABELS: no positive in {list(retinanet.IOU_LABELS)}; "
            "the last label must be 1."
        )
    return float(retinanet.IOU_THRESHOLDS[labels.index(1)])


def measure(
    data: DatasetBoxes,
    anchors: Anchors,
    scales: Sequence[ImageScale],
    thresholds: Sequence[float] = (0.4, 0.5),
    positive: float | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Coverage:
    """Finds the best anchor of each box of each image at each scale.

    Args:
        thresholds: see :class:`Coverage`.
        positive: see :class:`Coverage`; None: the last threshold.
        progress: is called with the number of boxes done since the last call.
    """
    parts = []
    for scale in scales:
        box, boxes, padded = _resized_boxes(data, scale, anchors.divisor)
        iou = _best_iou(boxes, padded, anchors, progress)
        parts.append((box, boxes.numpy(), padded, iou.numpy()))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    positive = thresholds[-1] if positive is None else positive
    return Coverage(data, anchors, scales, tuple(thresholds), positive, *columns)


def _resized_boxes(
    data: DatasetBoxes, scale: ImageScale, divisor: int
) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """Resizes and clips boxes as detectron2's mapper does.

    Returns:
        the columns ``box``, ``boxes`` and ``padded`` of :class:`Coverage`, without empty boxes.
    """
    sizes = scale.resized(data.image_sizes)
    factors = (sizes / data.image_sizes)[data.image][:, ::-1]
    limits = sizes[data.image][:, ::-1]
    boxes = data.boxes * np.tile(factors, 2)
    boxes = np.minimum(boxes.clip(min=0), np.tile(limits, 2))
    resized = torch.from_numpy(boxes.astype(np.float32))
    sides = resized[:, 2:] - resized[:, :2]
    kept = np.flatnonzero((sides > _EMPTY).all(dim=1).numpy())
    padded = -(-sizes // divisor) * divisor
    return kept, resized[torch.from_numpy(kept)], padded[data.image[kept]]


def _best_iou(
    boxes: Tensor, padded: np.ndarray, anchors: Anchors, progress: Callable[[int], object]
) -> Tensor:
    """Returns the IoU of each box with its best anchor; images of one size share a grid."""
    best = torch.zeros(len(boxes))
    shapes, index = np.unique(padded, axis=0, return_inverse=True)
    order = np.argsort(index.reshape(-1), kind="stable")
    ends = np.bincount(index.reshape(-1)).cumsum()
    for (height, width), part in zip(shapes.tolist(), np.split(order, ends[:-1]), strict=True):
        rows = torch.from_numpy(part)
        best[rows] = best_iou_in_grid(anchors.grid(height, width), boxes[rows])
        progress(len(rows))
    return best


def best_iou_in_grid(grid: AnchorGrid, boxes: Tensor) -> Tensor:
    """Returns the IoU of each box (M, 4) with its best anchor of a grid, (M,)."""
    best = torch.zeros(len(boxes))
    for box, _, iou in grid.pairs(boxes, 1.0, True):
        best.scatter_reduce_(0, box, iou, "amax")
    return best
