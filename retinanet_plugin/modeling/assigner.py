"""Which anchors train towards which ground-truth box, as sparse indices; paper, section 4.1."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..errors import UserError
from ..losses.targets import BACKGROUND, IGNORED
from .anchor_grid import AnchorGrid

# What is known of an anchor is an int64, of which the largest counts. Upper half: the bits of its
# highest IoU, which order as the float32 does. Lower half: two flags, and the box with that IoU,
# counted backwards, so that the first of equals is the largest.
_HIGHEST_OF_A_BOX, _NAMED, _LAST_BOX = 2**31, 2**30, 2**30 - 1


@dataclass(frozen=True)
class SparseTargets:
    """What the R anchors of each of N pictures train towards; anchors not named are background.

    They are on the CPU: their number is known without asking another device and waiting for it.
    Anchors are numbered 0 .. R - 1 over all levels, within a level by row, column, then anchor.
    The P positives and the I ignored are each named once, and no anchor is both.
    """

    image: Tensor  # (P,) int64, which picture
    anchor: Tensor  # (P,) int64
    anchor_box: Tensor  # (P, 4) XYXY in pixels
    gt_box: Tensor  # (P, 4) XYXY in pixels
    gt_class: Tensor  # (P,) int64, in 0 .. K - 1
    ignored_image: Tensor  # (I,) int64
    ignored_anchor: Tensor  # (I,) int64
    grid: AnchorGrid  # all anchors

    @property
    def num_positives(self) -> int:
        return len(self.anchor)

    def labels(self, num_images: int) -> Tensor:
        """(N, R), int64: the class of each anchor, ``BACKGROUND`` or ``IGNORED``."""
        labels = torch.full((num_images, self.grid.num_anchors), BACKGROUND)
        labels[self.image, self.anchor] = self.gt_class
        labels[self.ignored_image, self.ignored_anchor] = IGNORED
        return labels


class AnchorAssigner:
    """Labels each anchor by its highest IoU with a ground-truth box.

    | IoU with the nearest box | label by default | meaning |
    | --- | --- | --- |
    | below ``thresholds[0]`` | 0 | background |
    | between | -1 | ignored |
    | ``thresholds[1]`` and above | 1 | trains towards that box |

    These are the labels and matches of detectron2's ``Matcher``, which compares each box with all
    anchors; here with those that it can reach.

    Args:
        thresholds: ascending, above 0: ``MODEL.RETINANET.IOU_THRESHOLDS``.
        labels: one more than thresholds, each -1, 0 or 1: ``MODEL.RETINANET.IOU_LABELS``.
        allow_low_quality_matches: each box also makes positives of the anchors of its highest
            IoU, however low, as Detectron does. Such an anchor trains towards its own nearest box.

    Raises:
        UserError: if thresholds and labels do not fit.
    """

    def __init__(
        self,
        thresholds: Sequence[float] = (0.4, 0.5),
        labels: Sequence[int] = (0, -1, 1),
        allow_low_quality_matches: bool = True,
    ) -> None:
        numbers = all(isinstance(x, int | float) for x in thresholds)
        ascending = numbers and all(a <= b for a, b in pairwise(thresholds))
        if not thresholds or not ascending or not thresholds[0] > 0:
            raise UserError(
                f"MODEL.RETINANET.IOU_THRESHOLDS: {list(thresholds)} given; "
                "give numbers above 0 that do not fall, such as [0.4, 0.5]."
            )
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise UserError(
                f"MODEL.RETINANET.IOU_LABELS: {list(labels)} given for "
                f"{len(thresholds)} IOU_THRESHOLDS; give {len(thresholds) + 1} labels, "
                "each 0 (background), -1 (ignored) or 1 (positive)."
            )
        self._thresholds = torch.tensor(thresholds, dtype=torch.float32)
        self._labels = torch.tensor(labels, dtype=torch.int8)
        self._low_quality = allow_low_quality_matches

    @torch.no_grad()
    def __call__(self, grid: AnchorGrid, gt_instances: Sequence[Instances]) -> SparseTargets:
        """Assigns the anchors of a batch.

        Args:
            grid: the anchors, the same for each picture.
            gt_instances: N pictures with ``gt_boxes`` and ``gt_classes``, better on the CPU:
                from elsewhere they are copied.
        """
        counts = torch.tensor([len(x) for x in gt_instances])
        boxes = torch.cat([x.gt_boxes.tensor for x in gt_instances]).cpu()
        positive, match, ignored = self.assign(grid, boxes, counts)
        anchor = positive % grid.num_anchors
        return SparseTargets(
            image=positive // grid.num_anchors,
            anchor=anchor,
            anchor_box=grid.boxes_of(anchor),
            gt_box=boxes[match],
            gt_class=torch.cat([x.gt_classes for x in gt_instances]).cpu()[match],
            ignored_image=ignored // grid.num_anchors,
            ignored_anchor=ignored % grid.num_anchors,
            grid=grid,
        )

    def assign(
        self, grid: AnchorGrid, boxes: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Assigns the R anchors of each of N pictures to its boxes.

        Args:
            grid: the anchors.
            boxes: (M, 4), XYXY in pixels, float32: those of the first picture, then the next.
            counts: (N,), int64: boxes of each picture.

        Returns:
            positive: (P,) int64, ascending, ``picture * R + anchor``; match: (P,) int64, the box
            of each; ignored: (I,) int64, likewise.
        """
        picture = torch.repeat_interleave(counts)
        best = torch.zeros((len(counts), grid.num_anchors), dtype=torch.int64)
        highest, of_highest = torch.zeros(len(boxes)), []
        lowest = self._thresholds[0]
        for box, anchor, iou in grid.pairs(boxes, lowest.item(), self._low_quality):
            anchor += picture.index_select(0, box) * grid.num_anchors
            key = (iou.view(torch.int32).long() << 32) + (_LAST_BOX - box)
            best.view(-1).scatter_reduce_(0, anchor, key, "amax")
            if self._low_quality:
                highest.scatter_reduce_(0, box, iou, "amax")
                (i,) = torch.where(iou == highest.index_select(0, box))
                of_highest.append((box[i], anchor[i], iou[i]))
        for box, anchor, iou in of_highest:
            anchor = anchor[iou == highest[box]]
            best.view(-1)[anchor] = best.view(-1)[anchor] | _HIGHEST_OF_A_BOX
        if self._low_quality:
            # A box that overlaps no anchor has its highest IoU, 0, with all.
            best[picture[highest == 0].unique()] |= _HIGHEST_OF_A_BOX
        if self._labels[0] != 0:
            best[counts > 0] |= _NAMED
        (named,) = torch.where(best.view(-1))
        key = best.view(-1)[named]
        label = self._labels[torch.bucketize(_iou_of(key), self._thresholds, right=True)]
        label[(key & _HIGHEST_OF_A_BOX) > 0] = 1
        (positive,) = torch.where(label == 1)
        positive, key = named[positive], key[positive]
        match = _LAST_BOX - (key & _LAST_BOX)
        # Of pairs below the lowest threshold not all have been seen.
        (rest,) = torch.where(_iou_of(key) < lowest)
        per_picture = torch.bincount(positive[rest] // grid.num_anchors, minlength=len(counts))
        start = 0
        for index, count in zip(rest.split(per_picture.tolist()), counts.tolist(), strict=True):
            if len(index):
                anchor = positive[index] % grid.num_anchors
                match[index] = start + grid.nearest_box(anchor, boxes[start : start + count])
            start += count
        return positive, match, named[label == -1]


def _iou_of(key: Tensor) -> Tensor:
    return (key >> 32).int().view(torch.float32)
