"""Box regression: R-CNN's encoding of boxes, and the losses of assigned anchors."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

# Losses of pairs of boxes. torchvision's equal those of fvcore and detectron2, whose assertions on
# values wait for the device.
_IOU_LOSSES: dict[str, Callable[..., Tensor]] = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}
BOX_LOSSES = ("smooth_l1", *_IOU_LOSSES)


def encode_boxes(anchors: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Encodes ``boxes`` relative to ``anchors`` as R-CNN's (dx, dy, dw, dh), times ``weights``.

    Equal to detectron2's ``Box2BoxTransform.get_deltas``, which waits for the device to check that
    the anchors have a width; ours have one by construction.

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


def smooth_l1(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Sums smooth L1, Fast R-CNN's equation 3; as in fvcore, a ``beta`` below 1e-5 means L1."""
    error = (deltas - targets).abs()
    if beta >= 1e-5:
        error = torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
    return error.sum()


def box_regression_loss(
    deltas: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    *,
    loss_type: str = "smooth_l1",
    beta: float = 0.1,
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    decode: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Sums the box loss over the assigned anchors.

    Args:
        deltas: (P, 4), what the head predicts for the assigned anchors.
        anchors, boxes: (P, 4), XYXY in pixels: those anchors and their ground-truth boxes.
        loss_type: one of :data:`BOX_LOSSES`.
        beta: where smooth L1 turns from square to linear, in encoded units; 0 is L1.
        weights: as in :func:`encode_boxes`.
        decode: maps (deltas, anchors) to boxes, for the IoU losses.

    Returns:
        a scalar, float32; 0 with a gradient of 0 if P is 0.
    """
    deltas = deltas.float()
    if loss_type == "smooth_l1":
        return smooth_l1(deltas, encode_boxes(anchors, boxes, weights), beta)
    return _IOU_LOSSES[loss_type](decode(deltas, anchors), boxes, reduction="sum")
