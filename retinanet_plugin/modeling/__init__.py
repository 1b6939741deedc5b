"""The detector: meta-architecture, dense head, anchors, assigner, decoder."""

from .anchors import RetinaNetAnchorGenerator, TorchvisionAnchorGenerator
from .assigner import AnchorAssigner, SparseTargets
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
    "SparseTargets",
    "TorchvisionAnchorGenerator",
    "build_resnet_fpn_p6p7_backbone",
]
