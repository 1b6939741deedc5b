"""How well anchors fit the boxes of a data set.

A box is covered if the IoU of its best anchor reaches the threshold of a positive (section 4.1 of
the paper). Boxes come from the annotations, at the sizes that training resizes pictures to, and
each picture is padded as it is alone in its batch; flips and crops are left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..data.dataset_boxes import DatasetBoxes, PictureScale
from ..errors import UserError
from ..modeling import AnchorAssigner, FocalRetinaNet, RetinaNetAnchorGenerator
from ..modeling.anchor_grid import AnchorGrid
from ..modeling.anchors import HostAnchors

COCO_SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, math.inf)}
_STEP = 0.5  # octaves a bin, of sizes and of ratios
_RATIOS = (-2.0, 2.0)  # octaves; the outermost bins hold what is beyond, too
_EMPTY = 1e-5  # pixels: detectron2 drops boxes of such a side

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Anchors:
    """The anchors of a model, for pictures of any size.

    Args:
        generator: maps features to a ``Boxes`` a level.
        strides: of the levels, in pixels.
        divisor: pictures are padded to multiples of it.
    """

    generator: nn.Module
    strides: tuple[int, ...]
    divisor: int

    @classmethod
    def of(cls, cfg: CfgNode) -> "Anchors":
        """Those that the config's model is trained with."""
        parts: Any = FocalRetinaNet.from_config(cfg)
        shapes = parts["backbone"].output_shape()
        strides = tuple(shapes[name].stride for name in parts["head_in_features"])
        divisor = max(parts["backbone"].size_divisibility, 1)
        return cls(parts["anchor_generator"], strides, divisor)

    def with_keys(self, keys: "AnchorKeys") -> "Anchors":
        """Others at the same places."""
        generator = RetinaNetAnchorGenerator(
            strides=self.strides,
            anchor_scale=keys.scale,
            scales_per_octave=keys.per_octave,
            aspect_ratios=keys.ratios,
            offset=self.generator.offset,
        )
        return Anchors(generator, self.strides, self.divisor)

    @cached_property
    def _on_host(self) -> HostAnchors:
        return HostAnchors(self.generator)

    def grid(self, height: int, width: int) -> AnchorGrid:
        """Those of a padded picture; a level's side is the picture's by its stride, rounded up."""
        blank = torch.zeros(())
        sides = [(-(-height // s), -(-width // s)) for s in self.strides]
        return self._on_host([blank.expand(1, 1, *side) for side in sides])

    @cached_property
    def shapes(self) -> list[Tensor]:
        """Width and height in pixels of the A anchors at a place, (A, 2) a level."""
        boxes = self.generator([torch.zeros(1, 1, 1, 1) for _ in self.strides])
        return [b.tensor[:, 2:].cpu() - b.tensor[:, :2].cpu() for b in boxes]

    @property
    def a_place(self) -> int:
        """Anchors at each place of the level that has most."""
        return max(map(len, self.shapes))


@dataclass(frozen=True)
class AnchorKeys:
    """What ``RetinaNetAnchorGenerator`` is told, under ``MODEL.ANCHOR_GENERATOR``."""

    scale: float
    per_octave: int
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, cfg: CfgNode) -> "AnchorKeys | None":
        """None where another generator is asked for, or ratios differ by level."""
        keys = cfg.MODEL.ANCHOR_GENERATOR
        ratios = [tuple(r) for r in keys.ASPECT_RATIOS]
        if keys.NAME != RetinaNetAnchorGenerator.__name__ or len(set(ratios)) != 1:
            return None
        return cls(keys.ANCHOR_SCALE, keys.SCALES_PER_OCTAVE, ratios[0])

    @property
    def a_place(self) -> int:
        return self.per_octave * len(self.ratios)

    def items(self) -> dict[str, str]:
        """Of each key its value, in YAML and on the command line."""
        values = {
            "ANCHOR_SCALE": f"{float(self.scale):g}" if self.scale % 1 else f"{self.scale:.1f}",
            "SCALES_PER_OCTAVE": str(self.per_octave),
            "ASPECT_RATIOS": f"[[{', '.join(f'{float(r)}' for r in self.ratios)}]]",
        }
        return {f"MODEL.ANCHOR_GENERATOR.{key}": value for key, value in values.items()}


@dataclass(frozen=True)
class Coverage:
    """The best anchor of each box, where a box counts once for each scale of its picture.

    Args:
        data: whose boxes they are.
        scales: of pictures.
        thresholds: ascending; ``positive`` is that from which an anchor is a positive.
        box, scale: (B,), indices into ``data`` and ``scales``, by scale.
        width, height: (B,) float32, of the box in pixels of the resized picture.
        iou: (B,) float32, with its best anchor.
    """

    data: DatasetBoxes
    scales: Sequence[PictureScale]
    thresholds: tuple[float, ...]
    positive: float
    box: np.ndarray
    scale: np.ndarray
    width: np.ndarray
    height: np.ndarray
    iou: np.ndarray

    @cached_property
    def num_classes(self) -> int:
        """That have boxes."""
        return len(np.unique(self.data.classes[self.box]))

    @cached_property
    def weights(self) -> np.ndarray:
        """With which a mean over boxes is the mean over classes, as AP is; their sum is 1."""
        classes = self.data.classes[self.box]
        counts = np.bincount(classes)
        return 1 / (self.num_classes * counts[classes])

    @cached_property
    def size(self) -> np.ndarray:
        """Square root of the area, in pixels of the resized picture."""
        return np.sqrt(self.width.astype(np.float64) * self.height)

    @cached_property
    def ratio(self) -> np.ndarray:
        """Height / width."""
        return self.height.astype(np.float64) / self.width

    def share(self, threshold: float) -> float:
        """Of all boxes, those covered at ``threshold``."""
        return float((self.iou >= np.float32(threshold)).mean())

    def class_mean(self, threshold: float) -> float:
        """The mean over classes of the share covered at ``threshold``, as AP is one."""
        covered = self.iou >= np.float32(threshold)
        return float(np.average(covered, weights=self.weights))

    def class_mean_iou(self) -> float:
        """The mean over classes of the mean IoU of boxes with their best anchors."""
        return float(np.average(self.iou, weights=self.weights))

    def groups(self, index: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Of the boxes of each group that has any: how many, how many covered, and how well.

        Args:
            index: (B,), the group of each box.
            names: of the groups.
        """
        counts = np.bincount(index, minlength=len(names))

        def mean(values: np.ndarray) -> np.ndarray:
            return np.bincount(index, values, len(names)) / np.maximum(counts, 1)

        covered = {t: mean(self.iou >= np.float32(t)) for t in self.thresholds}
        best = mean(self.iou)
        return [
            {
                "name": names[i],
                "boxes": int(counts[i]),
                "covered": {f"{t:g}": float(shares[i]) for t, shares in covered.items()},
                "mean_best_iou": float(best[i]),
            }
            for i in np.flatnonzero(counts).tolist()
        ]

    def all(self) -> dict[str, Any]:
        """The one group of all boxes."""
        (row,) = self.groups(np.zeros(len(self.iou), dtype=int), ["all"])
        return row

    def mean_of_classes(self) -> dict[str, Any]:
        """As a group, with the number of classes that have boxes in place of boxes."""
        return {
            "name": "mean over classes",
            "classes": self.num_classes,
            "covered": {f"{t:g}": self.class_mean(t) for t in self.thresholds},
            "mean_best_iou": self.class_mean_iou(),
        }

    def by_coco_size(self) -> list[dict[str, Any]]:
        """By area of the box in pixels of the picture as it is."""
        x1, y1, x2, y2 = self.data.boxes.T
        side = np.sqrt((x2 - x1) * (y2 - y1))[self.box]
        index = np.digitize(side, [low for low, _ in COCO_SIZES.values()][1:])
        return self.groups(index, list(COCO_SIZES))

    def by_size(self) -> list[dict[str, Any]]:
        """By square root of the area in pixels of the resized picture, in half octaves."""
        index, names = self._size_bins()
        return self.groups(index, names)

    def by_ratio(self) -> list[dict[str, Any]]:
        """By height / width, in half octaves."""
        index, names = self._ratio_bins()
        return self.groups(index, names)

    def by_class(self) -> list[dict[str, Any]]:
        return self.groups(self.data.classes[self.box], self.data.class_names)

    def by_scale(self) -> list[dict[str, Any]]:
        """By the size that pictures are resized to."""
        names = [str(s.short or "as they are") for s in self.scales]
        return self.groups(self.scale, names)

    def by_size_and_ratio(self) -> list[dict[str, Any]]:
        """Their bins together; a name is ``size, ratio``."""
        size, sizes = self._size_bins()
        ratio, ratios = self._ratio_bins()
        names = [f"{s}, {r}" for s, r in product(sizes, ratios)]
        return self.groups(size * len(ratios) + ratio, names)

    def _size_bins(self) -> tuple[np.ndarray, list[str]]:
        """Of each box its bin; names such as "16 to 23"."""
        bins = np.floor(np.log2(self.size) / _STEP).astype(int)
        edges = 2 ** (np.arange(bins.min(), bins.max() + 2) * _STEP)
        texts = [f"{x:.0f}" if x >= 4 else f"{x:.2g}" for x in edges]
        return bins - bins.min(), [f"{a} to {b}" for a, b in pairwise(texts)]

    def _ratio_bins(self) -> tuple[np.ndarray, list[str]]:
        """Of each box its bin; names such as "0.71"."""
        octaves = np.clip(np.log2(self.ratio), *_RATIOS)
        centres = np.arange(_RATIOS[0], _RATIOS[1] + _STEP, _STEP)
        return np.round((octaves - _RATIOS[0]) / _STEP).astype(int), [
            f"{2**centre:.2g}" for centre in centres
        ]

    def worst(self, most: int) -> list[dict[str, Any]]:
        """The boxes that no anchor covers, worst first, with where to find them."""
        index = np.flatnonzero(self.iou < np.float32(self.positive))
        index = index[np.argsort(self.iou[index], kind="stable")][:most]
        return [self._describe(i) for i in index.tolist()]

    def _describe(self, i: int) -> dict[str, Any]:
        box = int(self.box[i])
        picture = int(self.data.picture[box])
        x1, y1, x2, y2 = self.data.boxes[box].tolist()
        return {
            "file": self.data.files[picture],
            "image_id": self.data.image_ids[picture],
            "bbox": [round(x, 2) for x in (x1, y1, x2 - x1, y2 - y1)],
            "class": self.data.class_names[self.data.classes[box]],
            "short_side": self.scales[int(self.scale[i])].short,
            "resized_width": round(float(self.width[i]), 2),
            "resized_height": round(float(self.height[i]), 2),
            "best_iou": round(float(self.iou[i]), 4),
        }


def positive_threshold(cfg: CfgNode) -> float:
    """The lowest IoU at which an anchor is a positive.

    Raises:
        UserError: if ``MODEL.RETINANET.IOU_LABELS`` has no positive, or fits no assigner.
    """
    retinanet = cfg.MODEL.RETINANET
    AnchorAssigner(retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS)  # checks both lists
    labels = list(retinanet.IOU_LABELS[1:])
    if 1 not in labels:
        raise UserError(
            f"MODEL.RETINANET.IOU_LABELS: no positive in {list(retinanet.IOU_LABELS)}; "
            "the last label must be 1."
        )
    return float(retinanet.IOU_THRESHOLDS[labels.index(1)])


def measure(
    data: DatasetBoxes,
    anchors: Anchors,
    scales: Sequence[PictureScale],
    thresholds: Sequence[float] = (0.4, 0.5),
    positive: float | None = None,
    progress: Progress = lambda count: None,
) -> Coverage:
    """The best anchor of each box of each picture at each scale.

    Args:
        thresholds: ascending; positive: the one of them that counts, None: the last.
        progress: is told how many boxes have been done.
    """
    parts = []
    for number, scale in enumerate(scales):
        box, boxes, grids = resized_boxes(data, scale, anchors.divisor)
        iou = _best_iou(boxes, grids, anchors, progress)
        width, height = (boxes[:, 2:] - boxes[:, :2]).T.numpy()
        parts.append((box, np.full(len(box), number), width, height, iou.numpy()))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Coverage(
        data, scales, tuple(thresholds), thresholds[-1] if positive is None else positive, *columns
    )


def resized_boxes(
    data: DatasetBoxes, scale: PictureScale, divisor: int
) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """What detectron2's mapper makes of the boxes.

    Returns:
        which boxes are left, (M,); they, (M, 4), XYXY in resized pixels, float32; and height and
        width of the padded pictures that they are in, (M, 2).
    """
    sizes = scale.resized(data.picture_sizes)
    factors = (sizes / data.picture_sizes)[data.picture][:, ::-1]
    limits = sizes[data.picture][:, ::-1]
    boxes = data.boxes * np.tile(factors, 2)
    boxes = np.minimum(boxes.clip(min=0), np.tile(limits, 2))
    resized = torch.from_numpy(boxes.astype(np.float32))
    sides = resized[:, 2:] - resized[:, :2]
    kept = np.flatnonzero((sides > _EMPTY).all(dim=1).numpy())
    padded = -(-sizes // divisor) * divisor
    return kept, resized[torch.from_numpy(kept)], padded[data.picture[kept]]


def _best_iou(boxes: Tensor, grids: np.ndarray, anchors: Anchors, progress: Progress) -> Tensor:
    """(M,): the IoU of each box's best anchor; boxes of pictures of one shape go together."""
    best = torch.zeros(len(boxes))
    shapes, index = np.unique(grids, axis=0, return_inverse=True)
    order = np.argsort(index.reshape(-1), kind="stable")
    ends = np.bincount(index.reshape(-1)).cumsum()
    for (height, width), part in zip(shapes.tolist(), np.split(order, ends[:-1]), strict=True):
        rows = torch.from_numpy(part)
        best[rows] = best_in(anchors.grid(height, width), boxes[rows])
        progress(len(rows))
    return best


def best_in(grid: AnchorGrid, boxes: Tensor) -> Tensor:
    best = torch.zeros(len(boxes))
    for box, _, iou in grid.pairs(boxes, 1.0, True):
        best.scatter_reduce_(0, box, iou, "amax")
    return best
