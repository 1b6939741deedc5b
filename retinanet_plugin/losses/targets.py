"""What the anchors of a batch are trained towards, as sparse indices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2


class AnchorBoxes(Protocol):
    """The R anchors of an image, XYXY in pixels, on the CPU."""

    num_anchors: int

    def boxes_of(self, anchor: Tensor) -> Tensor:
        """Returns the boxes (P, 4) of the anchors with indices (P,), int64."""

    def pairs(
        self, boxes: Tensor, min_iou: float, include_best: bool
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields, in chunks, box index, anchor index and IoU of pairs with IoU >= ``min_iou`` > 0.

        With ``include_best`` also each box's best anchors. A few pairs below may be included.
        """


@dataclass(frozen=True)
class SparseTargets:
    """The assigned and the ignored anchors of N images; all others are background.

    Everything is on the CPU, so that the counts are known without waiting for another device.
    Anchors are numbered 0 .. R - 1 by level, row, column, then anchor at that location. Each of
    the P positives and I ignored anchors occurs once.
    """

    image: Tensor  # (P,) int64, index of the image
    anchor: Tensor  # (P,) int64
    anchor_box: Tensor  # (P, 4) XYXY in pixels
    gt_box: Tensor  # (P, 4) XYXY in pixels
    gt_class: Tensor  # (P,) int64, in 0 .. K - 1
    ignored_image: Tensor  # (I,) int64
    ignored_anchor: Tensor  # (I,) int64
    grid: AnchorBoxes  # all R anchors

    @property
    def num_positives(self) -> int:
        return len(self.anchor)

    def labels(self, num_images: int) -> Tensor:
        """Returns (N, R), int64: the class of each anchor, ``BACKGROUND`` or ``IGNORED``."""
        labels = torch.full((num_images, self.grid.num_anchors), BACKGROUND)
        labels[self.image, self.anchor] = self.gt_class
        labels[self.ignored_image, self.ignored_anchor] = IGNORED
        return labels
