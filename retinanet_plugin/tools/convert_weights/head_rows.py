"""Reorders the output channels of the last two convolutions: anchors, and classes.

The anchors of a location are ordered by size, then ratio, here; in torchvision and mmdetection by
ratio, then size. Rows are a weight's or bias's first dimension, (A * outputs per anchor, ...).
"""

from collections.abc import Sequence

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

NEVER = -20.0  # bias of outputs that must never score: a sigmoid of 2e-9

_COCO = MetadataCatalog.get("coco_2017_val")
COCO_CLASSES: list[str] = _COCO.thing_classes
# The COCO id, 1 to 90, of each of the 80 classes: torchvision's output index.
COCO_IDS: list[int] = sorted(_COCO.thing_dataset_id_to_contiguous_id)
TORCHVISION_COCO = 91


def sizes_first(rows: Tensor, num_ratios: int, num_sizes: int) -> Tensor:
    """Reorders from ratio by ratio to size by size."""
    return rows.unflatten(0, (num_ratios, num_sizes, -1)).transpose(0, 1).flatten(0, 2)


def ratios_first(rows: Tensor, num_ratios: int, num_sizes: int) -> Tensor:
    """Reorders from size by size to ratio by ratio."""
    return rows.unflatten(0, (num_sizes, num_ratios, -1)).transpose(0, 1).flatten(0, 2)


def select_classes(rows: Tensor, num_anchors: int, indices: Sequence[int]) -> Tensor:
    """Selects some classes' rows of the class convolution: (A * K, ...) to (A * indices, ...)."""
    return rows.unflatten(0, (num_anchors, -1))[:, list(indices)].flatten(0, 1)


def scatter_classes(
    rows: Tensor, num_anchors: int, indices: Sequence[int], total: int, fill: float
) -> Tensor:
    """Puts K classes at ``indices`` among ``total``: (A * K, ...) to (A * total, ...)."""
    rows = rows.unflatten(0, (num_anchors, -1))
    out = torch.full((num_anchors, total, *rows.shape[2:]), fill, dtype=rows.dtype)
    out[:, list(indices)] = rows
    return out.flatten(0, 1)
