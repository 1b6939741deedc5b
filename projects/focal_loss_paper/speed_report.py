"""Speed and accuracy as numbers, as a table, and as the paper's figure 2 beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retinanet_plugin.evaluation.metrics import METRICS

from .speed_chart import colours_of, draw_paper, finish, name_point
from .subjects import Measured
from .tables import TABLES

_GREY = "#5b6670"


def report(results: Sequence[Measured], machine: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers, as JSON."""
    table = TABLES["e_speed"]
    return {
        "machine": dict(machine),
        "models": [_one(result) for result in results],
        "paper": {
            "data": table.data,
            "device": "Nvidia M40",
            "rows": [
                {"name": r.name, "AP": r.ap, "milliseconds": r.milliseconds} for r in table.rows
            ],
        },
    }


def _one(result: Measured) -> dict[str, Any]:
    cfg, row = result.subject.cfg, result.subject.row
    return {
        "name": result.subject.name,
        "backbone": result.subject.backbone,
        "weights": cfg.MODEL.WEIGHTS or "random",
        "timed_on": result.pictures,
        "evaluated_on": result.subject.dataset if result.metrics else None,
        "height": result.shape[0],
        "width": result.shape[1],
        "dtype": cfg.TEST.DTYPE,
        "milliseconds": {
            "median": result.quantile(0.5),
            "quartiles": [result.quantile(0.25), result.quantile(0.75)],
            "all": [time * 1000 for time in result.times],
        },
        "metrics": dict(result.metrics) if result.metrics else None,
        "metrics_from": result.metrics_from or None,
        "paper": {"AP": row.ap, "milliseconds": row.milliseconds} if row else None,
    }


def markdown(results: Sequence[Measured], machine: Mapping[str, Any]) -> str:
    """The table, and what is to be known about it."""
    head = ["model", "backbone", "pictures", "ms a picture: median (quartiles)", *METRICS]
    rows = [_row(result) for result in results]
    if any(result.subject.row for result in results):
        head += ["the paper: AP", "ms on an M40"]
        for line, result in zip(rows, results, strict=True):
            row = result.subject.row
            line += [f"{row.ap:g}", f"{row.milliseconds:g}"] if row else ["", ""]
    lines = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])
    pictures = ", ".join(sorted({result.pictures for result in results}))
    notes = [
        f"{machine['device']}, {machine['threads']} threads of the CPU, torch {machine['torch']}; "
        f"timed on {pictures}: {len(results[0].times)} runs of each model, in turn, one picture at "
        "a time."
    ]
    sources = [f"{r.subject.dataset}, by {r.metrics_from}" if r.metrics else "" for r in results]
    for source in filter(None, dict.fromkeys(sources)):
        own = [r.subject.name for r, s in zip(results, sources, strict=True) if s == source]
        notes.append(f"AP on {source}: {', '.join(own)}.")
    random = [r.subject.name for r in results if not r.subject.cfg.MODEL.WEIGHTS]
    if random:
        notes.append(f"Random weights, made to score as trained ones: {', '.join(random)}; no AP.")
    return "\n\n".join([lines, *notes]) + "\n"


def _row(result: Measured) -> list[str]:
    low, middle, high = map(result.quantile, (0.25, 0.5, 0.75))
    metrics = result.metrics or {}
    height, width = result.shape
    dtype = result.subject.cfg.TEST.DTYPE
    return [
        result.subject.name,
        result.subject.backbone,
        f"{height} x {width}, {dtype}",
        f"{_three(middle)} ({_three(low)} to {_three(high)})",
        *(f"{metrics[key]:.1f}" if key in metrics else "" for key in METRICS),
    ]


def _three(number: float) -> str:
    """At least three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


# ---------------------------------------------------------------- figure


def draw(results: Sequence[Measured], machine: Mapping[str, Any]) -> Figure:
    """Ours on the left, as AP over time or, without any AP, as bars; the paper on the right."""
    known = [result for result in results if result.metrics]
    height = 6.2 if known else max(5.2, 1.8 + 0.42 * len(results))
    figure = Figure(figsize=(14, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = colours_of(result.subject.backbone for result in results)
    if known:
        _draw_points(left, results, colours)
    else:
        _draw_bars(left, results, colours)
    data = ", ".join(sorted({result.subject.dataset for result in known}))
    pictures = ", ".join(sorted({result.pictures for result in results}))
    left.set_title(f"Here: {data or pictures}, {machine['device']}")
    left.set_xlabel("milliseconds a picture: median, and quartiles")
    draw_paper(right)
    start = "Speed against accuracy" if known else "Speed here, and the paper's against accuracy"
    figure.suptitle(
        f"{start}. Machines and data differ: compare the shapes, not the numbers", size=13
    )
    return figure


def _draw_points(axes: Axes, results: Sequence[Measured], colours: Mapping[str, str]) -> None:
    """A point a model; those of one backbone that differ in picture size are joined."""
    results = sorted(results, key=lambda result: result.quantile(0.5))
    for backbone in dict.fromkeys(result.subject.backbone for result in results):
        own = [r for r in results if r.subject.backbone == backbone and r.metrics]
        x = [r.quantile(0.5) for r in own]
        y = [r.metrics["AP"] for r in own if r.metrics]
        if len({r.shape for r in own}) == len(own) > 1:
            axes.plot(x, y, color=colours[backbone], linewidth=1.5, zorder=1)
        if own:
            axes.errorbar(
                x,
                y,
                xerr=_spread(own),
                fmt="o",
                color=colours[backbone],
                capsize=3,
                label=backbone,
                clip_on=False,
            )
    # Of two curves the names of one are below, those of the other above.
    sides = list(dict.fromkeys(r.subject.backbone for r in results if r.metrics))
    for i, result in enumerate(results):
        place, backbone = result.quantile(0.5), result.subject.backbone
        if result.metrics:
            above = bool((sides.index(backbone) if len(sides) > 1 else i) % 2)
            aside = 5 if len(sides) > 1 else 0
            point = (place, result.metrics["AP"])
            name_point(
                axes, result.subject.name, point, colours[backbone], above=above, aside=aside
            )
        else:
            axes.axvline(place, color=_GREY, linestyle=":", linewidth=1, zorder=0)
            axes.annotate(
                f"{result.subject.name} (no AP)",
                (place, 0.02),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                size=8,
                color=_GREY,
            )
    axes.margins(x=0.15, y=0.2)
    finish(axes)


def _spread(results: Sequence[Measured]) -> list[list[float]]:
    """From the quartiles to the median, for error bars."""
    return [
        [r.quantile(0.5) - r.quantile(0.25) for r in results],
        [r.quantile(0.75) - r.quantile(0.5) for r in results],
    ]


def _draw_bars(axes: Axes, results: Sequence[Measured], colours: Mapping[str, str]) -> None:
    """A bar a model, in the order given."""
    medians = [result.quantile(0.5) for result in results]
    axes.barh(
        range(len(results)),
        medians,
        0.65,
        color=[colours[result.subject.backbone] for result in results],
        xerr=_spread(results),
        error_kw={"capsize": 3, "ecolor": "#1b1b1b"},
    )
    for i, result in enumerate(results):
        place = result.quantile(0.75) + 0.015 * max(medians)
        axes.text(place, i, _three(medians[i]), va="center", size=9)
    axes.set_yticks(range(len(results)), [result.subject.name for result in results])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
