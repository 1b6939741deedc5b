"""The outputs of the last two convolutions in another order: of anchors, and of classes.

Here the anchors of a place run through the ratios of one size, then of the next; in torchvision and
mmdetection through the sizes of one ratio, then of the next.
"""

from collections.abc import Sequence

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

NEVER = -20.0  # bias of outputs that must not score: a sigmoid of 2e-9

_COCO = MetadataCatalog.get("coco_2017_val")
COCO_CLASSES: list[str] = _COCO.thing_classes
# Of each of the 80 classes the id in COCO's files, 1 to 90, which torchvision takes as its index.
COCO_IDS: list[int] = sorted(_COCO.thing_dataset_id_to_contiguous_id)
TORCHVISION_COCO = 91


def sizes_first(rows: Tensor, num_ratios: int, num_sizes: int) -> Tensor:
    """From ratio by ratio to size by size; rows are (ratios * sizes * any, ...)."""
    return rows.unflatten(0, (num_ratios, num_sizes, -1)).transpose(0, 1).flatten(0, 2)


def ratios_first(rows: Tensor, num_ratios: int, num_sizes: int) -> Tensor:
    """From size by size to ratio by ratio."""
    return rows.unflatten(0, (num_sizes, num_ratios, -1)).transpose(0, 1).flatten(0, 2)


def take_classes(rows: Tensor, num_anchors: int, chosen: Sequence[int]) -> Tensor:
    """Of the class convolution's rows (A * K, ...) those of some classes: (A * chosen, ...)."""
    return rows.unflatten(0, (num_anchors, -1))[:, list(chosen)].flatten(0, 1)


def spread_classes(
    rows: Tensor, num_anchors: int, places: Sequence[int], total: int, fill: float
) -> Tensor:
    """The rows of K classes at ``places`` among ``total``: (A * K, ...) to (A * total, ...)."""
    rows = rows.unflatten(0, (num_anchors, -1))
    out = torch.full((num_anchors, total, *rows.shape[2:]), fill, dtype=rows.dtype)
    out[:, list(places)] = rows
    return out.flatten(0, 1)
