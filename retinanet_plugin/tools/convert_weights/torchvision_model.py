"""Builds torchvision's RetinaNet from model.json, with the weights in model.pth.

    python model.py street.jpg          # prints label, score and box of each detection

    from model import build             # in Python
    model = build()                     # a torchvision.models.detection.RetinaNet in eval mode
    (detections,) = model([image])      # RGB, (3, H, W), from 0 to 1

Needs only torch and torchvision.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

NORMS: dict[str, Any] = {
    "": None,
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": partial(nn.GroupNorm, 32),
}


class Anchors(AnchorGenerator):
    """torchvision's anchors, but not rounded, and spaced by exactly the stride of each level.

    Args:
        cells: per level, the anchors (A, 4) of the first location.
        strides: per level, in pixels.
    """

    def __init__(self, cells: list[list[list[float]]], strides: list[int]) -> None:
        super().__init__(tuple((1,) * len(cell) for cell in cells), ((1.0,),) * len(cells))
        self.cell_anchors = [torch.tensor(cell) for cell in cells]
        self.level_strides = strides

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        boxes: list[Tensor] = super().grid_anchors(grid_sizes, [[s, s] for s in self.level_strides])
        return boxes


def assemble(settings: dict[str, Any]) -> RetinaNet:
    """Builds the model with random weights."""
    body = get_model(
        settings["backbone"],
        weights=None,
        groups=settings["groups"],
        width_per_group=settings["width_per_group"],
        norm_layer=NORMS[settings["backbone_norm"]],
    )
    if settings["stride_in_1x1"]:
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    channels, out = body.inplanes, settings["out_channels"]
    top = LastLevelP6P7(out if settings["p6_from_p5"] else channels, out)
    top.use_P5 = settings["p6_from_p5"]
    backbone = BackboneWithFPN(
        body,
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        [channels // 4, channels // 2, channels],
        out,
        extra_blocks=top,
        norm_layer=NORMS[settings["fpn_norm"]],
    )
    anchors = settings["anchors"]
    if anchors["rounded"]:
        generator = AnchorGenerator(anchors["sizes"], anchors["ratios"])
    else:
        generator = Anchors(anchors["cells"], anchors["strides"])
    norm = NORMS[settings["head_norm"]]
    num_anchors = generator.num_anchors_per_location()[0]
    head = RetinaNetHead(out, num_anchors, settings["num_classes"])
    for subnet in (head.classification_head, head.regression_head):
        convs = [
            Conv2dNormActivation(out, out, norm_layer=norm, bias=settings["head_bias"])
            for _ in range(settings["num_convs"])
        ]
        subnet.conv = nn.Sequential(*convs)
    model = RetinaNet(
        backbone,
        settings["num_classes"],
        anchor_generator=generator,
        head=head,
        **settings["options"],
    )
    model.box_coder = head.regression_head.box_coder = BoxCoder(settings["box_weights"])
    return model


def build(folder: str | Path = Path(__file__).parent) -> RetinaNet:
    """Builds the model from the model.json and model.pth in a folder, in eval mode."""
    folder = Path(folder)
    model = assemble(json.loads((folder / "model.json").read_text(encoding="utf-8")))
    weights = torch.load(folder / "model.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights, strict=True)
    return model.eval()


if __name__ == "__main__":
    from torchvision.io import ImageReadMode, decode_image

    image = decode_image(sys.argv[1], ImageReadMode.RGB) / 255
    names = json.loads(Path(__file__).with_name("model.json").read_text(encoding="utf-8"))["labels"]
    with torch.no_grad():
        (detections,) = build()([image])
    columns = (detections[key] for key in ("labels", "scores", "boxes"))
    for label, score, box in zip(*columns, strict=True):
        print(names.get(str(label.item()), label.item()), f"{score:.3f}", box.tolist())
