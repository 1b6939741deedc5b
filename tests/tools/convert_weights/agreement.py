"""Shared by the tests of conversion: models that behave as trained ones, and their detections."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from retinanet_plugin import get_config
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.modeling import FocalRetinaNet
from retinanet_plugin.tools.convert_weights.model import NoRandomValues

SIZES = [(96, 128), (128, 100), (101, 97)]
IMAGES = [torch.rand(3, h, w, generator=torch.Generator().manual_seed(h)) for h, w in SIZES]

Detections = tuple[Tensor, Tensor, Tensor]  # boxes, scores, classes


class Outputs(nn.Module):
    """The head's outputs for a batch of images, of a detector of detectron2 or torchvision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> object:
        levels = self.model.backbone(images)
        names = getattr(self.model, "head_in_features", levels)
        return self.model.head([levels[name] for name in names])


@torch.no_grad()
def imitate_training(
    model: nn.Module,
    cls_score: nn.Conv2d,
    bbox_pred: nn.Conv2d,
    images: Tensor,
    mean: float = -5.0,
) -> None:
    """Sets random statistics of norms, and scales outputs to those of a trained model.

    Args:
        model: maps images to anything, through the two convolutions.
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
        elif isinstance(module, nn.Conv2d):  # features keep their size from layer to layer
            module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.normal_(std=0.1)
    for layer, size in ((cls_score, 1.0), (bbox_pred, 0.3)):
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        model(images)
        hook.remove()
        layer.weight *= size / torch.cat([x.flatten() for x in seen]).std()
        layer.bias.normal_(std=size)
    cls_score.bias += mean  # the biases vary too, so that every level has detections


def imitate_training_of(model: nn.Module) -> nn.Module:
    """Does it to a detector with detectron2's interface, and returns it."""
    images = model.eval().preprocess_image([{"image": IMAGES[0] * 255}]).tensor
    imitate_training(Outputs(model), model.head.cls_score, model.head.bbox_pred, images)
    return model


def save(cfg: CfgNode, folder: Path, model: nn.Module, **others: object) -> Path:
    """What training leaves behind."""
    torch.save({"model": model.state_dict(), **others}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model.pth"


def converted(folder: Path) -> FocalRetinaNet:
    """The model that a conversion has written."""
    cfg = get_config(folder / "config.yaml", ["MODEL.DEVICE", "cpu"])
    with NoRandomValues():
        model = FocalRetinaNet(cfg).eval()
    SafeCheckpointer(model, complete=True).load(str(folder / "model_final.pth"))
    return model


@torch.no_grad()
def detect(model: nn.Module, image: Tensor, channels: str = "RGB") -> Detections:
    """By a detector with detectron2's interface; the image is RGB from 0 to 1."""
    image = image * 255 if channels == "RGB" else image.flip(0) * 255
    instances: Instances = model([{"image": image}])[0]["instances"]
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes


@torch.no_grad()
def detect_torchvision(model: nn.Module, image: Tensor) -> Detections:
    """By torchvision's, which must not resize; without boxes that clipping has emptied."""
    model.transform.min_size = (min(image.shape[1:]),)
    model.transform.max_size = max(image.shape[1:])
    (detections,) = model([image])
    boxes = detections["boxes"]
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[keep], detections["scores"][keep], detections["labels"][keep]


def assert_equal(actual: Detections, expected: Detections, minimum: int = 20) -> None:
    """The same detections: boxes within 0.05 pixels, scores within 1e-4, in any order."""
    boxes, scores, classes = actual
    assert len(expected[0]) >= minimum
    assert len(boxes) == len(expected[0])
    free = torch.ones(len(boxes), dtype=torch.bool)
    for box, score, class_id in zip(*expected, strict=True):
        near = free & (classes == class_id) & ((scores - score).abs() < 1e-4)
        near &= ((boxes - box).abs() < 0.05).all(1)
        assert near.any(), (box, score, class_id)
        free[near.nonzero()[0]] = False
