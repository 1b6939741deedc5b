"""Non-maximum suppression that can be exported: no shape depends on what is in a picture.

Greedy NMS keeps the best box, drops those of its class that overlap it, and begins anew with what
is left. Here that is done at most K times, for all pictures of a batch at once: the K best of what
torchvision's NMS keeps, in its order. The first of equal scores goes first.
"""

import functools
from typing import Any

import torch
from torch import Tensor


def pick(
    boxes: Tensor, scores: Tensor, classes: Tensor, most: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Indices and scores of the boxes that remain of each picture, by falling score: (N, K) each.

    Args:
        boxes: (N, M, 4), XYXY.
        scores: (N, M); 0: no candidate. Where fewer than K remain, so are the scores of the rest.
        classes: (N, M): boxes of different classes never suppress one another.
        most: K.
        threshold: IoU above which the lesser of two boxes is dropped.
    """
    if torch.jit.is_tracing():
        picked: tuple[Tensor, Tensor] = _scripted()(boxes, scores, classes, most, threshold)
        return picked
    if is_exporting():
        return _exported(boxes, scores, classes, most, threshold)
    return _loop(boxes, scores, classes, most, threshold)


def is_exporting() -> bool:
    """Whether ``torch.export`` is at work; PyTorch before 2.7, which cannot tell, only traces."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def _loop(
    boxes: Tensor, scores: Tensor, classes: Tensor, most: int, threshold: float
) -> tuple[Tensor, Tensor]:
    indices, picked = _none(scores, most)
    for step in range(most):
        if bool((scores > 0).any()):
            best, index, scores = _take_best(boxes, scores, classes, threshold)
            indices[:, step] = index[:, 0]
            picked[:, step] = best[:, 0]
    return indices, picked


def _exported(
    boxes: Tensor, scores: Tensor, classes: Tensor, most: int, threshold: float
) -> tuple[Tensor, Tensor]:
    def goes_on(step: Tensor, left: Tensor, *_: Tensor) -> Tensor:
        return (step < most) & (left > 0).any()

    def body(
        step: Tensor, left: Tensor, indices: Tensor, picked: Tensor, boxes: Tensor, classes: Tensor
    ) -> tuple[Tensor, ...]:
        best, index, left = _take_best(boxes, left, classes, threshold)
        here = torch.arange(most, device=left.device) == step
        return step + 1, left, torch.where(here, index, indices), torch.where(here, best, picked)

    start = torch.zeros((), dtype=torch.int64, device=scores.device)
    state = (start, scores.clone(), *_none(scores, most))
    loop = torch.ops.higher_order.while_loop
    _, _, indices, picked = loop(goes_on, body, state, (boxes, classes))
    return indices, picked


def _none(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    picked = scores.new_zeros((scores.shape[0], most))
    return picked.to(torch.int64), picked


def _take_best(
    boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best score (N, 1), its index (N, 1), and the scores without it and what it suppresses."""
    best, index = scores.max(1, keepdim=True)
    box = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    corner = torch.maximum(boxes[:, :, :2], box[:, :, :2])
    size = (torch.minimum(boxes[:, :, 2:], box[:, :, 2:]) - corner).clamp(min=0)
    overlap = size[:, :, 0] * size[:, :, 1]
    iou = overlap / (_area(boxes) + _area(box) - overlap)
    gone = (iou > threshold) & (classes == classes.gather(1, index))
    return best, index, scores.masked_fill(gone, 0.0).scatter(1, index, 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, :, 2] - boxes[:, :, 0]) * (boxes[:, :, 3] - boxes[:, :, 1])


@functools.cache
def _scripted() -> Any:
    return torch.jit.script(_loop)
