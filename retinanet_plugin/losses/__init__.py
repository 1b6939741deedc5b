"""Losses as functions of tensors; they import torch and torchvision.ops only.

A :class:`BinaryLoss` scores one logit against "its class is present" or "is absent". A dense
detector trains on millions of them with a :class:`ClassLoss`: :class:`DenseLoss` sums a binary loss
over all anchors, :class:`MinedLoss` averages it over the anchors that a function chooses.
"""

from .binary import BinaryLoss
from .boxes import BOX_LOSSES, box_regression_loss, encode_boxes
from .class_loss import ClassLoss
from .dense import DenseLoss, dense_class_loss
from .focal import CrossEntropyLoss, FocalLoss, FocalStarLoss
from .layout import offsets_of
from .mined import MinedLoss
from .ohem import HardExamples
from .targets import AnchorBoxes, SparseTargets

__all__ = [
    "BOX_LOSSES",
    "AnchorBoxes",
    "BinaryLoss",
    "ClassLoss",
    "CrossEntropyLoss",
    "DenseLoss",
    "FocalLoss",
    "FocalStarLoss",
    "HardExamples",
    "MinedLoss",
    "SparseTargets",
    "box_regression_loss",
    "dense_class_loss",
    "encode_boxes",
    "offsets_of",
]
