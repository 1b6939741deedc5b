"""The coverage of groups of boxes, as rows for JSON and for Markdown tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from ...evaluation.anchor_coverage import Anchors, Coverage
from ...utils import markdown_table, shorten
from .search import AnchorKeys, Suggestion, covers_enough

MOST_CLASSES = 20  # rows of a table, bars of a chart
_MOST_WORST, _MOST_LOSSES = 10, 5
_COCO_EDGES = (32, 96)  # square roots of the areas between COCO's small, medium and large
_STEP = 0.5  # octaves per bin of sizes and ratios
_RATIOS = np.arange(-2, 2 + _STEP, _STEP)  # octaves; the outermost bins include what lies beyond
_NOTABLE_LOSS = 0.01  # of the boxes of a group
_NOTE = (
    "Sizes are square roots of areas in pixels of the resized image; COCO's sizes are those of the "
    "original image."
)

Row = dict[str, Any]


def group_boxes(coverage: Coverage) -> dict[str, list[Row]]:
    """Groups boxes in several ways; returns the number and the coverage of each group."""
    x1, y1, x2, y2 = coverage.data.boxes[coverage.box].T
    height, width = coverage.height.astype(np.float64), coverage.width
    size = np.floor(np.log2(np.sqrt(height * width)) / _STEP).astype(int)
    edges = 2 ** (np.arange(size.min(), size.max() + 2) * _STEP)
    texts = [f"{x:.0f}" if x >= 4 else f"{x:.2g}" for x in edges]
    octaves = np.log2(height / width).clip(_RATIOS[0], _RATIOS[-1])
    bins: dict[str, tuple[np.ndarray, Sequence[str]]] = {
        "all": (np.zeros_like(size), ["all"]),
        "COCO size": (
            np.digitize(np.sqrt((x2 - x1) * (y2 - y1)), _COCO_EDGES),
            ["small", "medium", "large"],
        ),
        "size": (size - size.min(), [f"{a} to {b}" for a, b in pairwise(texts)]),
        "height / width": (
            np.round((octaves - _RATIOS[0]) / _STEP).astype(int),
            [f"{2**x:.2g}" for x in _RATIOS],
        ),
        "class": (coverage.classes, coverage.data.class_names),
        "short side": (coverage.scale, [str(s.short or "original") for s in coverage.scales]),
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


def worst_boxes(coverage: Coverage) -> list[Row]:
    """Returns the boxes that no anchor covers, worst first, with where to find them."""
    index = np.flatnonzero(coverage.iou < np.float32(coverage.positive))
    index = index[np.argsort(coverage.iou[index], kind="stable")][:_MOST_WORST]
    data, rows = coverage.data, []
    for i, box in zip(index.tolist(), coverage.box[index].tolist(), strict=True):
        x1, y1, x2, y2 = data.boxes[box].tolist()
        rows.append(
            {
                "worst boxes": data.files[data.image[box]],
                "image id": data.image_ids[data.image[box]],
                "class": data.class_names[data.classes[box]],
                "x, y, width, height": ", ".join(f"{x:.6g}" for x in (x1, y1, x2 - x1, y2 - y1)),
                "resized to": f"{coverage.width[i]:.4g} x {coverage.height[i]:.4g}",
                "best IoU": round(float(coverage.iou[i]), 4),
            }
        )
    return rows


@dataclass(frozen=True)
class Findings:
    """The measured coverage and the result of the search.

    Args:
        coverage: by the present ``anchors``.
        keys: None if the search does not apply to the anchor generator.
        clusters: see :func:`~.search.describe_clusters`.
    """

    coverage: Coverage
    anchors: Anchors
    keys: AnchorKeys | None
    clusters: list[dict[str, float]]
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
                f"The present anchors, {self.anchors.per_location} per location, cover {present}; "
                f"the suggested ones, {self.suggestion.keys.per_location} per location, cover "
                f"{describe(self.suggestion.coverage)}."
            )
        if self.keys is None:
            advice = "suggestions need RetinaNetAnchorGenerator with one list of ASPECT_RATIOS"
        elif covers_enough(self.coverage):
            advice = "no need to change them"
        else:
            advice = "no better ones were found"
        return f"The present anchors cover {present}: {advice}."

    @property
    def losses(self) -> list[str]:
        """The groups of which the suggested anchors cover notably less."""
        key = self.key
        return [
            f"{by} {row['group']} ({row[f'suggested: {key}']:.1%} instead of {row[key]:.1%} of "
            f"{row['boxes']:,})"
            for by in ("size", "height / width", "class")
            for row in self.groups[by]
            if row[f"suggested: {key}"] <= row[key] - _NOTABLE_LOSS
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns all numbers."""
        levels = zip(self.anchors.strides, self.anchors.shapes, strict=True)
        return {
            "image_scales": [asdict(scale) for scale in self.coverage.scales],
            "anchor_shapes": {str(stride): shapes.tolist() for stride, shapes in levels},
            "verdict": self.verdict,
            "coverage": self.groups,
            "worst_boxes": worst_boxes(self.coverage),
            "clusters": self.clusters,
            "suggestion": self.suggestion and self.suggestion.keys.overrides(),
        }

    def to_markdown(self) -> str:
        """Returns the verdict, the tables, and the suggestion."""
        blocks = [self.verdict, _NOTE]
        for by, rows in self.groups.items():
            if by != "short side" or len(rows) > 1:
                shown = sorted(rows, key=lambda row: row[self.key]) if _is_long(rows) else rows
                blocks.append(_table([{by: row["group"]} | row for row in shown[:MOST_CLASSES]]))
            if _is_long(rows):
                blocks.append(f"({len(rows) - MOST_CLASSES} better covered ones are in the JSON.)")
        blocks += [_table(self.clusters), _table(worst_boxes(self.coverage))]
        if self.suggestion:
            keys = self.suggestion.keys.overrides()
            blocks += [
                "Suggested by coverage alone, which is not AP; the model has to be trained again:",
                "```yaml\nMODEL:\n  ANCHOR_GENERATOR:\n"
                + "".join(f"    {key.split('.')[-1]}: {value}\n" for key, value in keys.items())
                + "```",
                "or at the end of a command:\n"
                + " ".join(f'{key} "{value}"' for key, value in keys.items()),
            ]
            if self.losses:
                blocks.append(f"They cover less of: {shorten(self.losses, _MOST_LOSSES)}.")
        return "\n\n".join(filter(None, blocks)) + "\n"


def describe(coverage: Coverage) -> str:
    """Returns a phrase such as "94.0% of the boxes at IoU 0.5"."""
    share, mean = coverage.share(coverage.positive), coverage.class_mean(coverage.positive)
    classes = f" ({percent(mean)} in the mean over classes)" if coverage.num_classes > 1 else ""
    return f"{percent(share)} of the boxes at IoU {coverage.positive:g}{classes}"


def percent(share: float) -> str:
    """Rounds down, so that 100% means all."""
    return f"{np.floor(share * 1000) / 10:.1f}%" if share < 1 else "100%"


def _is_long(rows: list[Row]) -> bool:
    return len(rows) > MOST_CLASSES


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    keys = [key for key in rows[0] if key != "group"]
    return markdown_table(keys, [[_cell(key, row[key]) for key in keys] for row in rows])


def _cell(key: str, value: Any) -> str:
    if key == "share of boxes" or "IoU >=" in key:
        return percent(value)
    if key.endswith("best IoU"):
        return f"{value:.3f}"
    return f"{value:,}" if key == "boxes" else str(value)
