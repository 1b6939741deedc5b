"""A table's results as Markdown, CSV and a picture, beside the paper's."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import sqrt
from statistics import mean, stdev

from ..tables import Row
from .plan import PAPER, Plan, PlannedRow
from .progress import minutes
from .results import Result, result_for, write_atomically


@dataclass(frozen=True)
class Measured:
    """What all seeds of a row gave.

    Args:
        depth: of the ResNet here.
        pixels: short side of the test pictures.
        results: of the runs that ended, by seed.
        failed: how many failed.
        waiting: how many have not ended.
    """

    row: Row
    depth: int
    pixels: int
    results: Sequence[Result]
    failed: int
    waiting: int

    def values(self, metric: str) -> list[float]:
        """Of each seed that did not diverge; ``metric`` is ap, ap50 or ap75."""
        found = (getattr(result, metric) for result in self.results)
        return [value for value in found if value is not None]

    def mean(self, metric: str = "ap") -> float | None:
        """None where no seed has a value."""
        values = self.values(metric)
        return mean(values) if values else None

    def spread(self, metric: str = "ap") -> float | None:
        """The standard deviation over the seeds; None for fewer than two."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else None

    @property
    def milliseconds(self) -> float | None:
        """Of the network a picture, as the evaluation took it; the least of the seeds."""
        return min((r.milliseconds for r in self.results if r.milliseconds), default=None)

    @property
    def diverged(self) -> list[Result]:
        return [result for result in self.results if result.diverged_at is not None]

    @property
    def rank(self) -> float | None:
        """What the row is ordered by: its AP, or 0 where every seed diverged."""
        return 0.0 if self.mean() is None and self.diverged else self.mean()


def measure(plan: Plan, failed: Mapping[str, str]) -> list[Measured]:
    """Of each row that was chosen or has a result, what there is so far.

    Args:
        failed: the folders of runs that failed.
    """
    measured = [(row, _measured(row, failed)) for row in plan.rows]
    return [m for row, m in measured if row.chosen or m.results]


def _measured(planned: PlannedRow, failed: Mapping[str, str]) -> Measured:
    found = [result_for(run) for run in planned.runs]
    results = [result for result in found if result is not None]
    broken = sum(str(run.folder) in failed for run in planned.runs)
    cfg = planned.runs[0].cfg
    depth, pixels = cfg.MODEL.RESNETS.DEPTH, cfg.INPUT.MIN_SIZE_TEST
    return Measured(planned.row, depth, pixels, results, broken, len(found) - len(results) - broken)


def write_report(plan: Plan, failed: Mapping[str, str]) -> None:
    """``results.md``, ``results.csv`` and ``results.png`` in the table's folder, each at once."""
    from .plot import draw  # matplotlib takes a second to import

    write_atomically(plan.folder / "results.md", markdown(plan, failed))
    write_atomically(plan.folder / "results.csv", as_csv(plan, failed))
    draw(plan, measure(plan, failed), plan.folder / "results.png")


# ---------------------------------------------------------------- Markdown


