"""From logits and deltas to detections: threshold, top k per level, decoding, NMS."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

# Logits per block of the search on a CPU: their maximum costs little more than reading them.
_BLOCK = 64


class DetectionDecoder:
    """Turns the head's outputs into detections.

    Sigmoid and decoding are computed in float32, whatever the dtype of the outputs, and only for
    the few logits near and above the threshold.

    Args:
        num_classes: K.
        apply_deltas: maps deltas (D, 4) and anchors (D, 4) to boxes (D, 4), XYXY in pixels.
        score_thresh: detections have a higher score.
        topk_candidates: maximum number of candidates per level, before NMS.
        nms_thresh: IoU above which the lower-scoring of two boxes of a class is dropped.
        max_detections: maximum number of detections per image.
        class_agnostic: whether the head predicts one box per anchor, or one per class.
        clip_before_nms: clip boxes to the image before NMS.
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
        clip_before_nms: bool = False,
    ) -> None:
        self.num_classes = num_classes
        self.apply_deltas = apply_deltas
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.class_agnostic = class_agnostic
        self.clip_before_nms = clip_before_nms

    def __call__(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Returns the detections of each image.

        Args:
            logits: a tensor per level, (N, A*K, H, W).
            deltas: a tensor per level, (N, A*4, H, W), or (N, A*K*4, H, W) if not class-agnostic.
            anchors: a tensor per level, (H*W*A, 4), XYXY in pixels.
            image_sizes: height and width of each of the N images.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes`` of each image, by descending score.
        """
        images = range(len(image_sizes))
        flat = [_in_memory_order(x[i]) for i in images for x in logits]
        above = iter(scores_above(flat, self.score_thresh))
        return [
            self._decode_image(
                [
                    self._decode_level(logits_i[i], *next(above), deltas_i[i], anchors_i)
                    for logits_i, deltas_i, anchors_i in zip(logits, deltas, anchors, strict=True)
                ],
                image_sizes[i],
            )
            for i in images
        ]

    def _decode_image(
        self, levels: Sequence[tuple[Tensor, Tensor, Tensor]], image_size: tuple[int, int]
    ) -> Instances:
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        if self.clip_before_nms:
            height, width = image_size
            x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
            boxes = torch.stack((x, y), dim=2).flatten(1)
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.max_detections]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )

    def _decode_level(
        self, logits: Tensor, offsets: Tensor, scores: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes the top k of the logits at ``offsets``: boxes (D, 4), scores and classes (D,)."""
        channels, height, width = logits.shape
        if not _is_by_cell(logits):
            channel = torch.div(offsets, height * width, rounding_mode="floor")
            cell = offsets - channel * (height * width)
            # detectron2's order, which decides between equal scores.
            offsets, order = torch.sort(cell * channels + channel)
            scores = scores[order]
        scores, top = scores.topk(self._num_kept(scores))
        cell = torch.div(offsets[top], channels, rounding_mode="floor")
        channel = offsets[top] - cell * channels
        anchor = torch.div(channel, self.num_classes, rounding_mode="floor")
        num_anchors = channels // self.num_classes
        group = anchor if self.class_agnostic else channel
        boxes = self.apply_deltas(
            deltas.unflatten(0, (-1, 4)).flatten(2)[group, :, cell].float(),
            anchors[cell * num_anchors + anchor],
        )
        return boxes, scores, channel - anchor * self.num_classes

    def _num_kept(self, scores: Tensor) -> Any:
        count: int | Tensor = scores.shape[0]
        if isinstance(count, Tensor):  # while tracing: keeps this image's count out of the graph
            return torch.clamp(count, max=self.topk_candidates)
        return min(count, self.topk_candidates)


def scores_above(logits: Sequence[Tensor], score_thresh: float) -> list[tuple[Tensor, Tensor]]:
    """Finds the scores (float32 sigmoids) above ``score_thresh``.

    Args:
        logits: one-dimensional tensors on one device.

    Returns:
        per tensor the ascending indices (D,), int64, and the scores (D,).
    """
    if torch.jit.is_tracing():
        return [_above(x, score_thresh) for x in logits]
    if logits[0].is_cpu:
        return [_above_by_blocks(x, score_thresh) for x in logits]
    return _above_at_once(logits, score_thresh)


def _above(logits: Tensor, score_thresh: float) -> tuple[Tensor, Tensor]:
    scores = logits.float().sigmoid()
    (index,) = torch.where(scores > score_thresh)
    return index, scores[index]


def _above_by_blocks(logits: Tensor, score_thresh: float) -> tuple[Tensor, Tensor]:
    """Does the same as :func:`_above`, but skips blocks whose largest logit is too low: nearly all.

    Sigmoids are computed for whole blocks, because torch rounds those of a few numbers differently.
    """
    whole = len(logits) // _BLOCK * _BLOCK
    blocks = logits[:whole].view(-1, _BLOCK)
    # Not "amax > limit", so that a NaN does not hide its neighbors.
    (near,) = torch.where((blocks.amax(1) <= _limit(score_thresh, logits.dtype)).logical_not_())
    index, scores = _above(blocks.index_select(0, near).flatten(), score_thresh)
    row = torch.div(index, _BLOCK, rounding_mode="floor")
    last, last_scores = _above(logits[whole:], score_thresh)
    return (
        torch.cat([index + (near[row] - row) * _BLOCK, last + whole]),
        torch.cat([scores, last_scores]),
    )


def _above_at_once(logits: Sequence[Tensor], score_thresh: float) -> list[tuple[Tensor, Tensor]]:
    """Does the same for all tensors, but waits for the device twice, not once per tensor."""
    (index,) = torch.where(torch.cat([x.float().sigmoid() > score_thresh for x in logits]))
    starts = list(accumulate(map(len, logits), initial=0))
    bounds = torch.searchsorted(index, index.new_tensor(starts)).tolist()
    parts = [index[a:b] - start for (a, b), start in zip(pairwise(bounds), starts, strict=False)]
    return [(part, x[part].float().sigmoid()) for part, x in zip(parts, logits, strict=True)]


def _limit(score: float, dtype: torch.dtype) -> float:
    """Returns a logit of ``dtype`` just below those whose sigmoid is above ``score``."""
    if score <= 0:
        return -math.inf
    if score >= 1:
        return math.inf
    logit = math.log(score / (1 - score))
    # The rounding of the limit in dtype, and that of the score in float32.
    return logit - max(torch.finfo(dtype).eps * abs(logit), 1e-5 / (1 - score))


def _is_by_cell(logits: Tensor) -> bool:
    """Returns whether the logits (C, H, W) are in channels-last format: cell by cell in memory."""
    return logits.permute(1, 2, 0).is_contiguous()


def _in_memory_order(logits: Tensor) -> Tensor:
    """Returns the logits (C, H, W) as a flat view in the order of memory, in either format."""
    return (logits.permute(1, 2, 0) if _is_by_cell(logits) else logits).flatten()
