"""The results as a picture."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .compare import SWEEPS
from .parts import PARTS
from .units import duration, size

_COLOURS = {"detectron2": "#b0413e", "torchvision": "#e0a030", "ours": "#2a6f97"}
_PART_HEIGHT, _SWEEP_HEIGHT, _WIDTH = 0.6, 3.3, 12.0  # inches


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Bars of each part's time and memory, and a line chart for each part of a sweep."""
    parts = list(results["parts"].values())
    charts = [(sweep, part) for sweep in results["sweeps"] for part in SWEEPS[sweep].parts]
    heights = [1.2 + _PART_HEIGHT * len(parts)] if parts else []
    heights += [_SWEEP_HEIGHT] * -(-len(charts) // 2)
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    if parts:
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        _bars(
            left,
            parts,
            _seconds,
            duration,
            "time, relative to detectron2 (in brackets: ours to it)",
        )
        _bars(right, parts, _bytes, size, "memory at the peak, likewise")
        right.set_yticklabels([])
        patches = [Patch(color=colour, label=side) for side, colour in _COLOURS.items()]
        figure.legend(handles=patches, loc="outside upper right", ncols=3, frameon=False)
    for i, (sweep, part) in enumerate(charts):
        axes = figure.add_subplot(grid[i // 2 + bool(parts), i % 2])
        _lines(axes, sweep, part, results["sweeps"][sweep])
    figure.savefig(path, dpi=110)


def _seconds(result: Mapping[str, Any]) -> dict[str, float]:
    return {side: times["median"] for side, times in result["seconds"].items()}


def _bytes(result: Mapping[str, Any]) -> dict[str, float]:
    return dict(result.get("memory", {}))


def _bars(
    axes: Axes,
    parts: Sequence[Mapping[str, Any]],
    quantity: Callable[[Mapping[str, Any]], dict[str, float]],
    text: Callable[[float], str],
    title: str,
) -> None:
    """A group of bars a part, from the top; each bears its quantity, ours the ratio too."""
    thickness = 0.8 / len(_COLOURS)
    for row, result in enumerate(parts):
        values = quantity(result)
        unit = values.get("detectron2") or max(values.values(), default=1.0)
        for i, (side, colour) in enumerate(_COLOURS.items()):
            if side not in values:
                continue
            y, length = row + (i - 1) * thickness, values[side] / unit
            axes.barh(y, length, thickness, color=colour)
            words = f" {text(values[side])}"
            if side == "ours" and values[side]:
                words += f"  (1 : {unit / values[side]:.3g})"
            axes.text(length, y, words, va="center", size=8)
    axes.set_yticks(range(len(parts)), [result["title"] for result in parts])
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)  # room for the numbers
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Axes, sweep: str, part: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Time of each side over the sweep's values, both logarithmic."""
    for side, colour in _COLOURS.items():
        known = [(p["value"], _seconds(p["parts"][part])) for p in points]
        line = [(value, times[side]) for value, times in known if side in times]
        if not line:
            continue
        axes.plot(*zip(*line, strict=True), "o-", color=colour, label=side)
        below = side == "ours"
        for value, time in line:
            axes.annotate(
                duration(time),
                (value, time),
                xytext=(0, -6 if below else 6),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
                size=8,
                color=colour,
            )
    values = [p["value"] for p in points]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.1, y=0.2)
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.set_yticks([])
    axes.minorticks_off()
    axes.set_xlabel(SWEEPS[sweep].title)
    axes.set_title(f"{PARTS[part].title}: time")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
