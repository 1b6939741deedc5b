"""A report's page: what a run came to, how it got there, and what it was."""

from collections.abc import Sequence
from typing import Any

from ...html_page import data, table, text
from .blocks import DASH, note, numbers, section, show, tiles
from .found import test_set_parts
from .numbers import Numbers, TestSet
from .run import Evaluation, Run, Series

_ROWS = 12  # of a table that stands for a curve
_METRICS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75"}
_SIZES = {"APs": "AP small", "APm": "AP medium", "APl": "AP large"}

# Charts of losses: name in metrics.json, for people, style in report.css.
_TOTAL = (("total_loss", "", "s0"),)
_PARTS = (("loss_cls", "classification, ", "s0"), ("loss_box_reg", "boxes, ", "s1"))


def report_body(found: Numbers) -> str:
    """All that follows the heading."""
    sets = found.test_sets
    several = len(sets) > 1
    parts = [
        (f"result-{i}", f"Result on {s.name}" if several else "Result", _result(s, found, several))
        for i, s in enumerate(sets)
    ]
    if not sets:
        parts.append(("result", "Result", note("This run was not evaluated: no AP.")))
    parts.append(("training", "Training", _training(found)))
    rooms = []
    for i, test_set in enumerate(sets):
        before = f"{test_set.name}: " if several else ""
        of_set, content = test_set_parts(test_set, f"set-{i}", before, found.run)
        rooms.append(content)
        parts += [(anchor, title, "") for anchor, title in of_set]
    after = [("speed", "Speed", _speed(found)), ("settings", "Settings", _settings(found.run))]
    links = "".join(f'<a href="#{a}">{text(title)}</a>' for a, title, _ in [*parts, *after])
    return "\n".join(
        [
            f'<p class="lead">{text(_about(found.run))}</p>',
            f"<nav>{links}</nav>",
            '<noscript><p class="note">JavaScript is off: tables stand for the curves, and no '
            "boxes are drawn over the pictures.</p></noscript>",
            *(section(*part) for part in parts if part[2]),
            *rooms,
            *(section(*part) for part in after),
        ]
    )


def _about(run: Run) -> str:
    steps = f"{run.steps:,} steps"
    if run.steps < run.max_steps:
        steps += f" of {run.max_steps:,}"
    said = [f"Trained for {steps}"]
    for split, word in (("training", "on"), ("validation", "validated on"), ("test", "tested on")):
        known = [d for d in run.datasets if d.split == split and d.pictures is not None]
        if known:
            said.append(f"{word} {' and '.join(f'{d.pictures:,} pictures' for d in known)}")
    return f"{', '.join(said)}."


# ---------------------------------------------------------------- result


def _result(test_set: TestSet, found: Numbers, several: bool) -> str:
    """AP and its kin, what they mean, and how many boxes are found at one score."""
    metrics = _metrics(test_set, found.run.last, several)
    left_out = f"Left out, what needs more: {test_set.left_out}" if test_set.left_out else ""
    said = note(left_out) + note(test_set.disagrees or "")
    if not metrics:
        return said or note("This run was not evaluated: no AP.")
    named = {**_METRICS, **_SIZES}
    entries = [(show(metrics[key]), named[key]) for key in named if key in metrics]
    return (
        tiles(entries, kind="result")
        + "<p>AP tells how well the detections, ranked by score, find the boxes, from 0 to 100: "
        "the mean over the classes and over how closely a box must fit (IoU 0.50 to 0.95). "
        "AP50 asks for a loose fit, AP75 for a close one.</p>" + _at_best(test_set) + said
    )


def _metrics(test_set: TestSet, last: Evaluation | None, several: bool) -> dict[str, float | None]:
    """AP by detectron2's names; from metrics.json where nothing else tells."""
    if test_set.all is not None:
        a = test_set.all
        values = (a.ap, a.ap50, a.ap75, a.ap_small, a.ap_medium, a.ap_large)
        return dict(zip((*_METRICS, *_SIZES), values, strict=True))
    start = f"{test_set.name}/bbox/" if several else "bbox/"
    known = last.metrics if last else {}
    return {key.removeprefix(start): v for key, v in known.items() if key.startswith(start)}


def _at_best(test_set: TestSet) -> str:
    thresholds = test_set.thresholds
    if thresholds is None or thresholds.all.best is None:
        return ""
    all_, i = thresholds.all, thresholds.all.best
    recall, precision = all_.recall[i] or 0, all_.precision[i] or 0
    return (
        f"<p>Of the detections that score at least {thresholds.scores[i]:.2f}, "
        f"{precision:.0%} are right, and they find {recall:.0%} of the {all_.boxes:,} boxes: the "
        "best balance of the two (F1, at IoU 0.50).</p>"
    )


# ---------------------------------------------------------------- training


