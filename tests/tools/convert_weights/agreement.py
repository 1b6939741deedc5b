"""Shared by the tests of conversion: models spread out as trained ones, and their detections."""

from pathlib import Path

import torch
from detectron2.structures import Instances
from retinanet_plugin.tools.convert_weights.command.model import NoRandomValues
from torch import Tensor, nn

from retinanet_plugin import get_config
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.modeling import FocalRetinaNet

SIZES = [(96, 128), (128, 100), (101, 97)]
PICTURES = [torch.rand(3, h, w, generator=torch.Generator().manual_seed(h)) for h, w in SIZES]

Found = tuple[Tensor, Tensor, Tensor]  # boxes, scores, classes


@torch.no_grad()
def spread(
    model: nn.Module,
    cls_score: nn.Conv2d,
    bbox_pred: nn.Conv2d,
    picture: Tensor,
    mean: float = -5.0,
) -> None:
    """Random norms' statistics, and outputs of a trained model's size on a picture.

    Args:
        model: maps a batch of pictures to anything, through the two convolutions.
        mean: of the logits, whose deviation is about 1.
    """
    for module in model.modules():
        if "BatchNorm" in type(module).__name__:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1)
            module.bias.normal_(std=0.1)
        elif isinstance(module, nn.GroupNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
        elif isinstance(module, nn.Conv2d):  # that nothing fades on the way
            module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.normal_(std=0.1)
    for layer, size in ((cls_score, 1.0), (bbox_pred, 0.3)):
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        model(picture)
        hook.remove()
        layer.weight *= size / torch.cat([x.flatten() for x in seen]).std()
        layer.bias.normal_(std=size)
    cls_score.bias += mean  # spread as well, so that levels of faint features have detections


def ours(folder: Path) -> FocalRetinaNet:
    """The model that a conversion has written."""
    cfg = get_config(folder / "config.yaml", ["MODEL.DEVICE", "cpu"])
    with NoRandomValues():
        model = FocalRetinaNet(cfg).eval()
    SafeCheckpointer(model, complete=True).load(str(folder / "model_final.pth"))
    return model


@torch.no_grad()
def detect(model: nn.Module, picture: Tensor, channels: str = "RGB") -> Found:
    """Of a detector of detectron2's interface; the picture is RGB from 0 to 1."""
    image = picture * 255 if channels == "RGB" else picture.flip(0) * 255
    found: Instances = model([{"image": image}])[0]["instances"]
    return found.pred_boxes.tensor, found.scores, found.pred_classes


@torch.no_grad()
def detect_torchvision(model: nn.Module, picture: Tensor) -> Found:
    """Of torchvision's, which is kept from resizing; without boxes that clipping has emptied."""
    model.transform.min_size = (min(picture.shape[1:]),)
    model.transform.max_size = max(picture.shape[1:])
    (found,) = model([picture])
    boxes = found["boxes"]
    there = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[there], found["scores"][there], found["labels"][there]


def assert_equal(found: Found, expected: Found, at_least: int = 20) -> None:
    """The same detections: boxes within 0.05 pixel, scores within 1e-4, in any order."""
    boxes, scores, classes = found
    assert len(expected[0]) >= at_least
    assert len(boxes) == len(expected[0])
    free = torch.ones(len(boxes), dtype=torch.bool)
    for box, score, kind in zip(*expected, strict=True):
        near = free & (classes == kind) & ((scores - score).abs() < 1e-4)
        near &= ((boxes - box).abs() < 0.05).all(1)
        assert near.any(), (box, score, kind)
        free[near.nonzero()[0]] = False
