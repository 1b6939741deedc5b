"""Curves of AP over milliseconds per image, and the paper's own (figure 2)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes

from .common import hide_frame
from .tables import TABLES

# By backbone, the same in all figures; other backbones take the following colors in order.
_COLORS = {"ResNet-50": "#2a6f97", "ResNet-101": "#b0413e"}
_MORE_COLORS = ("#e0a030", "#6a3d8f", "#4d8b6a", "#1b1b1b", "#8c6d46")


@dataclass(frozen=True)
class Point:
    """A network's speed and accuracy.

    Args:
        backbone: of its curve.
        x, y: milliseconds per image, and AP.
        label: written beside it.
        x_error: from the lower end of the error bar to ``x``, and from there to the upper one.
    """

    backbone: str
    x: float
    y: float
    label: str
    x_error: tuple[float, float] = (0.0, 0.0)


def draw_curves(axes: Axes, points: Sequence[Point], joined: Collection[str] | None = None) -> None:
    """Draws a curve per backbone.

    Args:
        joined: backbones whose points are joined by a line; default: all.
    """
    backbones = list(dict.fromkeys(point.backbone for point in points))
    others = [name for name in backbones if name not in _COLORS]
    colors = {**_COLORS, **dict(zip(others, cycle(_MORE_COLORS), strict=False))}
    for i, backbone in enumerate(backbones):
        curve = sorted((p for p in points if p.backbone == backbone), key=lambda p: p.x)
        errors = [p.x_error for p in curve]
        axes.errorbar(
            [p.x for p in curve],
            [p.y for p in curve],
            xerr=list(zip(*errors, strict=True)) if np.any(errors) else None,
            fmt="o-" if joined is None or backbone in joined else "o",
            color=colors[backbone],
            capsize=3,
            label=backbone,
            clip_on=False,
        )
        for p in curve:  # labels of one curve lie below it, those of the next one above
            axes.annotate(
                p.label,
                (p.x, p.y),
                xytext=(-5, 5) if i % 2 else (5, -5),
                textcoords="offset points",
                ha="right" if i % 2 else "left",
                va="bottom" if i % 2 else "top",
                size=8,
                color=colors[backbone],
            )
    axes.margins(x=0.14, y=0.14)
    axes.set_ylabel("AP")
    axes.set_xlim(left=max(axes.get_xlim()[0], 0))
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
    hide_frame(axes)
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    if points:
        axes.legend(frameon=False, loc="best")


def draw_paper(axes: Axes) -> None:
    """Draws figure 2 of the paper from table 1e; labels are the short sides of the images."""
    table = TABLES["e_speed"]
    points = [
        Point(row.label.split(",")[0], row.milliseconds, row.ap, row.name.rpartition("_")[2])
        for row in table.rows
        if row.milliseconds is not None and row.ap is not None
    ]
    draw_curves(axes, points)
    axes.set_title(f"The paper (table 1e): {table.data}, Nvidia M40")
    axes.set_xlabel("milliseconds per image")
