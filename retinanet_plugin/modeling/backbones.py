"""ResNet-FPN with a choice of how its two coarsest levels are made, as other frameworks differ."""

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7, build_retinanet_resnet_fpn_backbone
from torch import Tensor

from .registry import register_once


class P6P7(LastLevelP6P7):
    """Makes P6 and P7 by convolutions of stride 2.

    Args:
        in_channels: channels of the level that P6 is made from.
        out_channels: channels of P6 and P7.
        in_feature: name of the level that P6 is made from.
        relu: apply a ReLU between P6 and the convolution of P7.
    """

    def __init__(
        self, in_channels: int, out_channels: int, in_feature: str = "res5", relu: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, in_feature)
        self.relu = relu

    def forward(self, level: Tensor) -> list[Tensor]:
        p6 = self.p6(level)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


def build_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds detectron2's RetinaNet backbone, with MODEL.FPN.P6_INPUT and MODEL.FPN.P7_RELU."""
    backbone = build_retinanet_resnet_fpn_backbone(cfg, input_shape)
    fpn = cfg.MODEL.FPN
    shapes = {**backbone.bottom_up.output_shape(), **backbone.output_shape()}
    in_channels = shapes[fpn.P6_INPUT].channels
    backbone.top_block = P6P7(in_channels, fpn.OUT_CHANNELS, fpn.P6_INPUT, fpn.P7_RELU)
    return backbone


register_once(BACKBONE_REGISTRY, build_resnet_fpn_p6p7_backbone)
