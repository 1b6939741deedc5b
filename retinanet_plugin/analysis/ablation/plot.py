"""The rows' AP as a picture: measured on the left, the paper's on the right, each on its scale."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plan import PAPER, Plan

if TYPE_CHECKING:
    from .report import Measured

_OURS, _PAPER, _GREY = "#2a6f97", "#e0a030", "#6b6b6b"
_ROW, _AROUND, _WIDTH = 0.42, 1.5, 10.0  # inches


def draw(plan: Plan, rows: Sequence["Measured"], path: Path) -> None:
    """Writes the PNG, at once."""
    figure = Figure(figsize=(_WIDTH, _AROUND + _ROW * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(plan.table.title, x=0.01, ha="left", fontsize=13)
    data = "the paper's data" if plan.options.data == PAPER else plan.options.data
    seeds = max((len(m.results) for m in rows), default=0)
    spread = f", mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    left.set_title(f"measured: {data}{spread}", fontsize=10, color=_OURS)
    right.set_title(f"paper: {plan.table.data}", fontsize=10, color="#9a6a10")
    _measured(left, rows)
    _paper(right, rows)
    left.set_yticks(range(len(rows)), [m.row.label for m in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    for axes in (left, right):
        axes.set_xlabel("AP")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(scratch, dpi=120)
    os.replace(scratch, path)


def _measured(axes: Axes, rows: Sequence["Measured"]) -> None:
    low = min((v for m in rows for v in m.values("ap")), default=0.0)
    for y, m in enumerate(rows):
        value, spread = m.mean(), m.spread()
        if value is None:
            words = f"diverged at step {m.diverged[0].diverged_at:,}" if m.diverged else "no result"
            axes.text(low, y, words, va="center", size=9, color=_GREY)
            continue
        axes.errorbar(value, y, xerr=spread, fmt="o", color=_OURS, capsize=3, markersize=7)
        if spread is not None:
            seeds = m.values("ap")
            axes.plot(seeds, [y] * len(seeds), "|", color=_OURS, markersize=9, alpha=0.6)
        words = f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"
        _annotate(axes, value, y, words)
    axes.margins(x=0.12)


def _paper(axes: Axes, rows: Sequence["Measured"]) -> None:
    for y, m in enumerate(rows):
        if m.row.ap is not None:
            axes.plot(m.row.ap, y, "D", color=_PAPER, markersize=7)
            _annotate(axes, m.row.ap, y, f"{m.row.ap:.1f}")
    axes.margins(x=0.12)


def _annotate(axes: Axes, x: float, y: int, words: str) -> None:
    axes.annotate(
        words,
        (x, y),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        size=8,
        color="#333333",
    )
