"""The detector as a whole, after detectron2's own unit tests for its RetinaNet."""

import copy
import math

import pytest
import torch
from conftest import random_image, small_config, spread_logits
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import nn

from retinanet_plugin import (
    FocalLossHead,
    FocalRetinaNet,
    RetinaNetAnchorGenerator,
    UserError,
)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinite_and_nan_outputs(value: float) -> None:
    model = build_model(small_config()).eval()
    images = ImageList(torch.full((1, 3, 512, 512), value), [(510, 510)])
    features = [torch.full((1, 32, 64 // 2**i, 64 // 2**i), value) for i in range(5)]
    with torch.no_grad():
        predictions = [[torch.full_like(x, value) for x in p] for p in model.head(features)]
        (detections,) = model.forward_inference(images, features, predictions)
    assert not len(detections) or not detections.pred_boxes.tensor.isfinite().any()


class TinyBackbone(Backbone):
    """Two levels of random features, so that a detector needs no detectron2 config."""

    def __init__(self) -> None:
        super().__init__()
        self.conv8 = nn.Conv2d(3, 8, 8, stride=8)
        self.conv16 = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"fine": self.conv8(x), "coarse": self.conv16(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"coarse": ShapeSpec(channels=8, stride=16), "fine": ShapeSpec(channels=8, stride=8)}

    @property
    def size_divisibility(self) -> int:
        return 16


def tiny_detector(**arguments: object) -> FocalRetinaNet:
    return FocalRetinaNet(
        backbone=TinyBackbone(),
        head=FocalLossHead(
            input_shape=[ShapeSpec(channels=8, stride=s) for s in (8, 16)],
            num_classes=7,
            num_anchors=9,
            conv_dims=[8],
            class_agnostic_bbox_reg=bool(arguments.pop("class_agnostic", True)),
        ),
        anchor_generator=RetinaNetAnchorGenerator(strides=[8, 16], anchor_scale=2.0),
        **arguments,
    )


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_without_a_config(class_agnostic: bool) -> None:
    model = tiny_detector(class_agnostic=class_agnostic)
    assert model.head_in_features == ["fine", "coarse"]
    losses = model([random_image(64, 96, 4)])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.decoder.score_thresh = 0.0
    with torch.no_grad():
        (detections,) = model.eval()([random_image(64, 96, 0)])
    assert len(detections["instances"]) == 100


def test_class_specific_boxes() -> None:
    """They move with the outputs of their own class only."""
    model = tiny_detector(class_agnostic=False, test_score_thresh=0.0, test_nms_thresh=1.0)
    spread_logits(model)
    model.eval()
    images = model.preprocess_image([random_image(64, 96, 0)])
    with torch.no_grad():
        features = [model.backbone(images.tensor)[f] for f in model.head_in_features]
        (before,) = model.forward_inference(images, features, model.head(features))
        model.head.bbox_pred.bias.view(9, 7, 4)[:, 3, 0] += 0.5
        (after,) = model.forward_inference(images, features, model.head(features))
    moved = (after.pred_boxes.tensor != before.pred_boxes.tensor).any(dim=1)
    assert torch.equal(after.pred_classes, before.pred_classes)
    assert torch.equal(moved, before.pred_classes == 3)
    assert 0 < moved.sum() < len(moved)


def test_normalizer_is_the_number_of_assigned_anchors() -> None:
    model = tiny_detector()
    images = [random_image(64, 96, 4), random_image(64, 64, 2)]
    with EventStorage() as storage:
        losses = model(copy.deepcopy(images))
    positives = storage.latest()["num_pos_anchors"][0] * 2
    tensor = model.preprocess_image(images).tensor
    features = [model.backbone(tensor)[f] for f in model.head_in_features]
    targets = model.label_anchors(features, [p["instances"] for p in images])
    assert positives == targets.num_positives == model.targets.num_positives > 6
    assert model.normalizer == positives
    sums = model.head.losses(model.head(features), targets, None)
    for name, value in losses.items():
        torch.testing.assert_close(value, sums[name] / positives)


@pytest.mark.parametrize(
    "arguments", [{}, {"class_agnostic": False}, {"loss_normalizer": "ema"}], ids=str
)
def test_training_does_not_wait_for_the_device(arguments: dict[str, object]) -> None:
    """The meta device has no values: reading one there, which waits on a GPU, is an error."""
    model = tiny_detector(**arguments).to("meta")
    with EventStorage() as storage:
        losses = model([random_image(64, 96, 4), random_image(64, 64, 0)])
    assert storage.latest()["num_pos_anchors"][0] > 0
    sum(losses.values()).backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_any_anchor_generator() -> None:
    """detectron2's gives the same losses with the same sizes, also if it is replaced later."""
    model = tiny_detector()
    image = random_image(64, 96, 4)
    expected = model([copy.deepcopy(image)])
    sizes = [[2.0 * stride * 2 ** (i / 3) for i in range(3)] for stride in (8, 16)]
    for scale, same in ((1.5, False), (1.0, True)):
        model.anchor_generator = DefaultAnchorGenerator(
            sizes=[[scale * size for size in level] for level in sizes],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=[8, 16],
            offset=0.0,
        )
        losses = model([copy.deepcopy(image)])
        assert torch.equal(losses["loss_box_reg"], expected["loss_box_reg"]) == same


def test_checkpoints_keep_the_moving_average() -> None:
    model = tiny_detector(loss_normalizer="ema")
    for _ in range(3):
        model([random_image(64, 96, 5)])
    saved = model.state_dict()
    assert saved["loss_normalizer"].item() != 100
    assert "loss_normalizer" not in tiny_detector().state_dict()
    other = tiny_detector(loss_normalizer="ema")
    other.load_state_dict(saved)
    assert other.loss_normalizer == model.loss_normalizer


def test_class_beyond_the_last() -> None:
    model = build_model(small_config())
    image = random_image(64, 64, 4)
    image["instances"].gt_classes[2] = 7
    with EventStorage(), pytest.raises(UserError, match=r"NUM_CLASSES: 7, .* class 7;"):
        model([image])


@pytest.mark.parametrize(
    "overrides, named",
    [
        (("LOSS_NORMALIZER", "mean"), "LOSS_NORMALIZER: "),
        (("IN_FEATURES", ["p3", "p9"]), "IN_FEATURES: "),
        (("CLS_LOSS", "focl"), "CLS_LOSS: .*focl"),
        (("HEAD_NAME", "Nothing"), "HEAD_NAME: .*Nothing"),
        (("BBOX_REG_LOSS_TYPE", "l2"), "BBOX_REG_LOSS_TYPE: .*l2"),
        (("NUM_CLASSES", 0), "NUM_CLASSES: "),
        (("NUM_CONVS", 0), "NUM_CONVS: "),
        (("PRIOR_PROB", 1.0), "PRIOR_PROB: "),
        (("FOCAL_LOSS_GAMMA", -1.0), " focal: gamma"),
        (("CLS_LOSS", "balanced_cross_entropy", "FOCAL_LOSS_ALPHA", 1.5), "entropy: alpha"),
        (("CLS_LOSS", "ohem", "OHEM.BATCH_SIZE", 0), "OHEM.BATCH_SIZE: "),
    ],
)
def test_impossible_values_name_their_key(overrides: tuple, named: str) -> None:
    cfg = small_config()
    cfg.MODEL.RETINANET.merge_from_list(list(overrides))
    with pytest.raises(UserError, match=rf"MODEL\.RETINANET.*{named}"):
        build_model(cfg)
