"""The coverage of groups of boxes, as rows and as Markdown tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from ...utils import markdown_table
from .coverage import Coverage
from .search import AnchorKeys, Suggestion, covers_enough

_STEP = 0.5  # octaves per bin of sizes and ratios
_RATIOS = np.arange(-2, 2 + _STEP, _STEP)  # octaves; the outermost bins include what lies beyond
_NOTE = "Sizes are square roots of areas in pixels of the resized image."

Row = dict[str, Any]


def group_boxes(coverage: Coverage) -> dict[str, list[Row]]:
    """Groups boxes in several ways; returns the number and the coverage of each group."""
    height, width = coverage.height.astype(np.float64), coverage.width
    size = np.floor(np.log2(np.sqrt(height * width)) / _STEP).astype(int)
    edges = 2 ** (np.arange(size.min(), size.max() + 2) * _STEP)
    texts = [f"{x:.0f}" if x >= 4 else f"{x:.2g}" for x in edges]
    octaves = np.log2(height / width).clip(_RATIOS[0], _RATIOS[-1])
    bins: dict[str, tuple[np.ndarray, Sequence[str]]] = {
        "all": (np.zeros_like(size), ["all"]),
        "size": (size - size.min(), [f"{a} to {b}" for a, b in pairwise(texts)]),
        "height / width": (
            np.round((octaves - _RATIOS[0]) / _STEP).astype(int),
            [f"{2**x:.2g}" for x in _RATIOS],
        ),
        "class": (coverage.classes, coverage.data.class_names),
    }
    groups = {by: _rows(coverage, index, names) for by, (index, names) in bins.items()}
    if coverage.num_classes > 1:
        shares = {f"IoU >= {t:g}": coverage.class_mean(t) for t in coverage.thresholds}
        row = {"group": f"mean over {coverage.num_classes} classes", "boxes": len(coverage.iou)}
        groups["all"].append(row | shares | {"mean best IoU": coverage.class_mean_iou()})
    return groups


def _rows(coverage: Coverage, index: np.ndarray, names: Sequence[str]) -> list[Row]:
    counts = np.bincount(index, minlength=len(names))
    values = {f"IoU >= {t:g}": coverage.iou >= np.float32(t) for t in coverage.thresholds}
    values["mean best IoU"] = coverage.iou
    sums = {key: np.bincount(index, value, len(names)) for key, value in values.items()}
    return [
        {"group": names[i], "boxes": int(counts[i])}
        | {key: float(total[i] / counts[i]) for key, total in sums.items()}
        for i in np.flatnonzero(counts).tolist()
    ]


@dataclass(frozen=True)
class CoverageReport:
    """The measured coverage and the result of the search.

    Args:
        coverage: by the present anchors.
        keys: None if the search does not apply to the anchor generator.
    """

    coverage: Coverage
    keys: AnchorKeys | None
    suggestion: Suggestion | None

    @property
    def key(self) -> str:
        """The column of covered boxes."""
        return f"IoU >= {self.coverage.positive:g}"

    @cached_property
    def groups(self) -> dict[str, list[Row]]:
        """The rows of :func:`group_boxes`, with columns for the suggested anchors if any."""
        groups = group_boxes(self.coverage)
        if self.suggestion:
            others = group_boxes(self.suggestion.coverage)
            for by, rows in groups.items():
                for row, other in zip(rows, others[by], strict=True):
                    row |= {f"suggested: {k}": other[k] for k in (self.key, "mean best IoU")}
        return groups

    @property
    def verdict(self) -> str:
        """What to do, in a sentence."""
        present = describe(self.coverage)
        if self.suggestion:
            return (
                f"The present anchors, {self.coverage.anchors.per_location} per location, cover "
                f"{present}; the suggested ones, {self.suggestion.keys.per_location} per location, "
                f"cover {describe(self.suggestion.coverage)}."
            )
        if self.keys is None:
            advice = "suggestions need RetinaNetAnchorGenerator with one list of ASPECT_RATIOS"
        elif covers_enough(self.coverage):
            advice = "no need to change them"
        else:
            advice = "no better ones were found"
        return f"The present anchors cover {present}: {advice}."

    def to_markdown(self) -> str:
        """Returns the verdict, the tables, and the suggestion."""
        blocks = [self.verdict, _NOTE]
        blocks += [_table(by, rows) for by, rows in self.groups.items()]
        if self.suggestion:
            blocks += [
                "Suggested by coverage alone, which is not AP; the model has to be trained again:",
                f"```yaml\n{self.suggestion.keys.to_yaml()}```",
            ]
        return "\n\n".join(blocks) + "\n"


def describe(coverage: Coverage) -> str:
    """Returns a phrase such as "94.0% of the boxes at IoU 0.5"."""
    share, mean = coverage.share(coverage.positive), coverage.class_mean(coverage.positive)
    classes = f" ({percent(mean)} in the mean over classes)" if coverage.num_classes > 1 else ""
    return f"{percent(share)} of the boxes at IoU {coverage.positive:g}{classes}"


def percent(share: float) -> str:
    """Rounds down, so that 100% means all."""
    return f"{np.floor(share * 1000) / 10:.1f}%" if share < 1 else "100%"


def _table(by: str, rows: Sequence[Row]) -> str:
    keys = [key for key in rows[0] if key != "group"]
    cells = [[row["group"], *(_cell(key, row[key]) for key in keys)] for row in rows]
    return markdown_table([by, *keys], cells)


def _cell(key: str, value: float) -> str:
    if key == "boxes":
        return f"{value:,}"
    return percent(value) if "IoU >=" in key else f"{value:.3f}"
