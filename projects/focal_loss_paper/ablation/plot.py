"""The rows' AP as a picture: measured on the left, the paper's on the right, each on its scale."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..speed_chart import colours_of, draw_paper, finish, name_point
from .measured import Measured
from .plan import PAPER, Plan

_OURS, _PAPER, _GREY, _GRID = "#2a6f97", "#e0a030", "#6b6b6b", "#dddddd"
_PAPER_TEXT = "#9a6a10"  # darker, to be read
_ROW, _AROUND, _WIDTH, _SPEED_HEIGHT = 0.45, 1.4, 10.0, 4.8  # inches
_ROOM = 0.14  # at the sides, for numbers, as a share of the axis


def draw(plan: Plan, rows: Sequence[Measured]) -> Figure:
    """AP by row, or where the table has latencies, AP over latency."""
    speed = any(m.row.milliseconds for m in rows)
    height = _SPEED_HEIGHT if speed else _AROUND + _ROW * len(rows)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=not speed)
    figure.suptitle(plan.table.title, x=0.01, ha="left", fontsize=13)
    data = "as configured" if plan.options.data == PAPER else f"on {Path(plan.options.data).stem}"
    seeds = max((len(m.results) for m in rows), default=0)
    spread = f", {seeds} seeds (bar: standard deviation)" if seeds > 1 else ""
    left.set_title(f"Here, {data}{spread}", fontsize=10, color="black" if speed else _OURS)
    if speed:
        _curves(left, rows)
        draw_paper(right)
        right.title.set_size(10)
    else:
        right.set_title(f"The paper, on {plan.table.data}", fontsize=10, color=_PAPER_TEXT)
        _measured(left, rows)
        _paper(right, rows)
        left.set_yticks(range(len(rows)), [m.row.label for m in rows])
        left.set_ylim(len(rows) - 0.5, -0.6)
    return figure


# ---------------------------------------------------------------- AP by row


def _measured(axes: Axes, rows: Sequence[Measured]) -> None:
    for y, m in enumerate(rows):
        value, spread = m.mean(), m.spread()
        if value is None:
            step = m.diverged[0].diverged_at if m.diverged else None
            words = "no result yet" if step is None else f"diverged at step {step:,}"
            place = axes.get_yaxis_transform()
            axes.text(0.02, y, words, transform=place, va="center", size=9, color=_GREY)
            continue
        axes.errorbar(value, y, xerr=spread, fmt="o", color=_OURS, capsize=3, ms=7, clip_on=False)
        if spread is not None:
            seeds = m.values("ap")
            axes.plot(seeds, [y] * len(seeds), "|", color=_OURS, ms=10, alpha=0.6, clip_on=False)
        words = f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"
        _number(axes, value, y, words)
    _finish(axes)


def _paper(axes: Axes, rows: Sequence[Measured]) -> None:
    for y, m in enumerate(rows):
        if m.row.ap is not None:
            axes.plot(m.row.ap, y, "D", color=_PAPER, ms=7, clip_on=False)
            _number(axes, m.row.ap, y, f"{m.row.ap:.1f}")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.margins(x=_ROOM)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, 0.0), high)
    axes.set_xlabel("AP")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _number(axes: Axes, x: float, y: int, words: str) -> None:
    axes.annotate(words, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", size=8.5)


# ---------------------------------------------------------------- AP over latency


def _curves(axes: Axes, rows: Sequence[Measured]) -> None:
    """A line for each depth, whose points bear their pixels; beside :func:`draw_paper`."""
    depths = dict.fromkeys(m.depth for m in rows)
    colours = colours_of(f"ResNet-{depth}" for depth in depths)
    for i, depth in enumerate(depths):
        line = f"ResNet-{depth}"
        points = [
            (m.milliseconds, m.mean(), m.spread() or 0.0, m.pixels)
            for m in rows
            if m.depth == depth and m.milliseconds is not None and m.mean() is not None
        ]
        if not points:
            continue
        xs, ys, spreads, pixels = zip(*points, strict=True)
        colour = colours[line]
        axes.errorbar(
            xs,
            ys,
            yerr=spreads if any(spreads) else None,
            fmt="o-",
            color=colour,
            capsize=3,
            label=line,
            clip_on=False,
        )
        for x, y, side in zip(xs, ys, pixels, strict=True):
            name_point(axes, str(side), (x, y), colour, above=bool(i % 2), aside=5)
    axes.margins(x=_ROOM, y=_ROOM)
    axes.set_xlabel("milliseconds a picture (numbers: pixels of the short side)")
    finish(axes)
