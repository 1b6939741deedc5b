"""Results of an ablation: what a run left on disk, as Markdown, CSV and a figure."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retinanet_plugin.evaluation.run_log import METRICS, last_metrics, read_lines
from retinanet_plugin.utils import (
    markdown_table,
    write_csv,
    write_figure,
    write_json,
    write_text,
)

from .ablation_plan import PAPER, Plan, Run
from .common import hide_frame
from .tables import Row

# The trainer's message about a loss that is not finite: divergence is a result too.
_DIVERGED = re.compile(r"training stopped at step (\d+)")
_OURS, _PAPER, _GREY = "#2a6f97", "#e0a030", "#6b6b6b"
_PAPER_TEXT = "#9a6a10"  # darker, to be readable


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Args:
        ap, ap50, ap75: in percent; 0 without any detection, None if training diverged.
        diverged_at: the step whose loss was not finite.
        machine: as ``describe_machine`` returns it.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    diverged_at: int | None
    machine: Mapping[str, Any]


def read_result(folder: Path) -> Result | None:
    """Returns the result of a finished run; None if it has not finished."""
    path = folder / "result.json"
    return Result(**json.loads(path.read_text())) if path.is_file() else None


def write_result(run: Run, status: int, machine: Mapping[str, Any]) -> str | None:
    """Writes ``result.json`` for a process that ended, unless it failed.

    Args:
        status: the exit status of the process.

    Returns:
        the result in words; None if the run failed.
    """
    if status == 0:
        datasets = run.cfg.DATASETS
        evaluated = ["own_test"] if datasets.OWN.TEST_JSON else datasets.TEST
        metrics = last_metrics(run.folder / "metrics.json", evaluated)
        if metrics is None:
            return None
        ap, ap50, ap75 = (metrics[key] for key in METRICS)
        result = Result(ap, ap50, ap75, None, machine)
        text = f"AP {ap:.1f}, AP50 {ap50:.1f}, AP75 {ap75:.1f}"
    elif match := _DIVERGED.search(last_line(run.log)):
        result = Result(None, None, None, int(match[1]), machine)
        text = f"diverged at step {result.diverged_at:,}"
    else:
        return None
    write_json(run.folder / "result.json", asdict(result))
    return text


def last_line(log: Path) -> str:
    """Returns the last ``error:`` line of a log, or else its last line."""
    lines = [line.strip() for line in read_lines(log) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1]


@dataclass(frozen=True)
class Measured:
    """The results of a row over its seeds.

    Args:
        results: of the finished runs.
        failed: how many runs failed.
    """

    row: Row
    results: Sequence[Result]
    failed: int = 0

    def values(self, metric: str) -> list[float]:
        """Returns "ap", "ap50" or "ap75" for each seed that did not diverge."""
        values = (getattr(result, metric) for result in self.results)
        return [value for value in values if value is not None]

    def mean(self, metric: str = "ap") -> float | None:
        """Returns the mean over the seeds; None without a value."""
        values = self.values(metric)
        return mean(values) if values else None

    def std(self, metric: str = "ap") -> float | None:
        """Returns the standard deviation over the seeds; None for fewer than two."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else None

    @property
    def diverged(self) -> list[int]:
        """Steps at which runs diverged."""
        return [r.diverged_at for r in self.results if r.diverged_at is not None]

    @property
    def text(self) -> str:
        """Mean and standard deviation of AP, or why there is none."""
        if self.mean() is not None:
            return self.cell("ap") + (f" ({len(self.diverged)} diverged)" if self.diverged else "")
        if self.diverged:
            return f"diverged at step {self.diverged[0]:,}"
        return "failed" if self.failed else "not run yet"

    def cell(self, metric: str) -> str:
        """Returns mean and standard deviation; empty without a value."""
        value, std = self.mean(metric), self.std(metric)
        if value is None:
            return ""
        return f"{value:.1f}" if std is None else f"{value:.1f} ± {std:.1f}"


def measure(plan: Plan, failed: Sequence[Run] = ()) -> list[Measured]:
    """Returns the results so far of each row that was asked for or has any."""
    measured = []
    for row, runs in plan.runs.items():
        read = [None if run.changes() else read_result(run.folder) for run in runs]
        results = [result for result in read if result is not None]
        if results or row.name in plan.options.rows:
            measured.append(Measured(row, results, sum(run in failed for run in runs)))
    return measured


