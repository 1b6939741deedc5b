"""Box encoding and losses against detectron2's."""

import pytest
import torch
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss

from retinanet_plugin.losses import box_regression_loss, encode_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 300
    return torch.cat([corner, corner + torch.rand(count, 2) * 200 + 1], dim=1)


def test_encoding() -> None:
    anchors, boxes = random_boxes(200), random_boxes(200)
    transform = Box2BoxTransform(WEIGHTS)
    deltas = encode_boxes(anchors, boxes, WEIGHTS)
    torch.testing.assert_close(deltas, transform.get_deltas(anchors, boxes))
    torch.testing.assert_close(transform.apply_deltas(deltas, anchors), boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "loss_type, beta",
    [("smooth_l1", x) for x in (0.0, 0.1, 1.0)] + [(x, 0.0) for x in ("giou", "diou", "ciou")],
)
@pytest.mark.parametrize("count", [0, 1, 50])
def test_losses(loss_type: str, beta: float, count: int) -> None:
    anchors, boxes = random_boxes(count), random_boxes(count)
    deltas = (torch.randn(count, 4) * 0.3).requires_grad_()
    transform = Box2BoxTransform(WEIGHTS)
    ours = box_regression_loss(
        deltas,
        anchors,
        boxes,
        loss_type=loss_type,
        beta=beta,
        weights=WEIGHTS,
        decode=transform.apply_deltas,
    )
    if loss_type == "smooth_l1":
        targets = transform.get_deltas(anchors, boxes)
        expected = smooth_l1_loss(deltas, targets, beta=beta, reduction="sum")
    else:
        reference = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}[loss_type]
        expected = reference(transform.apply_deltas(deltas, anchors), boxes, reduction="sum")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours, deltas)[0], torch.autograd.grad(expected, deltas)[0]
    )
