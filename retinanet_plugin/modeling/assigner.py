"""Assigns ground-truth boxes to anchors, as sparse indices; section 4.1 of the paper."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..errors import check
from ..losses import SparseTargets
from .anchor_grid import AnchorGrid

# What is known of an anchor is an int64 key, of which the largest wins. Upper half: the bits of its
# highest IoU, which sort like the float32. Lower half: two flags, and the index of the box with
# that IoU, counted backwards, so that the first of equal boxes has the largest key.
_BEST_OF_A_BOX, _LISTED, _LAST_BOX = 2**31, 2**30, 2**30 - 1


class AnchorAssigner:
    """Labels each anchor by its highest IoU with a ground-truth box.

    | highest IoU | label by default | meaning |
    | --- | --- | --- |
    | below ``thresholds[0]`` | 0 | background |
    | between | -1 | ignored |
    | ``thresholds[1]`` and above | 1 | trained towards that box |

    The labels and matches are those of detectron2's ``Matcher``, which compares each box with
    every anchor; here a box is compared only with the anchors that it can reach.

    Args:
        thresholds: ascending, above 0: ``MODEL.RETINANET.IOU_THRESHOLDS``.
        labels: one more than thresholds, each -1, 0 or 1: ``MODEL.RETINANET.IOU_LABELS``.
        allow_low_quality_matches: the anchors with the highest IoU of a box are positive too,
            however low it is. Such an anchor is trained towards its own nearest box.

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
        check(
            bool(thresholds) and ascending and thresholds[0] > 0,
            "MODEL.RETINANET.IOU_THRESHOLDS",
            list(thresholds),
            "ascending numbers above 0, such as [0.4, 0.5]",
        )
        count = len(thresholds) + 1
        check(
            len(labels) == count and set(labels) <= {-1, 0, 1},
            "MODEL.RETINANET.IOU_LABELS",
            list(labels),
            f"{count} labels for {count - 1} IOU_THRESHOLDS, each 0 (background), -1 (ignored) or "
            "1 (positive)",
        )
        self._thresholds = torch.tensor(thresholds, dtype=torch.float32)
        self._labels = torch.tensor(labels, dtype=torch.int8)
        self._low_quality = allow_low_quality_matches

    @torch.no_grad()
    def __call__(self, grid: AnchorGrid, gt_instances: Sequence[Instances]) -> SparseTargets:
        """Assigns the anchors of a batch.

        Args:
            grid: the anchors, the same for all images.
            gt_instances: ``gt_boxes`` and ``gt_classes`` of N images, preferably on the CPU.
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
        """Assigns the R anchors of each of N images to the boxes of that image.

        Args:
            grid: the anchors.
            boxes: (M, 4), XYXY in pixels, float32: of the first image, then of the second, ...
            counts: (N,), int64: number of boxes per image.

        Returns:
            positive: (P,) int64, ascending ``image * R + anchor``; match: (P,) int64, the box of
            each; ignored: (I,) int64, as ``positive``.
        """
        image = torch.repeat_interleave(counts)
        best = self._best_keys(grid, boxes, image, counts)
        (listed,) = torch.where(best)
        key = best[listed]
        label = self._labels[torch.bucketize(_iou_of(key), self._thresholds, right=True)]
        label[(key & _BEST_OF_A_BOX) > 0] = 1
        (positive,) = torch.where(label == 1)
        positive, key = listed[positive], key[positive]
        match = _LAST_BOX - (key & _LAST_BOX)
        # Pairs below the lowest threshold have not all been seen.
        (rest,) = torch.where(_iou_of(key) < self._thresholds[0])
        per_image = torch.bincount(positive[rest] // grid.num_anchors, minlength=len(counts))
        start = 0
        for index, count in zip(rest.split(per_image.tolist()), counts.tolist(), strict=True):
            if len(index):
                anchor = positive[index] % grid.num_anchors
                match[index] = start + grid.nearest_box(anchor, boxes[start : start + count])
            start += count
        return positive, match, listed[label == -1]

    def _best_keys(self, grid: AnchorGrid, boxes: Tensor, image: Tensor, counts: Tensor) -> Tensor:
        """Computes the key of each anchor, 0 for background: (N * R,), int64."""
        best = torch.zeros((len(counts), grid.num_anchors), dtype=torch.int64)
        flat = best.view(-1)
        highest, of_highest = torch.zeros(len(boxes)), []
        for box, anchor, iou in grid.pairs(boxes, self._thresholds[0].item(), self._low_quality):
            anchor += image.index_select(0, box) * grid.num_anchors
            key = (iou.view(torch.int32).long() << 32) + (_LAST_BOX - box)
            flat.scatter_reduce_(0, anchor, key, "amax")
            if self._low_quality:
                highest.scatter_reduce_(0, box, iou, "amax")
                (i,) = torch.where(iou == highest.index_select(0, box))
                of_highest.append((box[i], anchor[i], iou[i]))
        for box, anchor, iou in of_highest:
            anchor = anchor[iou == highest[box]]
            flat[anchor] |= _BEST_OF_A_BOX
        if self._low_quality:
            # A box that overlaps no anchor has its highest IoU, 0, with all of them.
            best[image[highest == 0].unique()] |= _BEST_OF_A_BOX
        if self._labels[0] != 0:
            best[counts > 0] |= _LISTED
        return flat


def _iou_of(key: Tensor) -> Tensor:
    return (key >> 32).int().view(torch.float32)
