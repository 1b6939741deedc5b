"""Losses as pure functions on tensors: they know torch, and neither a config nor detectron2.

Each classification loss is a :class:`BinaryLoss`: one logit against "is this class" or "is
not". :func:`dense_class_loss` sums it over all anchors and classes from sparse targets.
"""

from .binary import BinaryLoss
from .boxes import BOX_LOSSES, box_regression_loss, encode_boxes
from .cross_entropy import CrossEntropyLoss
from .dense import dense_class_loss, offsets_of
from .focal import FocalLoss
from .focal_star import FocalStarLoss

__all__ = [
    "BOX_LOSSES",
    "BinaryLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "FocalStarLoss",
    "box_regression_loss",
    "dense_class_loss",
    "encode_boxes",
    "offsets_of",
]
