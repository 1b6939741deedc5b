"""Losses as pure functions on tensors: they know torch, and neither a config nor detectron2.

Each classification loss is a :class:`BinaryLoss`: one logit against "is this class" or "is
not". :func:`dense_class_loss` sums it over all anchors and classes from sparse targets; a
:class:`SelectingLoss` chooses among the anchors.
"""

from .binary import BinaryLoss
from .boxes import BOX_LOSSES, box_regression_loss, encode_boxes
from .cross_entropy import CrossEntropyLoss
from .dense import dense_class_loss, offsets_of
from .focal import FocalLoss
from .focal_star import FocalStarLoss
from .mined import SelectingLoss
from .ohem import OhemLoss
from .targets import AnchorBoxes, ClassLoss, ClassTargets

__all__ = [
    "BOX_LOSSES",
    "AnchorBoxes",
    "BinaryLoss",
    "ClassLoss",
    "ClassTargets",
    "CrossEntropyLoss",
    "FocalLoss",
    "FocalStarLoss",
    "OhemLoss",
    "SelectingLoss",
    "box_regression_loss",
    "dense_class_loss",
    "encode_boxes",
    "offsets_of",
]
