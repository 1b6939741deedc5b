"""Positives, ignored and negatives of training, and who holds the class loss: from the log.

``MODEL.RETINANET.LOG_LOSS_SHARES`` makes training write the numbers that are read here, see
:class:`retinanet_plugin.engine.loss_shares.LossShares`. The share of an anchor is that of all its
classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.metrics import read_scalars, short_names

LOG_KEY = "MODEL.RETINANET.LOG_LOSS_SHARES"
COLUMNS = {
    "positives": "anchors/positive",
    "ignored": "anchors/ignored",
    "negatives": "anchors/negative",
    "share_of_positives": "loss_cls_share/positive",
    "share_of_negatives": "loss_cls_share/negative",
}
_ANCHORS = ("negatives", "ignored", "positives")
# Okabe and Ito's, which the colour-blind tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = {"negatives": "-", "ignored": ":", "positives": "--"}


@dataclass(frozen=True)
class Run:
    """What one training run logged, step by step: means over the steps since the line before.

    Args:
        name: for people.
        iteration: (n,), ascending.
        columns: by the names in :data:`COLUMNS`, (n,) each: anchors a picture, and shares of the
            class loss, from 0 to 1.
    """

    name: str
    iteration: np.ndarray
    columns: dict[str, np.ndarray]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the folders, named by these; by more of their paths where names are equal.

    Raises:
        UserError: for a folder without a log, or whose log lacks the numbers.
    """
    return [read_run(*run) for run in zip(folders, short_names(folders), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Reads ``metrics.json``, which detectron2 appends to.

    A run that went on from a checkpoint repeats steps, and one that was started anew begins again:
    what was logged last counts. Lines of evaluations, and one that was cut short, are passed over.

    Raises:
        UserError: where there is no log, or the numbers are not in it.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise UserError(f"no file {path}; give the OUTPUT_DIR of a training run.")
    kept: list[dict[str, Any]] = []
    for line in read_scalars(path):
        if {"iteration", *COLUMNS.values()} <= line.keys():
            while kept and kept[-1]["iteration"] >= line["iteration"]:
                kept.pop()
            kept.append(line)
    if not kept:
        raise UserError(
            f"{path}: no line has {COLUMNS['positives']} and {COLUMNS['share_of_positives']}; "
            f"train with {LOG_KEY} True to have them logged."
        )
    return Run(
        name,
        np.array([line["iteration"] for line in kept]),
        {name: np.array([line[key] for line in kept], float) for name, key in COLUMNS.items()},
    )


def rows(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """All runs below each other: a column for the run, the iteration and each of COLUMNS."""
    return {
        "run": [run.name for run in runs for _ in run.iteration],
        "iteration": [i for run in runs for i in run.iteration.tolist()],
        **{name: [x for run in runs for x in run.columns[name].tolist()] for name in COLUMNS},
    }


def table(runs: Sequence[Run]) -> str:
    """Means over training and the negatives' share at both ends, in Markdown."""
    lines = [
        "| run | last step | positives | ignored | negatives a picture | share of the class loss "
        "that negatives hold, first | last |",
        "| --- |" + " --- |" * 6,
    ]
    for run in runs:
        means = [
            f"{run.columns[name].mean():,.1f}" for name in ("positives", "ignored", "negatives")
        ]
        share = run.columns["share_of_negatives"]
        ends = [f"{share[i]:.1%}" for i in (0, -1)]
        lines.append(f"| {run.name} | {run.iteration[-1]} | {' | '.join([*means, *ends])} |")
    return "\n".join(lines)


def draw(runs: Sequence[Run]) -> Figure:
    """Anchors a picture on the left, the negatives' share of the class loss on the right."""
    figure = Figure(figsize=(12.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(runs))]
    for run, colour in zip(runs, colours, strict=True):
        _draw_anchors(left, run, colour)
        share = run.columns["share_of_negatives"]
        right.plot(
            run.iteration,
            share,
            _mark(run),
            color=colour,
            linewidth=2,
            label=run.name,
            clip_on=False,
            zorder=3,  # a share of 0 lies on the axis
        )
    _name_anchors(left, runs[0])
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:,g}")
    left.set_ylabel("anchors a picture (logarithmic)")
    mean = {name: runs[0].columns[name].mean() for name in _ANCHORS}
    ratio = mean["negatives"] / max(mean["positives"], 1e-9)
    left.set_title(f"{ratio:,.0f} negatives to one positive")
    right.set_ylim(0, 1)
    right.axhline(0.5, color="#c8ced3", linewidth=1, zorder=0)
    right.set_ylabel("share of the class loss that negatives hold")
    right.set_title("Above the grey line, negatives hold most of the class loss")
    for axes in (left, right):
        axes.set_xlabel("training step")
        axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        handles, labels = right.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(runs), 4), frameon=False
        )
    return figure


def _draw_anchors(axes: Axes, run: Run, colour: str) -> None:
    for name, style in _STYLES.items():
        axes.plot(run.iteration, run.columns[name], style + _mark(run), color=colour, linewidth=2)


def _mark(run: Run) -> str:
    """A line through one point is not seen."""
    return "o" if len(run.iteration) == 1 else ""


def _name_anchors(axes: Axes, run: Run) -> None:
    """Behind the ends of the lines."""
    for name in _ANCHORS:
        last = run.columns[name][-1]
        if last > 0:  # others are not on a logarithmic axis
            axes.annotate(
                name,
                (run.iteration[-1], last),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
            )