def write_report(plan: Plan, failed: Sequence[Run] = ()) -> str:
    """Writes ``results.md``, ``.csv`` and ``.png`` into the table's folder; returns the first."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    rows = measure(plan, failed)
    text = markdown(plan, rows)
    write_text(plan.folder / "results.md", text)
    write_csv(plan.folder / "results.csv", _columns(rows))
    write_figure(plan.folder / "results.png", draw(plan, rows))
    return text


def markdown(plan: Plan, rows: Sequence[Measured]) -> str:
    """Returns the table, how it was measured, and whether the paper's order holds."""
    head = ["", "AP", "AP50", "AP75", "seeds", "paper's AP", "AP50", "AP75"]
    lines = []
    for m in rows:
        paper = ["" if x is None else f"{x:.1f}" for x in (m.row.ap, m.row.ap50, m.row.ap75)]
        line = [m.row.label, m.text, m.cell("ap50"), m.cell("ap75"), len(m.results), *paper]
        lines.append(line)
    table = markdown_table(head, lines)
    blocks = [f"## {plan.table.title}", _how(plan, rows), table, _order(rows)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _how(plan: Plan, rows: Sequence[Measured]) -> str:
    """Says what was trained, and where."""
    cfgs = [run.cfg for run in plan.chosen]

    def each(values: Iterable[int]) -> str:
        return " or ".join(f"{value:,}" for value in sorted(set(values)))

    data = "the rows' own configs" if plan.options.data == PAPER else plan.options.data
    parts = [
        f"Here: {data}",
        f"ResNet-{each(cfg.MODEL.RESNETS.DEPTH for cfg in cfgs)}",
        f"{each(cfg.SOLVER.MAX_ITER for cfg in cfgs)} steps of "
        f"{each(cfg.SOLVER.IMS_PER_BATCH for cfg in cfgs)} images of "
        f"{each(cfg.INPUT.MIN_SIZE_TEST for cfg in cfgs)} pixels",
        f"evaluated on {cfgs[0].DATASETS.OWN.TEST_JSON or ', '.join(cfgs[0].DATASETS.TEST)}",
        " ".join(plan.options.overrides),
    ]
    if results := [result for m in rows for result in m.results]:
        machine = results[0].machine
        parts += [machine["device"], *(f"{x} {machine[x]}" for x in ("torch", "detectron2"))]
    return (
        f"{', '.join(filter(None, parts))}. Paper: {plan.table.data}. "
        "± is the standard deviation over seeds."
    )


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns Kendall's tau-b of paired numbers; None if either list is constant.

    Concordant minus discordant pairs, divided by the geometric mean of the pairs without a tie in
    the first and in the second list (Kendall, 1945).
    """
    signs = [np.sign(np.subtract.outer(x, x)) for x in (first, second)]
    norm = sqrt(np.prod([np.abs(x).sum() for x in signs]))
    return float((signs[0] * signs[1]).sum() / norm) if norm else None


def _order(rows: Sequence[Measured]) -> str:
    """Says whether the rows have the paper's order; one that always diverged counts as AP 0."""
    ranks = [
        (m.row.ap, m.mean() or 0.0)
        for m in rows
        if m.row.ap is not None and (m.diverged or m.mean() is not None)
    ]
    tau = kendall_tau([x for x, _ in ranks], [x for _, x in ranks])
    if tau is None:
        return ""
    return (
        f"Kendall's tau between our AP and the paper's over {len(ranks)} rows: {tau:.2f} "
        "(1: the same order, 0: unrelated, -1: reversed)."
    )


def _columns(rows: Sequence[Measured]) -> dict[str, list[float | str]]:
    """Returns the columns of ``results.csv``, a line per row."""

    def or_nan(values: Iterable[float | None]) -> list[float | str]:
        return [nan if value is None else value for value in values]

    columns: dict[str, list[float | str]] = {
        "row": [m.row.name for m in rows],
        "label": [m.row.label for m in rows],
        "seeds": [len(m.results) for m in rows],
        "diverged": [len(m.diverged) for m in rows],
    }
    for metric in ("ap", "ap50", "ap75"):
        columns[metric] = or_nan(m.mean(metric) for m in rows)
        columns[f"{metric}_std"] = or_nan(m.std(metric) for m in rows)
        columns[f"paper_{metric}"] = or_nan(getattr(m.row, metric) for m in rows)
    return columns


def draw(plan: Plan, rows: Sequence[Measured]) -> Figure:
    """Draws AP per row, ours left and the paper's right, each on its own scale."""
    figure = Figure(figsize=(10, 1.4 + 0.45 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(plan.table.title, x=0.01, ha="left", fontsize=13)
    data = "as configured" if plan.options.data == PAPER else f"on {Path(plan.options.data).stem}"
    left.set_title(f"Here, {data}", fontsize=10, color=_OURS)
    right.set_title(f"The paper, on {plan.table.data}", fontsize=10, color=_PAPER_TEXT)
    for y, m in enumerate(rows):
        _draw_row(left, y, m.mean(), m.text, "o", _OURS, m.std())
        paper = "" if m.row.ap is None else f"{m.row.ap:.1f}"
        _draw_row(right, y, m.row.ap, paper, "D", _PAPER)
    for axes in (left, right):
        axes.margins(x=0.14)
        axes.set_xlim(left=max(axes.get_xlim()[0], 0.0))
        axes.set_xlabel("AP")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        hide_frame(axes)
        axes.spines["left"].set_visible(False)
    left.set_yticks(range(len(rows)), [m.row.label for m in rows])
    left.set_ylim(len(rows) - 0.5, -0.6)
    return figure


def _draw_row(
    axes: Axes, y: int, ap: float | None, text: str, mark: str, color: str, std: float | None = None
) -> None:
    if ap is None:  # the reason stands at the left edge
        axes.text(0.02, y, text, transform=axes.get_yaxis_transform(), va="center", color=_GREY)
        return
    axes.errorbar(ap, y, xerr=std, fmt=mark, color=color, capsize=3, ms=7, clip_on=False)
    axes.annotate(text, (ap, y), xytext=(0, 7), textcoords="offset points", ha="center", size=8.5)
