"""From logits and deltas to detections: threshold, best of each level, decoding, NMS."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

# Logits that a CPU looks at together: their maximum costs little more than reading them.
_BLOCK = 64
# torchvision's batched_nms shifts the classes of up to so many boxes apart, on a CPU, to treat
# them as one; more it takes class by class.
_SHIFTED_BOXES = 1000


class DetectionDecoder:
    """Turns the head's outputs into detections.

    The sigmoid and the decoding are done for the few logits near and above the threshold, where
    they lie; all of it in float32, whatever the head's outputs are in.

    Args:
        num_classes: K.
        apply_deltas: maps deltas (D, 4) and anchors (D, 4) to boxes (D, 4), XYXY in pixels.
        score_thresh: detections score above it.
        topk_candidates: the most that each level may send on.
        nms_thresh: IoU above which the lesser of two boxes of a class is dropped.
        max_detections: the most a picture keeps.
        class_agnostic: whether the head predicts one box an anchor, or one for each class.
        clip_before_nms: whether boxes are clipped to the picture before they suppress one another.
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
        """Detections of each picture.

        Args:
            logits: a tensor a level, (N, A*K, H, W).
            deltas: a tensor a level, (N, A*4, H, W), or (N, A*K*4, H, W) if not class-agnostic.
            anchors: a tensor a level, (H*W*A, 4), XYXY in pixels.
            image_sizes: N heights and widths that the detections refer to.

        Returns:
            of each picture ``pred_boxes``, ``scores`` and ``pred_classes``, by falling score.
        """
        pictures = range(len(image_sizes))
        in_memory = [_in_memory_order(x[i]) for i in pictures for x in logits]
        above = iter(scores_above(in_memory, self.score_thresh))
        return [
            self._decode_picture(
                [
                    self._decode_level(logits_i[i], *next(above), deltas_i[i], anchors_i)
                    for logits_i, deltas_i, anchors_i in zip(logits, deltas, anchors, strict=True)
                ],
                image_sizes[i],
            )
            for i in pictures
        ]

    def _decode_picture(
        self, levels: Sequence[tuple[Tensor, Tensor, Tensor]], image_size: tuple[int, int]
    ) -> Instances:
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        if self.clip_before_nms:
            height, width = image_size
            x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
            boxes = torch.stack((x, y), dim=2).flatten(1)
        keep = _nms_by_class(boxes, scores, classes, self.nms_thresh)[: self.max_detections]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )

    def _decode_level(
        self, logits: Tensor, offsets: Tensor, scores: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (D, 4), scores (D,), classes (D,): a level's best of the logits at ``offsets``."""
        channels, height, width = logits.shape
        if not _is_by_cell(logits):
            channel = torch.div(offsets, height * width, rounding_mode="floor")
            cell = offsets - channel * (height * width)
            # detectron2's order, which decides between equal scores.
            offsets, order = torch.sort(cell * channels + channel)
            scores = scores[order]
        scores, best = scores.topk(self._num_kept(scores))
        cell = torch.div(offsets[best], channels, rounding_mode="floor")
        channel = offsets[best] - cell * channels
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
        if isinstance(count, Tensor):  # while tracing: keep the graph free of this picture's count
            return torch.clamp(count, max=self.topk_candidates)
        return min(count, self.topk_candidates)


def scores_above(logits: Sequence[Tensor], score_thresh: float) -> list[tuple[Tensor, Tensor]]:
    """The scores, sigmoids in float32, that are above ``score_thresh``, and where they are.

    Args:
        logits: one-dimensional tensors of one device.

    Returns:
        of each tensor the ascending indices (D,), int64, and the scores there (D,).
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
    """Leaves out the blocks whose greatest logit is below the threshold: on a CPU nearly all.

    Sigmoids are taken of whole blocks: torch rounds those of a few numbers differently.
    """
    whole = len(logits) // _BLOCK * _BLOCK
    blocks = logits[:whole].view(-1, _BLOCK)
    # Not "above", so that a NaN does not hide its neighbours.
    (near,) = torch.where((blocks.amax(1) <= _limit(score_thresh, logits.dtype)).logical_not_())
    index, scores = _above(blocks.index_select(0, near).flatten(), score_thresh)
    row = torch.div(index, _BLOCK, rounding_mode="floor")
    last, last_scores = _above(logits[whole:], score_thresh)
    return (
        torch.cat([index + (near[row] - row) * _BLOCK, last + whole]),
        torch.cat([scores, last_scores]),
    )


def _above_at_once(logits: Sequence[Tensor], score_thresh: float) -> list[tuple[Tensor, Tensor]]:
    """The host waits for the device twice, not once for each tensor."""
    (index,) = torch.where(torch.cat([x.float().sigmoid() > score_thresh for x in logits]))
    starts = list(accumulate(map(len, logits), initial=0))
    bounds = torch.searchsorted(index, index.new_tensor(starts)).tolist()
    parts = [index[a:b] - start for (a, b), start in zip(pairwise(bounds), starts, strict=False)]
    return [(part, x[part].float().sigmoid()) for part, x in zip(parts, logits, strict=True)]


def _limit(score: float, dtype: torch.dtype) -> float:
    """A logit of ``dtype`` just below those whose sigmoid is above ``score``."""
    if score <= 0:
        return -math.inf
    if score >= 1:
        return math.inf
    logit = math.log(score / (1 - score))
    # What dtype rounds the limit by, and what float32 rounds the score by.
    return logit - max(torch.finfo(dtype).eps * abs(logit), 1e-5 / (1 - score))


def _is_by_cell(logits: Tensor) -> bool:
    """Whether the logits (C, H, W) lie in memory cell by cell: the channels-last format."""
    return logits.permute(1, 2, 0).is_contiguous()


def _in_memory_order(logits: Tensor) -> Tensor:
    """The logits (C, H, W) as one row, as they lie in memory: a view in either memory format."""
    return (logits.permute(1, 2, 0) if _is_by_cell(logits) else logits).flatten()


def _nms_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that remain, by falling score: those of ``batched_nms``.

    Many boxes on a CPU are brought into the order of their classes once, where torchvision
    searches and copies them anew for each class.
    """
    if not boxes.is_cpu or torch.jit.is_tracing() or len(boxes) <= _SHIFTED_BOXES:
        return batched_nms(boxes, scores, classes, threshold)
    order = torch.argsort(classes, stable=True)
    counts = torch.unique_consecutive(classes[order], return_counts=True)[1].tolist()
    parts = zip(*(x.split(counts) for x in (order, boxes[order], scores[order])), strict=True)
    keep = torch.cat([part[nms(*of_class, threshold)] for part, *of_class in parts]).sort().values
    return keep[scores[keep].sort(descending=True).indices]
