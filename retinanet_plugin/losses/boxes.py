"""Box regression: the R-CNN encoding of boxes, and the losses on assigned anchors."""

from collections.abc import Callable

import torch
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

# Losses of two boxes (P, 4) in absolute XYXY, as opposed to smooth L1 of two encodings. Those of
# fvcore and detectron2 are the same numbers, but assert on values of the device and so stall it.
_IOU_LOSSES: dict[str, Callable[..., Tensor]] = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}
BOX_LOSSES = ("smooth_l1", *_IOU_LOSSES)


def encode_boxes(anchors: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Encodes ``boxes`` relative to ``anchors`` as (dx, dy, dw, dh) of R-CNN, times ``weights``.

    The same numbers as detectron2's ``Box2BoxTransform.get_deltas``, which stops to ask the
    device whether each anchor has a width; ours have one by construction.

    Args:
        anchors, boxes: (P, 4), XYXY in pixels, of positive width and height.
        weights: factors of the four numbers.

    Returns:
        (P, 4)
    """
    anchor_sizes = anchors[:, 2:] - anchors[:, :2]
    box_sizes = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + 0.5 * box_sizes) - (anchors[:, :2] + 0.5 * anchor_sizes)
    wx, wy, ww, wh = weights
    dx, dy = (shift / anchor_sizes).unbind(1)
    dw, dh = torch.log(box_sizes / anchor_sizes).unbind(1)
    return torch.stack((wx * dx, wy * dy, ww * dw, wh * dh), dim=1)


def box_regression_loss(
    deltas: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    *,
    kind: str = "smooth_l1",
    beta: float = 0.1,
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    decode: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Sum of the box loss over the assigned anchors.

    Args:
        deltas: (P, 4), what the head predicts for the assigned anchors.
        anchors, boxes: (P, 4), XYXY in pixels: those anchors and their ground truth.
        kind: one of :data:`BOX_LOSSES`.
        beta: where smooth L1 turns from square to linear, in encoded units; 0 is L1.
        weights: as for :func:`encode_boxes`.
        decode: maps (deltas, anchors) to boxes, for the IoU losses.

    Returns:
        a scalar, float32; 0 with a gradient of 0 where P is 0.
    """
    deltas = deltas.float()
    if kind == "smooth_l1":
        targets = encode_boxes(anchors, boxes, weights)
        return smooth_l1_loss(deltas, targets, beta=beta, reduction="sum")
    return _IOU_LOSSES[kind](decode(deltas, anchors), boxes, reduction="sum")
