"""A table's results as Markdown, CSV and a picture, beside the paper's."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from math import nan, sqrt

from retinanet_plugin.utils import write_csv, write_figure, write_text

from .measured import Measured, measure
from .plan import PAPER, Plan
from .plot import draw
from .progress import minutes

_PAPERS = ("paper's AP", "paper's AP50", "paper's AP75")


def write_report(plan: Plan, failed: Mapping[str, str]) -> None:
    """``results.md``, ``results.csv`` and ``results.png`` in the table's folder."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    rows = measure(plan, failed)
    write_text(plan.folder / "results.md", markdown(plan, failed))
    write_csv(plan.folder / "results.csv", _columns(plan.table.name, rows))
    write_figure(plan.folder / "results.png", draw(plan, rows))


# ---------------------------------------------------------------- Markdown


def markdown(plan: Plan, failed: Mapping[str, str]) -> str:
    """The table, how it was made, and whether the paper's order holds."""
    rows = measure(plan, failed)
    head = ["", "AP", "AP50", "AP75", "seeds", *_PAPERS, "time a run"]
    timed = any(m.row.milliseconds for m in rows)
    if timed:
        head += ["here", "ms a picture", "paper's ms"]
    lines = [head, ["---"] * len(head), *(_line(m, timed=timed) for m in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    blocks = [f"## {plan.table.title}", _how(plan, rows), table, _order(rows), *_notes(rows)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _line(m: Measured, *, timed: bool) -> list[str]:
    paper = [m.row.ap, m.row.ap50, m.row.ap75]
    speed = [f"{x:.3g}" if x else "" for x in (m.milliseconds, m.row.milliseconds)]
    return [
        m.row.label,
        *(_cell(m, metric) for metric in ("ap", "ap50", "ap75")),
        str(len(m.results)),
        *("" if x is None else f"{x:.1f}" for x in paper),
        "" if m.seconds is None else minutes(m.seconds),
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
    steps = sorted({run.max_iter for run in plan.runs})
    batches = sorted({run.cfg.SOLVER.IMS_PER_BATCH for run in plan.runs})
    results = [result for m in rows for result in m.results]
    data = "the rows' own configurations" if plan.options.data == PAPER else plan.options.data
    evaluated = cfg.DATASETS.OWN.TEST_JSON or ", ".join(cfg.DATASETS.TEST)
    text = (
        f"Measured: {data}, {' or '.join(f'{x:,}' for x in steps)} steps of "
        f"{' or '.join(map(str, batches))} pictures, "
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


def _columns(table: str, rows: Sequence[Measured]) -> dict[str, list[float | str]]:
    """A line a row, means and standard deviations over its seeds; empty where there is none."""

    def numbers(values: Iterable[float | None]) -> list[float | str]:
        return [nan if value is None else value for value in values]

    columns: dict[str, list[float | str]] = {
        "table": [table for _ in rows],
        "row": [m.row.name for m in rows],
        "label": [m.row.label for m in rows],
        "seeds": [len(m.results) for m in rows],
        "diverged": [len(m.diverged) for m in rows],
    }
    for metric in ("ap", "ap50", "ap75"):
        columns[metric] = numbers(m.mean(metric) for m in rows)
        columns[f"{metric}_std"] = numbers(m.spread(metric) for m in rows)
        columns[f"paper_{metric}"] = numbers(getattr(m.row, metric) for m in rows)
    columns["seconds"] = numbers(m.seconds for m in rows)
    columns["milliseconds"] = numbers(m.milliseconds for m in rows)
    columns["paper_milliseconds"] = numbers(m.row.milliseconds for m in rows)
    return columns
