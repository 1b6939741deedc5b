"""The detector: meta-architecture, dense head, anchors, assigner, decoder and backbone."""

from .anchors import RetinaNetAnchorGenerator, TorchvisionAnchorGenerator
from .assigner import AnchorAssigner
from .backbones import build_resnet_fpn_p6p7_backbone
from .cls_losses import CLS_LOSS_REGISTRY
from .decoder import DetectionDecoder
from .head import DENSE_HEAD_REGISTRY, FocalLossHead
from .meta_arch import FocalRetinaNet

__all__ = [
    "CLS_LOSS_REGISTRY",
    "DENSE_HEAD_REGISTRY",
    "AnchorAssigner",
    "DetectionDecoder",
    "FocalLossHead",
    "FocalRetinaNet",
    "RetinaNetAnchorGenerator",
    "TorchvisionAnchorGenerator",
    "build_resnet_fpn_p6p7_backbone",
]
