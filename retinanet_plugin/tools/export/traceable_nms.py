"""Non-maximum suppression (NMS) with shapes that do not depend on the content of images.

Greedy NMS takes the best box, drops the boxes of its class that overlap it, and repeats. Here D
steps do so for all images of a batch at once. The result is that of torchvision's NMS per class,
cut to the D best, with the first of equal scores first.
"""

import torch
from torch import Tensor


def nms_top_k(
    boxes: Tensor, scores: Tensor, classes: Tensor, max_detections: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Returns indices and scores of the remaining boxes per image, by descending score: (N, D).

    Args:
        boxes: (N, M, 4), XYXY.
        scores: (N, M); 0 for what is no candidate. Where fewer than D boxes remain, the scores of
            the rest are 0, too.
        classes: (N, M); boxes of different classes do not suppress each other.
        max_detections: D.
        threshold: the lower scored of two boxes with an IoU above it is dropped.
    """
    loop = _exported_loop if is_exporting() else _loop
    result: tuple[Tensor, Tensor] = loop(boxes, scores, classes, max_detections, threshold)
    return result


def is_exporting() -> bool:
    """Returns whether ``torch.export`` is running; PyTorch before 2.7 only traces."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


@torch.jit.script_if_tracing
def _loop(
    boxes: Tensor, scores: Tensor, classes: Tensor, max_detections: int, threshold: float
) -> tuple[Tensor, Tensor]:
    indices, kept = _empty(scores, max_detections)
    for step in range(max_detections):
        if bool((scores > 0).any()):
            best, index, scores = _take_best(boxes, scores, classes, threshold)
            indices[:, step] = index[:, 0]
            kept[:, step] = best[:, 0]
    return indices, kept


def _exported_loop(
    boxes: Tensor, scores: Tensor, classes: Tensor, max_detections: int, threshold: float
) -> tuple[Tensor, Tensor]:
    def condition(step: Tensor, left: Tensor, *_: Tensor) -> Tensor:
        return (step < max_detections) & (left > 0).any()

    def body(
        step: Tensor, left: Tensor, indices: Tensor, kept: Tensor, boxes: Tensor, classes: Tensor
    ) -> tuple[Tensor, ...]:
        best, index, left = _take_best(boxes, left, classes, threshold)
        here = torch.arange(max_detections, device=left.device) == step
        return step + 1, left, torch.where(here, index, indices), torch.where(here, best, kept)

    start = torch.zeros((), dtype=torch.int64, device=scores.device)
    state = (start, scores.clone(), *_empty(scores, max_detections))
    loop = torch.ops.higher_order.while_loop
    _, _, indices, kept = loop(condition, body, state, (boxes, classes))
    return indices, kept


def _empty(scores: Tensor, max_detections: int) -> tuple[Tensor, Tensor]:
    kept = scores.new_zeros((scores.shape[0], max_detections))
    return kept.to(torch.int64), kept


def _take_best(
    boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best scores and their indices, (N, 1) each, and the scores of what remains."""
    best, index = scores.max(1, keepdim=True)
    box = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    corner = torch.maximum(boxes[:, :, :2], box[:, :, :2])
    size = (torch.minimum(boxes[:, :, 2:], box[:, :, 2:]) - corner).clamp(min=0)
    overlap = size[:, :, 0] * size[:, :, 1]
    iou = overlap / (_area(boxes) + _area(box) - overlap)
    suppressed = (iou > threshold) & (classes == classes.gather(1, index))
    return best, index, scores.masked_fill(suppressed, 0.0).scatter(1, index, 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, :, 2] - boxes[:, :, 0]) * (boxes[:, :, 3] - boxes[:, :, 1])
