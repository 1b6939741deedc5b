"""A search for anchors that cover the boxes of a dataset better.

Shapes of boxes are clustered by k-means with 1 - IoU as the distance. The few lines are our own:
scikit-learn's k-means is Euclidean only, and libraries for any distance need Python calls or memory
for all pairs of boxes.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from ...modeling import RetinaNetAnchorGenerator
from .coverage import (
    Anchors,
    Coverage,
    best_iou_in_grid,
    measure,
)

_GOOD_COVERAGE = 0.99  # nothing is searched from this share on
_PRICE = 0.005  # what one more anchor per location costs in the score
_SCALES = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16)  # strides
_PER_OCTAVE = (1, 2, 3, 4)
_MOST_RATIOS = 5
_SAMPLE = 4000  # boxes
_FINALISTS = 5
_STARTS = 5

Value = tuple[np.ndarray, float]  # coverage at each threshold, and the score


@dataclass(frozen=True)
class AnchorKeys:
    """Settings of ``RetinaNetAnchorGenerator``, keys of ``MODEL.ANCHOR_GENERATOR``."""

    scale: float
    per_octave: int
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, cfg: CfgNode) -> "AnchorKeys | None":
        """Returns the anchor keys of a config.

        None unless its generator is RetinaNetAnchorGenerator with the same ratios on all levels.
        """
        keys = cfg.MODEL.ANCHOR_GENERATOR
        ratios = [tuple(r) for r in keys.ASPECT_RATIOS]
        if keys.NAME != RetinaNetAnchorGenerator.__name__ or len(set(ratios)) != 1:
            return None
        return cls(keys.ANCHOR_SCALE, keys.SCALES_PER_OCTAVE, ratios[0])

    @property
    def per_location(self) -> int:
        return self.per_octave * len(self.ratios)

    def anchors(self, like: Anchors) -> Anchors:
        """Returns anchors with these settings at the locations of others."""
        generator = RetinaNetAnchorGenerator(
            strides=like.strides,
            anchor_scale=self.scale,
            scales_per_octave=self.per_octave,
            aspect_ratios=self.ratios,
            offset=like.generator.offset,
        )
        return Anchors(generator, like.strides, like.divisor)

    def to_yaml(self) -> str:
        """Returns the settings as lines of a config."""
        return (
            "MODEL:\n  ANCHOR_GENERATOR:\n"
            f"    ANCHOR_SCALE: {float(self.scale)}\n"
            f"    SCALES_PER_OCTAVE: {self.per_octave}\n"
            f"    ASPECT_RATIOS: {[[float(r) for r in self.ratios]]}\n"
        )


@dataclass(frozen=True)
class Suggestion:
    """The settings of other anchors, and how these cover the same boxes."""

    keys: AnchorKeys
    coverage: Coverage


# ---------------------------------------------------------------- clusters


def iou_of_shapes(shapes: Tensor, others: Tensor) -> Tensor:
    """Returns the IoUs (M, k) of concentric boxes with widths and heights (M, 2) and (k, 2)."""
    inter = torch.minimum(shapes[:, None], others).prod(2)
    return inter / (shapes.prod(1)[:, None] + others.prod(1) - inter)


def cluster_shapes(shapes: Tensor, k: int) -> Tensor:
    """Clusters boxes by k-means with 1 - IoU as the distance.

    A center moves to the geometric mean of its boxes as long as the mean IoU of the boxes with
    their nearest centers grows. The best of a few random starts is returned.

    Args:
        shapes: (M, 2), width and height, above 0.

    Returns:
        at most k centers (k, 2), by ascending area; fewer if there are fewer distinct shapes.
    """
    shapes = shapes.double()
    runs = [_cluster(shapes, k, torch.Generator().manual_seed(seed)) for seed in range(_STARTS)]
    _, centers = max(runs, key=lambda run: run[0])
    return centers[centers.prod(1).argsort()]


def _cluster(shapes: Tensor, k: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """Runs k-means once; returns the mean IoU and the centers."""
    centers = shapes[torch.randint(len(shapes), (1,), generator=generator)]
    while len(centers) < k:  # distant shapes are more likely, as in k-means++
        distance = (1 - iou_of_shapes(shapes, centers).amax(1)).clamp_(min=0)
        if distance.max() < 1e-9:
            break
        centers = torch.cat((centers, shapes[torch.multinomial(distance, 1, generator=generator)]))
    best, best_centers = -1.0, centers
    while True:
        iou, nearest = iou_of_shapes(shapes, centers).max(1)
        if iou.mean() <= best:
            return best, best_centers
        best, best_centers = float(iou.mean()), centers
        counts = torch.bincount(nearest, minlength=len(centers))
        sums = torch.zeros_like(centers).index_add_(0, nearest, shapes.log())
        moved = (sums / counts.clamp(min=1)[:, None]).exp()
        centers = torch.where((counts > 0)[:, None], moved, centers)


# ---------------------------------------------------------------- search


def score(coverage: Coverage, per_location: int) -> float:
    """Returns the share of covered boxes plus the mean best IoU, both as means over classes.

    One more anchor per location has to gain half a percent of either.
    """
    gain = coverage.class_mean(coverage.positive) + coverage.class_mean_iou()
    return gain - _PRICE * per_location


def covers_enough(coverage: Coverage) -> bool:
    """Whether there is next to nothing to gain, for all boxes and in the mean over classes."""
    t = coverage.positive
    return min(coverage.share(t), coverage.class_mean(t)) >= _GOOD_COVERAGE


def suggest(present: Coverage, keys: AnchorKeys) -> Suggestion | None:
    """Searches for anchors with a higher :func:`score` that cover no less at any threshold.

    Candidates are sizes from 1 to 16 strides, 1 to 4 per level, and these ratios: the present ones,
    the paper's, and the centers of 1 to 5 clusters of the boxes' shapes. All are tried on a sample
    of boxes. The first of the best five that also holds for all boxes is returned.

    Args:
        present: coverage by the present anchors, which have the settings ``keys``.
    """
    if covers_enough(present):
        return None
    value = _rates(present), score(present, keys.per_location)
    for candidate in _finalists(present, keys):
        anchors = candidate.anchors(present.anchors)
        coverage = measure(
            present.data, anchors, present.scales, present.thresholds, present.positive
        )
        if _is_better((_rates(coverage), score(coverage, candidate.per_location)), value):
            return Suggestion(candidate, coverage)
    return None


def _is_better(other: Value, present: Value) -> bool:
    """Whether nothing is lost at any threshold, something is gained, and the score is higher."""
    gain = other[0] - present[0]
    return bool((gain >= 0).all() and gain.max() >= _PRICE and other[1] > present[1])


def _rates(coverage: Coverage) -> np.ndarray:
    """Returns the shares at each threshold, of all boxes and as means over classes."""
    return np.array([(coverage.share(t), coverage.class_mean(t)) for t in coverage.thresholds])


def _finalists(present: Coverage, keys: AnchorKeys) -> list[AnchorKeys]:
    """Returns the best candidates on a sample of boxes in which classes are equally frequent.

    All boxes of the sample are put into one image that is as large as the largest. Its anchors are
    those of the smaller images, continued beyond their edges.
    """
    weights, generator = torch.from_numpy(present.weights), torch.Generator().manual_seed(0)
    index = torch.multinomial(weights, _SAMPLE, replacement=True, generator=generator)
    sample = torch.from_numpy(present.boxes)[index]
    height, width = present.padded.max(axis=0).tolist()
    ratios = _ratio_candidates(sample[:, 2:] - sample[:, :2], keys)
    candidates = [AnchorKeys(*values) for values in product(_SCALES, _PER_OCTAVE, ratios)]

    def value(candidate: AnchorKeys) -> Value:
        grid = candidate.anchors(present.anchors).grid(height, width)
        iou = best_iou_in_grid(grid, sample).double()
        rates = np.array([float((iou >= t).double().mean()) for t in present.thresholds])
        covered = rates[present.thresholds.index(present.positive)]
        return rates, covered + float(iou.mean()) - _PRICE * candidate.per_location

    now = value(keys)
    values = {x: value(x) for x in tqdm(candidates, desc="searching", unit="candidate")}
    better = [candidate for candidate in candidates if _is_better(values[candidate], now)]
    return sorted(better, key=lambda candidate: values[candidate][1], reverse=True)[:_FINALISTS]


def _ratio_candidates(shapes: Tensor, keys: AnchorKeys) -> list[tuple[float, ...]]:
    unit = shapes / shapes.prod(1, keepdim=True).sqrt()
    candidates = {(1.0,), (0.5, 1.0, 2.0), keys.ratios}
    for k in range(1, _MOST_RATIOS + 1):
        width, height = cluster_shapes(unit, k).T
        candidates.add(tuple(sorted({_rounded(ratio) for ratio in (height / width).tolist()})))
    return sorted(candidates)


def _rounded(ratio: float) -> float:
    """Rounds to two digits, and to 1 if near: the IoU changes by a few hundredths at most."""
    return 1.0 if abs(math.log2(ratio)) < 0.05 else float(f"{ratio:.2g}")