def _training(found: Numbers) -> str:
    run = found.run
    losses, accuracy = _losses(run), _accuracy(found)
    absent = []
    if not losses:
        absent.append("metrics.json tells of no loss.")
    elif not any(name.startswith("validation/") for name in run.series):
        absent.append("No loss was measured on the test set while training.")
    if not accuracy:
        absent.append(
            f"AP has no curve, as it was {'measured once' if run.evaluations else 'not measured'}; "
            "TEST.EVAL_PERIOD evaluates every so many steps."
        )
    charts = [*losses[:1], *accuracy, *losses[1:], *filter(None, [_rate(run)])]
    kind = "charts three" if len(charts) == 3 else "charts"
    return f'<div class="{kind}">{"".join(charts)}</div>{note(" ".join(absent))}'


def _losses(run: Run) -> list[str]:
    charts = []
    for anchor, title, kinds in (("loss", "Loss", _TOTAL), ("parts", "Loss, by part", _PARTS)):
        lines = [
            (label + split, style, series)
            for name, label, own in kinds
            for start, split, style in (
                ("", "training", own),
                ("validation/", "validation", ("s1" if kinds is _TOTAL else own) + " dash"),
            )
            if (series := run.series.get(start + name)) and series.steps
        ]
        if lines:
            y = {"label": "loss", "log": _is_wide(lines)}
            charts.append(_chart(anchor, title, lines, y))
    return charts


def _is_wide(lines: Sequence[tuple[str, str, Series]]) -> bool:
    """Whether a logarithmic axis shows more: a loss that starts far above where it stays."""
    values = sorted(v for _, _, series in lines for v in series.values if v is not None)
    return bool(values) and values[0] > 0 and values[-1] > 20 * values[len(values) // 2]


def _accuracy(found: Numbers) -> list[str]:
    run = found.run
    several = len(found.test_sets) > 1
    charts = []
    for i, test_set in enumerate(found.test_sets):
        start = f"{test_set.name}/bbox/" if several else "bbox/"
        lines = [
            (key, style, series)
            for key, style in (("AP50", "s2"), ("AP", "s0"), ("AP75", "s1 dash"))
            if (series := _over_steps(run.evaluations, start + key)).steps
        ]
        title = f"AP on {test_set.name}" if several else "AP"
        if len(run.evaluations) > 1 and lines:
            y = {"label": "AP", "range": [0, 100]}
            charts.append(_chart(f"ap-{i}", title, lines, y))
    return charts


def _over_steps(evaluations: Sequence[Evaluation], key: str) -> Series:
    known = [(e.step, e.metrics[key]) for e in evaluations if key in e.metrics]
    return Series([step for step, _ in known], [value for _, value in known])


def _rate(run: Run) -> str:
    series = run.series.get("lr")
    if not series or not series.steps:
        return ""
    return _chart("rate", "Learning rate", [("learning rate", "s0", series)], {"label": "rate"})


def _chart(
    identifier: str, title: str, lines: Sequence[tuple[str, str, Series]], y: dict[str, Any]
) -> str:
    """A chart over steps, and its table: (name, style of report.js, series)."""
    spec = {
        "x": {"label": "step"},
        "y": y,
        "series": [
            {"name": name, "style": style, "x": series.steps, "y": _digits(series.values)}
            for name, style, series in lines
        ],
    }
    steps = lines[0][2].steps
    chosen = sorted({steps[i * (len(steps) - 1) // (_ROWS - 1)] for i in range(_ROWS)})
    by_step = [dict(zip(series.steps, series.values, strict=True)) for _, _, series in lines]
    rows = [[f"{step:,}", *(_significant(known.get(step)) for known in by_step)] for step in chosen]
    return (
        f'<figure><h3>{text(title)}</h3><div data-chart="chart-{identifier}"></div>'
        f"{data(f'chart-{identifier}', spec)}"
        f"{numbers(['step', *(name for name, _, _ in lines)], rows)}</figure>"
    )


def _digits(values: Sequence[float | None]) -> list[float | None]:
    return [None if v is None else float(f"{v:.5g}") for v in values]


def _significant(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


# ---------------------------------------------------------------- speed and settings


def _speed(found: Numbers) -> str:
    speed = found.run.speed
    entries = [
        (_duration(speed.training_seconds), "training in all"),
        (_milliseconds(speed.seconds_per_step), "a training step"),
        (show(speed.pictures_per_second), "pictures a second in training"),
        (_milliseconds(speed.seconds_per_picture), "a picture in evaluation, with everything"),
        (_milliseconds(speed.network_seconds_per_picture), "of that the network"),
    ]
    known = [(number, label) for number, label in entries if number != DASH]
    if not known:
        return note("The run's folder does not tell how long anything took.")
    return (note(f"Measured on: {speed.device}.") if speed.device else "") + tiles(
        known, kind="times"
    )


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _settings(run: Run) -> str:
    parts = []
    if run.settings:
        rows = table(["key", "value"], run.settings.items())
        what = f"What differs from the defaults ({len(run.settings):,})"
        parts.append(f"<details><summary>{what}</summary>{rows}</details>")
    else:
        parts.append(note("No setting differs from the defaults."))
    whole = f"<summary>The whole configuration</summary><pre>{text(run.config)}</pre>"
    parts.append(f"<details>{whole}</details>")
    if run.versions:
        parts.append("<h3>Versions</h3>" + table(["what", "version"], run.versions.items()))
    parts.append(note(f"Folder: {run.folder}"))
    return "".join(parts)
