"""The head: registry, prior, class-specific boxes, both memory formats, autocast."""

import math

import pytest
import torch
from conftest import random_image, small_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from retinanet_plugin import (
    CLS_LOSS_REGISTRY,
    DENSE_HEAD_REGISTRY,
    FocalLossHead,
    RetinaNetAnchorGenerator,
)
from retinanet_plugin.losses import (
    BinaryLoss,
    CrossEntropyLoss,
    FocalLoss,
    FocalStarLoss,
    HardExamples,
    MinedLoss,
    SparseTargets,
)
from retinanet_plugin.modeling.anchors import HostAnchors
from retinanet_plugin.modeling.cls_losses import build_cls_loss

GRIDS = [(6, 5), (3, 3)]
A, K = 3, 4
GRID = HostAnchors(RetinaNetAnchorGenerator(strides=[8, 16], scales_per_octave=1))(
    [torch.zeros(1, 1, *g) for g in GRIDS]
)


def make_head(**arguments: object) -> FocalLossHead:
    shapes = [ShapeSpec(channels=8, stride=s) for s in (8, 16)]
    return FocalLossHead(
        input_shape=shapes, num_classes=K, num_anchors=A, conv_dims=[8], **arguments
    )


def targets_for(num_images: int) -> SparseTargets:
    """Some anchors of each level and image, positive or ignored."""
    num_anchors = sum(h * w * A for h, w in GRIDS)
    order = torch.randperm(num_images * num_anchors)
    positive, ignored = order[:17].sort().values, order[17:40]
    anchor_box = torch.rand(17, 4) * 20
    anchor_box[:, 2:] += anchor_box[:, :2] + 5
    return SparseTargets(
        image=positive // num_anchors,
        anchor=positive % num_anchors,
        anchor_box=anchor_box,
        gt_box=anchor_box + torch.randn(17, 4),
        gt_class=torch.randint(K, (17,)),
        ignored_image=ignored // num_anchors,
        ignored_anchor=ignored % num_anchors,
        grid=GRID,
    )


def dense(parts: list[Tensor], per_anchor: int) -> Tensor:
    """(N, anchors, per_anchor), in the order that SparseTargets numbers anchors."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, per_anchor) for x in parts], dim=1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("class_agnostic", [True, False])
def test_losses_against_dense_targets(class_agnostic: bool, memory_format) -> None:
    head = make_head(class_agnostic_bbox_reg=class_agnostic, smooth_l1_beta=0.5)
    logits, deltas = (
        [
            torch.randn(2, A * size, *g).contiguous(memory_format=memory_format).requires_grad_()
            for g in GRIDS
        ]
        for size in (K, 4 if class_agnostic else 4 * K)
    )
    targets = targets_for(2)
    losses = head.losses((logits, deltas), targets, 3.0)
    x = dense(logits, K)
    labels = torch.zeros_like(x)
    labels[targets.image, targets.anchor, targets.gt_class] = 1
    counted = torch.ones_like(x)
    counted[targets.ignored_image, targets.ignored_anchor] = 0
    expected_cls = (FocalLoss()(x, labels) * counted).sum() / 3
    picked = dense(deltas, 4 if class_agnostic else 4 * K)[targets.image, targets.anchor]
    if not class_agnostic:
        picked = picked.reshape(-1, K, 4)[torch.arange(17), targets.gt_class]
    wanted = Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).get_deltas(targets.anchor_box, targets.gt_box)
    expected_box = torch.nn.functional.smooth_l1_loss(picked, wanted, beta=0.5, reduction="sum") / 3
    torch.testing.assert_close(losses["loss_cls"], expected_cls)
    torch.testing.assert_close(losses["loss_box_reg"], expected_box)
    inputs = logits + deltas
    torch.testing.assert_close(
        torch.autograd.grad(sum(losses.values()), inputs),
        torch.autograd.grad(expected_cls + expected_box, inputs),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """Outputs in half precision, losses in float32, near those of full precision."""
    head = make_head()
    features = [torch.randn(2, 8, *g) for g in GRIDS]
    targets = targets_for(2)
    expected = head.losses(head(features), targets, 1.0)
    with torch.autocast("cpu", dtype):
        predictions = head(features)
        losses = head.losses(predictions, targets, 1.0)
    assert predictions[0][0].dtype is dtype
    assert all(x.dtype is torch.float32 for x in losses.values())
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.02)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(
    "name, overrides, expected",
    [
        ("focal", (), FocalLoss()),
        ("focal_star", ("FOCAL_STAR_BETA", 0.5), FocalStarLoss(beta=0.5)),
        ("cross_entropy", (), CrossEntropyLoss()),
        ("balanced_cross_entropy", ("FOCAL_LOSS_ALPHA", 0.75), CrossEntropyLoss(0.75)),
        ("ohem", ("OHEM.BATCH_SIZE", 256, "OHEM.NMS_THRESH", 0.7), HardExamples(256, 0.7, 0.0)),
        ("ohem", ("OHEM.POSITIVE_FRACTION", 0.25), HardExamples(128, 0.5, 0.25)),
    ],
)
def test_losses_by_name(name: str, overrides: tuple, expected: object) -> None:
    cfg = small_config("MODEL.RETINANET.COMPILE_LOSS", True)
    cfg.MODEL.RETINANET.merge_from_list(["CLS_LOSS", name, *overrides])
    loss = build_cls_loss(cfg)
    assert type(loss.binary) is (CrossEntropyLoss if name == "ohem" else type(expected))
    built = loss.choose if name == "ohem" else loss.binary
    assert vars(built) == vars(expected)
    assert name == "ohem" or loss.negatives.compile


def test_training_on_hard_examples() -> None:
    """Few logits get a gradient, but all parameters do."""
    model = build_model(small_config("MODEL.RETINANET.CLS_LOSS", "ohem"))
    model.head.cls_loss.choose.batch_size = 5
    seen = []
    model.head.cls_score.register_full_backward_hook(lambda _, __, grad: seen.extend(grad))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([random_image(128, 96, 3), random_image(96, 128, 0)])
    sum(losses.values()).backward()
    rows = sum(x.unflatten(1, (-1, 7)).abs().sum(2).count_nonzero() for x in seen)
    assert rows == 2 * 5
    assert all(p.grad.isfinite().all() for p in model.head.parameters())


class Hinge(BinaryLoss):
    def value(self, logits: Tensor, positive: bool) -> Tensor:
        return torch.relu(1 + (-logits if positive else logits))


def first_three(losses: Tensor, positive: Tensor, anchors: object) -> Tensor:
    return torch.where(losses > -math.inf)[0][:3]


@pytest.mark.parametrize("loss", [Hinge(), MinedLoss(Hinge(), first_three)])
def test_loss_and_head_of_a_users_own(loss: BinaryLoss | MinedLoss, monkeypatch) -> None:
    class TestHead(FocalLossHead):
        pass

    monkeypatch.setitem(CLS_LOSS_REGISTRY._obj_map, "hinge", lambda cfg: loss)
    monkeypatch.setitem(DENSE_HEAD_REGISTRY._obj_map, "TestHead", TestHead)
    names = ("MODEL.RETINANET.CLS_LOSS", "hinge", "MODEL.RETINANET.HEAD_NAME", "TestHead")
    model = build_model(small_config(*names))
    assert type(model.head) is TestHead
    losses = model([random_image(64, 64, 3)])
    sum(losses.values()).backward()
    assert losses["loss_cls"].item() >= 0
    assert model.head.cls_score.weight.grad.isfinite().all()
