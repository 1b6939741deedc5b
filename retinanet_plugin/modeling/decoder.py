"""From logits and deltas to detections: threshold, best of each level, decoding, NMS."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

# How far below the threshold's own logit to look, so that rounding loses no score: those few are
# compared as scores afterwards.
_LOGIT_SLACK = 1e-3


class DetectionDecoder:
    """Turns the head's outputs into detections.

    Scores are compared as logits; the sigmoid and the decoding are done for the survivors alone.

    Args:
        num_classes: K.
        apply_deltas: maps deltas (D, 4) and anchors (D, 4) to boxes (D, 4), XYXY in pixels.
        score_thresh: detections score above it.
        topk_candidates: the most that each level may send on.
        nms_thresh: IoU above which the lesser of two boxes of a class is dropped.
        max_detections: the most a picture keeps.
        class_agnostic: whether the head predicts one box an anchor, or one for each class.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        apply_deltas: Callable[[Tensor, Tensor], Tensor],
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.5,
        max_detections: int = 100,
        class_agnostic: bool = True,
    ) -> None:
        self.num_classes = num_classes
        self.apply_deltas = apply_deltas
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.class_agnostic = class_agnostic

    def __call__(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Detections of one picture.

        Args:
            logits: a tensor a level, (A*K, H, W).
            deltas: a tensor a level, (A*4, H, W), or (A*K*4, H, W) if not class-agnostic.
            anchors: a tensor a level, (H*W*A, 4), XYXY in pixels.
            image_size: height and width that the detections refer to.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes``, by falling score.
        """
        levels = [self.decode_level(*level) for level in zip(logits, deltas, anchors, strict=True)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.max_detections]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )

    def decode_level(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (D, 4), scores (D,), classes (D,): one level's best candidates, before NMS."""
        channels = logits.shape[0]
        index = self._survivors(logits)
        # Both are views of the head's outputs in either memory format.
        logits = logits.flatten(1)
        channel, cell = index % channels, torch.div(index, channels, rounding_mode="floor")
        scores = logits[channel, cell].sigmoid()
        above = torch.where(scores > self.score_thresh)[0]
        scores, best = scores[above].topk(self._num_kept(above))
        best = above[best]
        channel, cell = channel[best], cell[best]
        anchor = torch.div(channel, self.num_classes, rounding_mode="floor")
        num_anchors = channels // self.num_classes
        group = anchor if self.class_agnostic else channel
        boxes = self.apply_deltas(
            deltas.unflatten(0, (-1, 4)).flatten(2)[group, :, cell],
            anchors[cell * num_anchors + anchor],
        )
        return boxes, scores, channel % self.num_classes

    def _survivors(self, logits: Tensor) -> Tensor:
        """Indices, ascending, of the logits (C, H, W) above the threshold, by cell, then channel.

        This is detectron2's order, which decides between equal scores; in the channels-last format
        it is also memory order.
        """
        limit = _logit(self.score_thresh) - _LOGIT_SLACK
        by_cell = logits.permute(1, 2, 0)
        if by_cell.is_contiguous():
            return torch.where(by_cell.flatten() > limit)[0]
        channels, height, width = logits.shape
        index = torch.where(logits.flatten() > limit)[0]
        channel = torch.div(index, height * width, rounding_mode="floor")
        cell = index - channel * (height * width)
        return torch.sort(cell * channels + channel).values

    def _num_kept(self, survivors: Tensor) -> Any:
        count: int | Tensor = survivors.shape[0]
        if isinstance(count, Tensor):  # while tracing: keep the graph free of this picture's count
            return torch.clamp(count, max=self.topk_candidates)
        return min(count, self.topk_candidates)


def _logit(p: float) -> float:
    if p <= 0:
        return -math.inf
    return math.inf if p >= 1 else math.log(p / (1 - p))
