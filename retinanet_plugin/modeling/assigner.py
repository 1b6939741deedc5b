"""Which anchors train towards which ground-truth box, as sparse indices; paper, section 4.1."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class SparseTargets:
    """What the R anchors of each of N pictures train towards; anchors not named are background.

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

    @property
    def num_positives(self) -> int:
        return len(self.anchor)


class AnchorAssigner:
    """Labels each anchor by its highest IoU with a ground-truth box.

    | IoU with the nearest box | label by default | meaning |
    | --- | --- | --- |
    | below ``thresholds[0]`` | 0 | background |
    | between | -1 | ignored |
    | ``thresholds[1]`` and above | 1 | trains towards that box |

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
        if not thresholds or not ascending or thresholds[0] <= 0:
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
        self._matcher = Matcher(list(thresholds), list(labels), allow_low_quality_matches)

    @torch.no_grad()
    def __call__(self, anchors: Tensor, gt_instances: Sequence[Instances]) -> SparseTargets:
        """Assigns the anchors of a batch.

        Args:
            anchors: (R, 4), XYXY in pixels; the same for each picture.
            gt_instances: N pictures with ``gt_boxes`` and ``gt_classes``, on the anchors' device.
        """
        parts = []
        for i, picture in enumerate(gt_instances):
            positive, match, ignored = self.assign(anchors, picture.gt_boxes.tensor)
            parts.append(
                (
                    torch.full_like(positive, i),
                    positive,
                    anchors[positive],
                    picture.gt_boxes.tensor[match],
                    picture.gt_classes[match],
                    torch.full_like(ignored, i),
                    ignored,
                )
            )
        return SparseTargets(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def assign(self, anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Assigns the anchors (R, 4) of one picture to its boxes (M, 4), XYXY in pixels.

        Returns:
            positive: (P,) int64, ascending indices of anchors; match: (P,) int64, the box of
            each; ignored: (I,) int64, ascending indices of anchors.
        """
        if len(boxes) == 0:
            none = torch.zeros(0, dtype=torch.int64, device=anchors.device)
            return none, none, none
        matches, labels = self._matcher(pairwise_iou(Boxes(boxes), Boxes(anchors)))
        (positive,) = torch.where(labels == 1)
        (ignored,) = torch.where(labels == -1)
        return positive, matches[positive], ignored
