"""Which anchors would fit a data set better: clusters of its boxes' shapes, and a search.

The clusters are k-means with 1 - IoU as distance, by our own few lines: scikit-learn's k-means is
Euclidean only, and libraries that take any distance call Python for each pair of boxes or want a
matrix of all pairs, which has 7e11 numbers for COCO.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ...evaluation.anchor_coverage import (
    AnchorKeys,
    Anchors,
    Coverage,
    best_in,
    measure,
    resized_boxes,
)

_GOOD_COVERAGE = 0.99  # from which on nothing is searched
_PRICE = 0.005  # of an anchor at each place, in the score
_SCALES = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16)  # strides
_PER_OCTAVE = (1, 2, 3, 4)
_MOST_RATIOS = 5
_SAMPLE = 4000  # boxes
_NOTABLE = 0.01  # of the boxes of a size, ratio or class
_FINALISTS = 5
_NUM_CLUSTERS, _STARTS = 6, 5


def iou_of_shapes(shapes: Tensor, others: Tensor) -> Tensor:
    """(M, k): the IoU of boxes (M, 2) and (k, 2), width and height, that share their centre."""
    inter = torch.minimum(shapes[:, None], others).prod(2)
    return inter / (shapes.prod(1)[:, None] + others.prod(1) - inter)


def cluster_shapes(shapes: Tensor, k: int) -> Tensor:
    """k-means with 1 - IoU as distance: (k, 2) centres of boxes' width and height, by size.

    A centre moves to the geometric mean of its boxes, which is where logarithms of sides have
    theirs, as long as the mean IoU of boxes with their nearest centre grows. The best of a few
    starts is taken.

    Args:
        shapes: (M, 2), above 0. Where they are of fewer than k kinds, there are fewer centres.
    """
    shapes = shapes.double()
    runs = [_cluster(shapes, k, torch.Generator().manual_seed(seed)) for seed in range(_STARTS)]
    _, centres = max(runs, key=lambda run: run[0])
    return centres[centres.prod(1).argsort()]


def _cluster(shapes: Tensor, k: int, chance: torch.Generator) -> tuple[float, Tensor]:
    """From one start: the mean IoU, and the centres."""
    centres = shapes[torch.randint(len(shapes), (1,), generator=chance)]
    while len(centres) < k:  # far ones are likelier, as in k-means++
        far = (1 - iou_of_shapes(shapes, centres).amax(1)).clamp_(min=0)
        if far.max() < 1e-9:
            break
        centres = torch.cat((centres, shapes[torch.multinomial(far, 1, generator=chance)]))
    best, kept = -1.0, centres
    while True:
        iou, nearest = iou_of_shapes(shapes, centres).max(1)
        if iou.mean() <= best:
            return best, kept
        best, kept = float(iou.mean()), centres
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, shapes.log())
        moved = (sums / counts.clamp(min=1)[:, None]).exp()
        centres = torch.where((counts > 0)[:, None], moved, centres)


def describe_clusters(found: Coverage) -> list[dict[str, float]]:
    """The shapes that the boxes have most, in resized pixels, and the share of boxes near each."""
    shapes = torch.from_numpy(np.stack((found.width, found.height), 1)).double()
    centres = cluster_shapes(shapes[_sample(found)], _NUM_CLUSTERS)
    counts = torch.zeros(len(centres), dtype=torch.int64)
    for piece in shapes.split(1 << 18):
        nearest = iou_of_shapes(piece, centres).argmax(1)
        counts += torch.bincount(nearest, minlength=len(centres))
    return [
        {
            "width": round(width, 1),
            "height": round(height, 1),
            "ratio": round(height / width, 2),
            "share": count / len(shapes),
        }
        for (width, height), count in zip(centres.tolist(), counts.tolist(), strict=True)
    ]


def _sample(found: Coverage) -> Tensor:
    """Indices of boxes, each class as often, with repetition."""
    weights = torch.from_numpy(found.weights)
    chance = torch.Generator().manual_seed(0)
    return torch.multinomial(weights, _SAMPLE, replacement=True, generator=chance)


@dataclass(frozen=True)
class Suggestion:
    """Other anchors, and what they cover of the same boxes."""

    keys: AnchorKeys
    anchors: Anchors
    coverage: Coverage

    def losses(self, present: Coverage) -> list[str]:
        """Sizes, ratios and classes of which it covers less by a hundredth or more, in words."""
        at = f"{present.positive:g}"
        kinds = {"size": Coverage.by_size, "ratio": Coverage.by_ratio, "class": Coverage.by_class}
        return [
            f"{kind} {now['name']} ({new['covered'][at]:.1%} instead of {now['covered'][at]:.1%} "
            f"of {now['boxes']:,})"
            for kind, group in kinds.items()
            for now, new in zip(group(present), group(self.coverage), strict=True)
            if new["covered"][at] <= now["covered"][at] - _NOTABLE
        ]


def score(found: Coverage, a_place: int) -> float:
    """What anchors are worth: boxes covered and mean best IoU, both means over classes, by price.

    An anchor more at each place has to earn half a percent of either.
    """
    return found.class_mean(found.positive) + found.class_mean_iou() - _PRICE * a_place


def covers_enough(found: Coverage) -> bool:
    """Whether hardly a box is left to be covered, in the mean over classes too."""
    return min(found.share(found.positive), found.class_mean(found.positive)) >= _GOOD_COVERAGE


def suggest(
    found: Coverage,
    anchors: Anchors,
    keys: AnchorKeys,
    progress: Callable[[float], object] = lambda share: None,
) -> Suggestion | None:
    """Anchors that cover more boxes, no fewer at any threshold, and have the highest :func:`score`.

    Searched are sizes from 1 to 16 strides, 1 to 4 a level, and ratios: those of the present and
    of the paper, and the centres of 1 to 5 clusters of the boxes' shapes, whose area is made one.
    All are tried on a sample of boxes. Of the best of them, the first that holds for all boxes is
    taken; None if there is none, or the present ones cover enough.

    Args:
        found: what the present ``anchors``, those of ``keys``, cover.
        progress: is told which share of the work each step was.
    """
    if covers_enough(found):
        return None
    present = _shares(found), score(found, keys.a_place)
    for other in _finalists(found, anchors, keys, lambda share: progress(share / 2)):
        candidate = anchors.with_keys(other)
        covered = measure(found.data, candidate, found.scales, found.thresholds, found.positive)
        progress(0.5 / _FINALISTS)
        if _is_better((_shares(covered), score(covered, other.a_place)), present):
            return Suggestion(other, candidate, covered)
    return None


def _is_better(other: tuple[np.ndarray, float], present: tuple[np.ndarray, float]) -> bool:
    """Whether no share (of a threshold) is lower, the score higher, and it is worth the change."""
    gain = other[0] - present[0]
    return bool((gain >= 0).all() and gain.max() >= _PRICE and other[1] > present[1])


def _shares(found: Coverage) -> np.ndarray:
    """Covered at each threshold, of all boxes and in the mean over classes."""
    return np.array([(found.share(t), found.class_mean(t)) for t in found.thresholds])


def _finalists(
    found: Coverage, anchors: Anchors, keys: AnchorKeys, progress: Callable[[float], object]
) -> list[AnchorKeys]:
    """The best on a sample, in which classes are as frequent, of those that are better there.

    All its boxes are put into one picture as large as any: its anchors are where those of the
    others are, only that they go on beyond their edges.
    """
    sample, height, width = _sampled_boxes(found, anchors)
    ratios = _ratio_candidates(sample[:, 2:] - sample[:, :2], keys)
    candidates = [AnchorKeys(*words) for words in product(_SCALES, _PER_OCTAVE, ratios)]
    results = []
    for candidate in [keys, *candidates]:
        iou = best_in(anchors.with_keys(candidate).grid(height, width), sample).double()
        shares = np.array([float((iou >= t).double().mean()) for t in found.thresholds])
        covered = shares[found.thresholds.index(found.positive)]
        results.append((shares, covered + float(iou.mean()) - _PRICE * candidate.a_place))
        progress(1 / (len(candidates) + 1))
    present, *others = results
    better = [i for i, other in enumerate(others) if _is_better(other, present)]
    better.sort(key=lambda i: others[i][1], reverse=True)
    return [candidates[i] for i in better[:_FINALISTS]]


def _sampled_boxes(found: Coverage, anchors: Anchors) -> tuple[Tensor, int, int]:
    """Boxes (n, 4), resized, and height and width of a picture as large as any."""
    index = _sample(found).numpy()
    boxes, height, width = torch.empty(len(index), 4), 0, 0
    for number, scale in enumerate(found.scales):
        kept, all_boxes, grids = resized_boxes(found.data, scale, anchors.divisor)
        rows = np.flatnonzero(found.scale[index] == number)
        place = np.searchsorted(kept, found.box[index[rows]])
        boxes[torch.from_numpy(rows)] = all_boxes[torch.from_numpy(place)]
        height, width = max(height, *grids[:, 0].tolist()), max(width, *grids[:, 1].tolist())
    return boxes, height, width


def _ratio_candidates(shapes: Tensor, keys: AnchorKeys) -> list[tuple[float, ...]]:
    unit = shapes / shapes.prod(1, keepdim=True).sqrt()
    found = {(1.0,), (0.5, 1.0, 2.0), keys.ratios}
    for k in range(1, _MOST_RATIOS + 1):
        width, height = cluster_shapes(unit, k).T
        found.add(tuple(sorted({_rounded(ratio) for ratio in (height / width).tolist()})))
    return sorted(found)


def _rounded(ratio: float) -> float:
    """To two digits, and to 1 where it is near: that changes an IoU by some hundredths at most."""
    return 1.0 if abs(math.log2(ratio)) < 0.05 else float(f"{ratio:.2g}")