def markdown(plan: Plan, failed: Mapping[str, str]) -> str:
    """The table, how it was made, and whether the paper's order holds."""
    rows = measure(plan, failed)
    head = ["", "AP", "AP50", "AP75", "seeds", "paper's AP", "AP50", "AP75", "time a run"]
    timed = any(m.row.milliseconds for m in rows)
    if timed:
        head += ["here", "ms a picture", "paper's"]
    lines = [head, ["---"] * len(head), *(_line(m, timed=timed) for m in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    blocks = [f"## {plan.table.title}", _how(plan, rows), table, _order(rows), *_notes(rows)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _line(m: Measured, *, timed: bool) -> list[str]:
    paper = [m.row.ap, m.row.ap50, m.row.ap75]
    taken = [result.seconds for result in m.results if result.same_as is None]
    speed = [f"{x:.3g}" if x else "" for x in (m.milliseconds, m.row.milliseconds)]
    return [
        m.row.label,
        *(_cell(m, metric) for metric in ("ap", "ap50", "ap75")),
        str(len(m.results)),
        *("" if x is None else f"{x:.1f}" for x in paper),
        minutes(mean(taken)) if taken else "",
        *([f"depth {m.depth}, {m.pixels} pixels", *speed] if timed else []),
    ]


def _cell(m: Measured, metric: str) -> str:
    value, spread = m.mean(metric), m.spread(metric)
    if value is not None:
        return f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"
    if m.diverged:
        return f"diverged at step {m.diverged[0].diverged_at:,}" if metric == "ap" else ""
    return ("failed" if m.failed else "not run yet") if metric == "ap" else ""


def _how(plan: Plan, rows: Sequence[Measured]) -> str:
    cfg = plan.runs[0].cfg
    results = [result for m in rows for result in m.results]
    data = "the rows' own configurations" if plan.options.data == PAPER else plan.options.data
    evaluated = cfg.DATASETS.OWN.TEST_JSON or ", ".join(cfg.DATASETS.TEST)
    text = (
        f"Measured: {data}, {cfg.SOLVER.MAX_ITER:,} steps of {cfg.SOLVER.IMS_PER_BATCH} pictures, "
        f"evaluated on {evaluated}"
    )
    if plan.options.overrides:
        text += f", {' '.join(plan.options.overrides)}"
    if results:
        used = results[-1]
        text += (
            f"; {used.device}, torch {used.versions['torch']}, "
            f"detectron2 {used.versions['detectron2']}"
        )
    text = f"{text}. Paper: {plan.table.data}."
    if plan.options.data != PAPER:
        text += " Rows differ as the paper's do; network, schedule and all else are the data's."
    if any(m.spread() is not None for m in rows):
        text += " ± is the standard deviation over seeds."
    if any(m.row.milliseconds for m in rows):
        text += (
            " Milliseconds are those of the evaluation, with whatever else ran at the time; the "
            "paper's are an Nvidia M40's."
        )
    return text


def _notes(rows: Sequence[Measured]) -> list[str]:
    notes = []
    for m in rows:
        for result in m.diverged:
            if m.mean() is not None:
                notes.append(
                    f"- {m.row.label}: seed {result.seed} diverged at step "
                    f"{result.diverged_at:,}; the mean is that of the others."
                )
        if m.failed:
            notes.append(f"- {m.row.label}: {m.failed} of its runs failed.")
        if m.waiting:
            notes.append(f"- {m.row.label}: {m.waiting} of its runs have not ended.")
        twins = sorted({result.same_as for result in m.results if result.same_as})
        if twins:
            notes.append(f"- {m.row.label}: has the settings of, and is, {', '.join(twins)}.")
    return ["\n".join(notes)] if notes else []


# ---------------------------------------------------------------- the order


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two lists of numbers for the same things; None where either is constant.

    Pairs in the same order less those in the opposite order, relative to the geometric mean of how
    many pairs are no ties in the one list and in the other (Kendall, 1945).
    """

    def sign(x: float) -> int:
        return (x > 0) - (x < 0)

    pairs = [
        (sign(a - b), sign(c - d))
        for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)
    ]
    untied = [sum(abs(pair[i]) for pair in pairs) for i in (0, 1)]
    return sum(x * y for x, y in pairs) / sqrt(untied[0] * untied[1]) if all(untied) else None


def _order(rows: Sequence[Measured]) -> str:
    """Whether the rows come in the paper's order."""
    known = [m for m in rows if m.row.ap is not None and m.rank is not None]
    known.sort(key=lambda m: m.row.ap or 0.0)
    tau = kendall_tau([m.row.ap or 0.0 for m in known], [m.rank or 0.0 for m in known])
    if tau is None:
        return ""
    text = (
        f"Order of the {len(known)} rows by AP, against the paper's: Kendall's tau is {tau:.2f} "
        "(1: the same, 0: unrelated, -1: reversed). "
    )
    swapped = [_swap(a, b) for a, b in pairwise(known) if _is_swapped(a, b)]
    if not swapped:
        return text + "No neighbours in the paper's order are swapped."
    return text + f"Neighbours in the paper's order that are swapped here: {'; '.join(swapped)}."


def _is_swapped(worse: Measured, better: Measured) -> bool:
    """Of two rows in the paper's order."""
    return worse.row.ap != better.row.ap and (worse.rank or 0.0) > (better.rank or 0.0)


def _swap(worse: Measured, better: Measured) -> str:
    gap = (worse.rank or 0.0) - (better.rank or 0.0)
    text = (
        f"{better.row.label} is {gap:.1f} below {worse.row.label}, in the paper "
        f"{(better.row.ap or 0.0) - (worse.row.ap or 0.0):.1f} above it"
    )
    spreads = [m.spread() for m in (worse, better)]
    if all(s is not None for s in spreads) and gap <= sqrt(sum((s or 0.0) ** 2 for s in spreads)):
        text += " (within the spread of the seeds)"
    return text


# ---------------------------------------------------------------- CSV


def as_csv(plan: Plan, failed: Mapping[str, str]) -> str:
    """A line a row, means and standard deviations over its seeds."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    metrics, times = ("ap", "ap50", "ap75"), ("milliseconds", "paper_milliseconds")
    measured = [x for metric in metrics for x in (metric, f"{metric}_std")]
    paper = [f"paper_{metric}" for metric in metrics]
    writer.writerow(
        ["table", "row", "label", "seeds", "diverged", *measured, *paper, "seconds_a_run", *times]
    )
    for m in measure(plan, failed):
        values = [x for metric in metrics for x in (m.mean(metric), m.spread(metric))]
        taken = [result.seconds for result in m.results if result.same_as is None]
        writer.writerow(
            [
                *(plan.table.name, m.row.name, m.row.label, len(m.results), len(m.diverged)),
                *("" if x is None else round(x, 3) for x in values),
                *("" if x is None else x for x in (m.row.ap, m.row.ap50, m.row.ap75)),
                round(mean(taken), 1) if taken else "",
                *("" if x is None else x for x in (m.milliseconds, m.row.milliseconds)),
            ]
        )
    return file.getvalue()
