"""Draws the imbalance of positives and negatives in training, and their shares of the class loss.

    python -m projects.focal_loss_paper imbalance output/quickstart
    python -m projects.focal_loss_paper imbalance output/ce output/focal --output figures

Reads the metrics.json of runs trained with MODEL.RETINANET.LOG_LOSS_SHARES True, and writes
imbalance.png and imbalance.csv.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from retinanet_plugin.command_line import add_output
from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.run_log import read_scalars, short_names
from retinanet_plugin.utils import markdown_table, output_files, write_csv, write_figure

from .common import hide_frame, paper_parser

LOG_KEY = "MODEL.RETINANET.LOG_LOSS_SHARES"
COLUMNS = {
    "positives": "anchors/positive",
    "ignored": "anchors/ignored",
    "negatives": "anchors/negative",
    "share_of_positives": "loss_cls_share/positive",
    "share_of_negatives": "loss_cls_share/negative",
}
# Okabe and Ito's, which the color-blind can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = {"negatives": "-", "ignored": ":", "positives": "--"}


@dataclass(frozen=True)
class Run:
    """What a training run logged: means over the steps since the previous line.

    Args:
        name: for people.
        iteration: (n,), ascending.
        columns: by the names in :data:`COLUMNS`, (n,) each: anchors per image, and the shares of
            the class loss, from 0 to 1, that anchors hold with all their classes.
    """

    name: str
    iteration: np.ndarray
    columns: dict[str, np.ndarray]


def _parser() -> argparse.ArgumentParser:
    parser = paper_parser("imbalance", __doc__, "FOLDER [FOLDER ...] [options]")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="OUTPUT_DIR")
    add_output(parser, "default: imbalance, in the first folder")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Writes the figure and its numbers."""
    parsed = _parser().parse_intermixed_args(args)
    names = short_names(parsed.folders)
    runs = [read_run(*pair) for pair in zip(parsed.folders, names, strict=True)]
    folder = parsed.output or parsed.folders[0] / "imbalance"
    files = ["imbalance.png", "imbalance.csv"]
    figure, numbers = output_files(folder, files, overwrite=parsed.overwrite)
    write_figure(figure, draw(runs))
    columns: dict[str, list[Any]] = {
        "run": [run.name for run in runs for _ in run.iteration],
        "iteration": [i for run in runs for i in run.iteration.tolist()],
        **{name: [x for run in runs for x in run.columns[name].tolist()] for name in COLUMNS},
    }
    write_csv(numbers, columns)
    print(f"{table(runs)}\n\n{figure}\n{numbers}")


def read_run(folder: Path, name: str) -> Run:
    """Reads ``metrics.json``, to which detectron2 appends.

    A resumed run repeats steps, and one that was started again in the same folder begins anew:
    the latest lines count.

    Raises:
        UserError: if there is no log, or it lacks the numbers.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the OUTPUT_DIR of a training run.")
    kept: list[dict[str, Any]] = []
    for line in read_scalars(path):
        if {"iteration", *COLUMNS.values()} <= line.keys():
            while kept and kept[-1]["iteration"] >= line["iteration"]:
                kept.pop()
            kept.append(line)
    if not kept:
        raise UserError(f"{path}: no shares of the loss were logged; train with {LOG_KEY} True.")
    return Run(
        name,
        np.array([line["iteration"] for line in kept]),
        {name: np.array([line[key] for line in kept], float) for name, key in COLUMNS.items()},
    )


def table(runs: Sequence[Run]) -> str:
    """Returns means over training, and the negatives' share at its ends, in Markdown."""
    head = ["run", "last step", "positives per image", "ignored", "negatives"]
    head += ["negatives' share of the class loss: first", "last"]
    rows = []
    for run in runs:
        means = [f"{run.columns[x].mean():,.1f}" for x in ("positives", "ignored", "negatives")]
        shares = [f"{run.columns['share_of_negatives'][i]:.1%}" for i in (0, -1)]
        rows.append([run.name, run.iteration[-1], *means, *shares])
    return markdown_table(head, rows)


def draw(runs: Sequence[Run]) -> Figure:
    """Plots anchors per image (left) and the negatives' share of the class loss (right)."""
    figure = Figure(figsize=(12.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, run in enumerate(runs):
        color = _COLORS[i % len(_COLORS)]
        mark = "o" if len(run.iteration) == 1 else ""  # a line through one point is invisible
        for name, style in _STYLES.items():
            left.plot(run.iteration, run.columns[name], style + mark, color=color, linewidth=2)
        share = run.columns["share_of_negatives"]
        more = {"color": color, "linewidth": 2, "clip_on": False, "zorder": 3}  # 0 is on the axis
        right.plot(run.iteration, share, f"-{mark}", label=run.name, **more)
    columns = runs[0].columns
    for name in _STYLES:
        last = columns[name][-1]
        if last > 0:  # the axis is logarithmic
            at = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            left.annotate(name, (runs[0].iteration[-1], last), **at)
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:,g}")
    left.set_ylabel("anchors per image (logarithmic)")
    ratio = columns["negatives"].mean() / max(columns["positives"].mean(), 1e-9)
    left.set_title(f"{ratio:,.0f} negatives per positive")
    right.set_ylim(0, 1)
    right.axhline(0.5, color="#c8ced3", linewidth=1, zorder=0)
    right.set_ylabel("negatives' share of the class loss")
    right.set_title("Above the grey line, negatives hold most of the class loss")
    for axes in (left, right):
        axes.set_xlabel("training step")
        hide_frame(axes)
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
