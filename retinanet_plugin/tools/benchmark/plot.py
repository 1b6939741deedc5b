"""Draws the results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .units import duration, size

_COLORS = {"detectron2": "#b0413e", "torchvision": "#e0a030", "ours": "#2a6f97"}


def draw(results: Mapping[str, Any]) -> Figure:
    """Draws bars of each part's time and memory."""
    parts = list(results["parts"].values())
    figure = Figure(figsize=(12, 1.2 + 0.6 * len(parts)), layout="constrained")
    left, right = figure.subplots(1, 2)
    title = "time, relative to detectron2 (in brackets: ours to it)"
    _draw_bars(left, parts, _medians, duration, title)
    _draw_bars(right, parts, lambda r: r.get("memory", {}), size, "peak memory, likewise")
    right.set_yticklabels([])
    patches = [Patch(color=color, label=side) for side, color in _COLORS.items()]
    figure.legend(handles=patches, loc="outside upper right", ncols=3, frameon=False)
    return figure


def _medians(result: Mapping[str, Any]) -> dict[str, float]:
    return {side: times["median"] for side, times in result["seconds"].items()}


def _draw_bars(
    axes: Axes,
    parts: Sequence[Mapping[str, Any]],
    values_of: Callable[[Mapping[str, Any]], Mapping[str, float]],
    text: Callable[[float], str],
    title: str,
) -> None:
    """Draws a group of bars per part, labeled with their values, ours also with the ratio."""
    thickness = 0.8 / len(_COLORS)
    for row, result in enumerate(parts):
        values = values_of(result)
        unit = values.get("detectron2") or max(values.values(), default=1.0)
        for i, (side, color) in enumerate(_COLORS.items()):
            if side not in values:
                continue
            y, length = row + (i - 1) * thickness, values[side] / unit
            axes.barh(y, length, thickness, color=color)
            label = f" {text(values[side])}"
            if side == "ours" and values[side]:
                label += f"  (1 : {unit / values[side]:.3g})"
            axes.text(length, y, label, va="center", size=8)
    axes.set_yticks(range(len(parts)), [result["title"] for result in parts])
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)  # room for the labels
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
