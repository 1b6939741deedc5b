"""The charts of a report, as SVG."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike

from ...html_page import figure_svg
from .accuracy import SCORES, Accuracy, ScoreCounts
from .run import Run, Series
from .set_report import SetReport

# Readable on white and on black, and for the color-blind together with the line styles.
_COLORS = ("#2f86d1", "#e0703a", "#26a17b", "#a868c4", "#b8901c", "#7d8b99", "#d9569a")
_STYLES = ("-", "--", "-.", ":", (0, (6, 2)), (0, (1, 1)), (0, (8, 2, 1, 2)))
_LOSSES = {
    "Loss": {"total_loss": ""},
    "Loss by part": {"loss_cls": "classification, ", "loss_box_reg": "boxes, "},
}

Chart = tuple[str, Markup]  # title, SVG


def training_charts(run: Run, test_sets: Sequence[SetReport]) -> list[Chart]:
    """Plots losses, AP and the learning rate over the steps, as far as the run logged them."""
    charts = []
    for title, parts in _LOSSES.items():
        lines = {
            part + split: run.series[start + key]
            for key, part in parts.items()
            for start, split in (("", "training"), ("validation/", "validation"))
            if start + key in run.series
        }
        if lines:
            charts.append(_over_steps(title, lines, "loss"))
    for test_set in test_sets:
        if len(test_set.history.get("AP", ())) > 1:
            keys: tuple[str, ...] = ("AP50", "AP", "AP75")
            curves = {key: test_set.history[key] for key in keys if key in test_set.history}
            title = f"AP on {test_set.name}" if len(test_sets) > 1 else "AP"
            charts.append(_over_steps(title, curves, "AP", limits=(0, 100)))
    if run.series.get("lr"):
        charts.append(_over_steps("Learning rate", {"": run.series["lr"]}, "rate"))
    return charts


def _over_steps(
    title: str, lines: dict[str, Series], label: str, limits: tuple[float, float | None] = (0, None)
) -> Chart:
    figure, axes = _axes("step", label)
    for i, (name, series) in enumerate(lines.items()):
        marker = "." if len(series) < 25 else ""
        _line(axes, i, [*series], [*series.values()], name, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(*limits)
    _legend(figure)
    return title, figure_svg(figure, alt=f"{title} over the training steps")


def recall_chart(accuracies: Sequence[Accuracy], prefix: str) -> Markup:
    """Plots precision over recall for each class, and the mean.

    Args:
        prefix: of the ids of the lines, ``PREFIX-recall-K`` and ``PREFIX-recall-mean``.
    """
    figure, axes = _axes("recall", "precision", prefix=prefix)
    known = [(k, a.name, a.curve) for k, a in enumerate(accuracies[:-1]) if a.curve is not None]
    for i, (k, name, curve) in enumerate(known):
        gid = f"{prefix}-recall-{k}"
        if len(known) > len(_COLORS):  # too many for a legend: the filter shows which is which
            axes.plot(
                SCORES, curve, color="#7d8b99", alpha=0.5, linewidth=0.8, gid=gid, clip_on=False
            )
        else:
            short = name if len(name) <= 16 else f"{name[:15]}…"
            _line(axes, i, SCORES, curve, short.replace("$", r"\$"), gid=gid)  # no formula
    mean = accuracies[-1].curve
    if len(known) > 1 and mean is not None:
        gid = f"{prefix}-recall-mean"
        axes.plot(SCORES, mean, color="black", linewidth=2.5, label="mean", gid=gid, clip_on=False)
    _legend(figure)
    return figure_svg(figure, alt="Precision over recall by class")


def score_chart(counts: ScoreCounts, prefix: str) -> Markup:
    """Plots precision, recall and F1 of all classes over the score.

    Args:
        prefix: of the ids of the lines, ``PREFIX-precision``, ``PREFIX-recall``, ``PREFIX-F1`` and
            ``PREFIX-mark``.
    """
    figure, axes = _axes("score", "share", prefix=prefix)
    curves = {"precision": counts.precision, "recall": counts.recall, "F1": counts.f1}
    for i, (name, curve) in enumerate(curves.items()):
        _line(axes, i, SCORES, curve[-1], name, gid=f"{prefix}-{name}")
    axes.axvline(counts.best_score, color="gray", linewidth=1, gid=f"{prefix}-mark")
    _legend(figure)
    return figure_svg(figure, alt="Precision, recall and F1 over the score threshold")


def _axes(x: str, y: str, *, prefix: str | None = None) -> tuple[Figure, Axes]:
    """Returns empty axes; given a ``prefix``, from 0 to 1 and with the id ``PREFIX-axes-X``."""
    figure = Figure(figsize=(4.2, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="gray", alpha=0.3, linewidth=0.8)
    if prefix is not None:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.patch.set_gid(f"{prefix}-axes-{x}")
    return figure, axes


def _line(axes: Axes, i: int, x: ArrayLike, y: ArrayLike, name: str, **style: Any) -> None:
    color, line = _COLORS[i % len(_COLORS)], _STYLES[i % len(_STYLES)]
    axes.plot(x, y, color=color, linestyle=line, label=name or None, clip_on=False, **style)


def _legend(figure: Figure) -> None:
    """Adds a legend above the axes if there are several lines."""
    labels = figure.axes[0].get_legend_handles_labels()[1]
    if len(labels) > 1:
        columns = 3 if max(map(len, labels)) <= 10 else 2
        style = {"frameon": False, "fontsize": 9, "handlelength": 1.8, "columnspacing": 1}
        figure.legend(loc="outside upper left", ncols=columns, **style)
