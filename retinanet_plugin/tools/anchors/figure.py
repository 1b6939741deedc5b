"""A figure of how anchors cover boxes: shapes, and coverage by size, ratio and class."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .coverage import Anchors
from .tables import CoverageReport, describe

_MOST_DOTS, _MOST_BARS = 4000, 20
_COVERED, _BETWEEN, _LOST, _SUGGESTED = "#2a6f97", "#e0a030", "#b0413e", "#6a3d8f"
_MARKER: dict[str, Any] = {"linestyle": "", "markerfacecolor": "white", "markersize": 5}


def draw(report: CoverageReport) -> Figure:
    """Draws shapes of boxes and anchors, and coverage by size, by ratio and by class."""
    coverage = report.coverage
    figure = Figure(figsize=(15, 12), layout="constrained")
    shapes, *bars = figure.subplots(2, 2, height_ratios=(1.25, 1)).flat
    _draw_shapes(shapes, report)
    for axes, by in zip(bars, ("height / width", "size", "class"), strict=True):
        _draw_bars(axes, report, by)
    handles, labels = bars[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    scales = ", ".join(str(scale.short or "original") for scale in coverage.scales)
    figure.suptitle(
        f"The anchors cover {describe(coverage)}\n"
        f"{len(coverage.data):,} boxes in {len(coverage.data.image_sizes):,} images, short side "
        f"{scales}; {coverage.anchors.per_location} anchors per location",
        size=14,
    )
    return figure


def _draw_shapes(axes: Axes, report: CoverageReport) -> None:
    """Draws boxes as dots, those with the worst anchors on top, and anchors as symbols."""
    coverage = report.coverage
    chosen = np.random.default_rng(0).permutation(len(coverage.iou))[:_MOST_DOTS]
    chosen = chosen[np.argsort(-coverage.iou[chosen])]
    iou = coverage.iou[chosen]
    colors = np.where(iou >= coverage.thresholds[0], _BETWEEN, _LOST)
    colors[iou >= coverage.positive] = _COVERED
    size = np.where(iou >= coverage.positive, 5, 14)
    width, height = coverage.width[chosen], coverage.height[chosen]
    axes.scatter(width, height, s=size, c=colors, alpha=0.5, linewidth=0)
    sides = _draw_anchors(axes, coverage.anchors, "s", "black", "anchors")
    if report.suggestion:
        _draw_anchors(
            axes, report.suggestion.coverage.anchors, "D", _SUGGESTED, "suggested anchors"
        )
    low, high = np.quantile([coverage.width, coverage.height], (0.002, 0.998))
    limits = min(low, sides.min()) / 1.4, max(high, sides.max()) * 1.4
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set(xlabel="width, pixels of the resized image", ylabel="height")
    axes.set_title("Shapes of the boxes (dots) and of the anchors")
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none", loc="upper left")


def _draw_anchors(axes: Axes, anchors: Anchors, marker: str, color: str, label: str) -> np.ndarray:
    sides = np.concatenate([level.numpy() for level in anchors.shapes])
    axes.plot(*sides.T, marker=marker, color=color, label=label, **_MARKER)
    return sides


def _draw_bars(axes: Axes, report: CoverageReport, by: str) -> None:
    """Draws one bar per group in three colors, and a marker for the suggested anchors."""
    low, high = f"{report.coverage.thresholds[0]:g}", f"{report.coverage.positive:g}"
    rows, title = report.groups[by], f"Covered boxes by {by}, and the number of boxes"
    if len(rows) > _MOST_BARS:
        title += f": the {_MOST_BARS} worst"
        rows = sorted(rows, key=lambda row: row[report.key])[:_MOST_BARS]
    covered = np.array([row[report.key] for row in rows])
    nearly = np.array([row[f"IoU >= {low}"] for row in rows])
    x = np.arange(len(rows))
    axes.bar(x, covered, color=_COVERED, label=f"best IoU >= {high}: covered")
    axes.bar(x, nearly - covered, bottom=covered, color=_BETWEEN, label=f"{low} to {high}")
    axes.bar(x, 1 - nearly, bottom=nearly, color=_LOST, label=f"below {low}")
    if report.suggestion:
        shares = [row[f"suggested: {report.key}"] for row in rows]
        marker = {**_MARKER, "color": _SUGGESTED, "clip_on": False}
        axes.plot(x, shares, marker="D", label="covered by the suggested anchors", **marker)
    for i, row in enumerate(rows):
        axes.text(i, 1.03, f"{row['boxes']:,}", ha="center", size=8, color="#5b6670")
    names = [row["group"] for row in rows]
    crowded = max(map(len, names)) * len(names) > 90
    axes.set_xticks(x, names, rotation=40 if crowded else 0, ha="right" if crowded else "center")
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
