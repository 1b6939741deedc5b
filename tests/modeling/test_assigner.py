"""Sparse targets against detectron2's RetinaNet.label_anchors, which fills dense ones."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances

from retinanet_plugin import RetinaNetAnchorGenerator, UserError
from retinanet_plugin.modeling import AnchorAssigner

K = 7


def anchors_of(height: int, width: int) -> list[Boxes]:
    strides = [8, 16, 32, 64, 128]
    grids = [(-(-height // s), -(-width // s)) for s in strides]
    return RetinaNetAnchorGenerator(strides=strides)([torch.zeros(1, 1, *g) for g in grids])


def picture(height: int, width: int, count: int, reach: float) -> Instances:
    """Boxes from 1 pixel to larger than the picture, some beyond its border."""
    size = torch.tensor([width, height])
    extent = torch.exp(torch.rand(count, 2) * torch.log(torch.tensor(size.max() * 1.5))).clamp(
        min=1
    )
    centre = (torch.rand(count, 2) * (1 + 2 * reach) - reach) * size
    boxes = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)
    if count > 3:
        boxes[1] = boxes[0]  # a tie between two boxes
    return Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.randint(K, (count,)))


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize(
    "thresholds, labels", [((0.4, 0.5), (0, -1, 1)), ((0.5,), (0, 1)), ((0.2, 0.7), (-1, 0, 1))]
)
def test_same_labels_as_detectron2(thresholds, labels, low_quality: bool) -> None:
    assigner = AnchorAssigner(thresholds, labels, low_quality)
    reference = SimpleNamespace(
        anchor_matcher=Matcher(list(thresholds), list(labels), low_quality), num_classes=K
    )
    for trial in range(12):
        torch.manual_seed(trial)
        height, width = torch.randint(40, 300, (2,)).tolist()
        anchors = anchors_of(height, width)
        batch = [picture(height, width, n, reach=0.1) for n in (0, 1, 5, 40)]
        expected_labels, expected_boxes = RetinaNet.label_anchors(reference, anchors, batch)
        targets = assigner(Boxes.cat(anchors).tensor, batch)
        labels_found = torch.full((len(batch), len(expected_labels[0])), K)
        labels_found[targets.image, targets.anchor] = targets.gt_class
        labels_found[targets.ignored_image, targets.ignored_anchor] = -1
        assert torch.equal(labels_found, torch.stack(expected_labels))
        boxes = torch.stack(expected_boxes)[targets.image, targets.anchor]
        assert torch.equal(targets.gt_box, boxes)
        assert torch.equal(targets.anchor_box, Boxes.cat(anchors).tensor[targets.anchor])


def test_no_box_at_all() -> None:
    targets = AnchorAssigner()(Boxes.cat(anchors_of(64, 64)).tensor, [picture(64, 64, 0, 0)] * 2)
    assert targets.num_positives == 0 and len(targets.ignored_anchor) == 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (([0.5, 0.4], [0, -1, 1]), "IOU_THRESHOLDS"),
        (([], [0]), "IOU_THRESHOLDS"),
        (([0.4, 0.5], [0, 1]), "IOU_LABELS.*3 labels"),
        (([0.4, 0.5], [0, 2, 1]), "IOU_LABELS"),
    ],
)
def test_impossible_rules(arguments, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        AnchorAssigner(*arguments)
