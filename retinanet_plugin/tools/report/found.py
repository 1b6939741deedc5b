"""A report's page: what a model found on a test set, where it errs, and on which pictures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...data.images import read_picture
from ...evaluation.matches import ClassAccuracy, Confusion, ThresholdCurve, Thresholds
from ...html_page import data, image, table, text
from .blocks import DASH, bars, note, numbers, section, show
from .error_kinds import Errors
from .numbers import TestSet
from .pictures import Picture, Pictures
from .run import Run

MAX_MATRIX = 20  # classes; the confusion of more is a list
_FIRST = 3  # pictures of each list; the others come at the press of a button
_LEAST_SCORE = 0.05  # of a detection that can be drawn
_EXTREMES = 6  # classes at either end that stand for more than twice as many
_MAX_DRAWN = 100  # detections of a picture
_WITHOUT_SCRIPT = range(0, 101, 10)  # which of the 101 numbers of a curve stand in its table

# In a few words; what it means, and what it asks for.
_KINDS = {
    "class": ("wrong class", "The box fits, the class does not: see the confusion."),
    "place": ("poor fit", "The class is right, the box fits poorly: IoU under 0.5."),
    "both": ("class and fit", "Near an object, with another class and a poor fit."),
    "duplicate": ("duplicate", "One more box on an object that was found."),
    "background": ("background", "Nothing was annotated there."),
    "missed": ("missed", "Objects that no detection came near."),
}  # fmt: skip


def test_set_parts(
    test_set: TestSet, room: str, before: str, run: Run
) -> tuple[list[tuple[str, str]], str]:
    """The sections that its numbers allow.

    Args:
        room: a word, unique on the page.
        before: what the headings begin with.

    Returns:
        their anchors and headings, and the HTML.
    """
    parts = [
        ("pictures", "Pictures", _pictures(test_set)),
        ("errors", "Errors", _errors(test_set)),
        ("curves", "Precision and recall", _curves(test_set)),
        ("classes", "Classes and sizes", _classes(test_set, run)),
        ("confusion", "Confusion", _confusion(test_set)),
    ]
    known = [(f"{room}-{a}", f"{before}{title}", html) for a, title, html in parts if html]
    if not known:
        return [], ""
    sections = "\n".join(section(*part) for part in known)
    return (
        [(anchor, title) for anchor, title, _ in known],
        f'<div data-test-set id="{room}">{sections}{data(f"{room}-data", _for_script(test_set))}'
        "</div>",
    )


def _for_script(test_set: TestSet) -> dict[str, Any]:
    """What report.js draws and filters."""
    found: dict[str, Any] = {
        "classes": test_set.class_names,
        "threshold": 0.5,
        "kinds": {kind: name for kind, (name, _) in _KINDS.items()},
    }
    if test_set.thresholds and test_set.all and test_set.classes:
        thresholds = test_set.thresholds
        if thresholds.all.best is not None:
            found["threshold"] = max(_LEAST_SCORE, thresholds.scores[thresholds.all.best])
        found["scores"] = thresholds.scores
        found["all"] = _shares(thresholds.all)
        found["each"] = [_shares(curve) for curve in thresholds.classes]
        found["mean"] = _curves_of(test_set.all)
        found["curves"] = [_curves_of(accuracy) for accuracy in test_set.classes]
    if test_set.confusions:
        found["confusions"] = [
            {"threshold": c.threshold, "cells": _cells(c, len(test_set.class_names))}
            for c in test_set.confusions
        ]
    if test_set.examples:
        found["pictures"] = [_boxes(picture) for picture in _all_pictures(test_set.examples)]
    return found


def _shares(curve: ThresholdCurve) -> dict[str, Any]:
    return {
        "boxes": curve.boxes,
        "found": curve.true_positives,
        "detections": curve.detections,
        **{key: _short(getattr(curve, key)) for key in ("precision", "recall", "f1")},
    }


def _curves_of(accuracy: ClassAccuracy) -> dict[str, list[float | None]]:
    return {iou: _short(curve) for iou, curve in accuracy.curves.items()}


def _short(values: Sequence[float | None]) -> list[float | None]:
    return [None if v is None else round(v, 4) for v in values]


# ---------------------------------------------------------------- pictures


def _pictures(test_set: TestSet) -> str:
    """Images with nothing on them yet: the script draws the boxes."""
    examples = test_set.examples
    if not examples or not (examples.worst or examples.best):
        return ""
    with tqdm(_all_pictures(examples), desc="pictures", unit="picture", leave=False) as pictures:
        figures = [_figure(picture, i) for i, picture in enumerate(pictures)]
    count = len(examples.worst)
    return (
        note(
            f"Where it does worst and best, by F1 of each picture's boxes, of "
            f"{examples.considered:,} test pictures with boxes or detections."
        )
        + '<div data-controls="class score" class="sticky"></div>'
        + '<p data-tally></p><div data-controls="shown"></div>'
        + _shots("Worst", figures[:count])
        + _shots("Best", figures[count:])
    )


def _all_pictures(examples: Pictures) -> list[Picture]:
    return [*examples.worst, *examples.best]


def _shots(title: str, figures: Sequence[str]) -> str:
    if not figures:
        return ""
    more = len(figures) - _FIRST
    button = f'<button class="more" hidden>Show {more} more</button>' if more > 0 else ""
    later = [figure.replace('"shot"', '"shot later"', 1) for figure in figures[_FIRST:]]
    return (
        f'<div><h3>{title}</h3><div class="shots">{"".join([*figures[:_FIRST], *later])}</div>'
        f"{button}</div>"
    )


def _figure(picture: Picture, index: int) -> str:
    name = Path(picture.file).name
    try:
        rgb, lost = read_picture(picture.file, "RGB"), ""
    except Exception:  # PIL's decoders raise nearly everything on damaged files
        rgb = np.full((picture.height or 480, picture.width or 640, 3), 128, np.uint8)
        lost = " (cannot be read any more)"
    errors = f"{picture.errors} error{'' if picture.errors == 1 else 's'}"
    return (
        f'<figure class="shot" data-picture="{index}" data-width="{rgb.shape[1]}" '
        f'data-height="{rgb.shape[0]}"><div class="frame">'
        f"{image(rgb, alt=f'test picture {name}')}</div><figcaption><b>{text(name)}</b>{lost}<br>"
        f'<span class="tally">{errors}</span></figcaption></figure>'
    )


def _boxes(picture: Picture) -> dict[str, Any]:
    drawn = [d for d in picture.detections if d.score >= _LEAST_SCORE][:_MAX_DRAWN]
    return {
        "truths": [
            [_tenths(t.box), t.label, t.crowd, None if t.found_score is None else t.found_score]
            for t in picture.truths
        ],
        "detections": [[_tenths(d.box), d.label, d.score, d.kind] for d in drawn],
    }


def _tenths(box: Sequence[float]) -> list[float]:
    return [round(float(side), 1) for side in box]


# ---------------------------------------------------------------- errors


def _errors(test_set: TestSet) -> str:
    errors = test_set.errors
    if errors is None:
        return ""
    entries = [
        (
            _KINDS[kind.kind][0],
            kind.d_ap50,
            f"+{show(kind.d_ap50)}",
            f"{_KINDS[kind.kind][1]} {kind.count_at_threshold:,} of them.",
        )
        for kind in errors.kinds
    ]
    return (
        note(
            f"By how much AP50 ({show(errors.ap50)}) would rise if one kind of error alone were "
            "mended (TIDE): the longest bar is where work pays most. Below each bar, how many "
            f"there are at the score {errors.threshold:.2f}."
        )
        + bars(entries, full=max(5, *(kind.d_ap50 or 0 for kind in errors.kinds)))
        + note(
            f"All false detections together cost {show(errors.d_ap50_false_positives)}, all missed "
            f"boxes {show(errors.d_ap50_false_negatives)}."
        )
        + _errors_by_class(test_set, errors)
    )


def _errors_by_class(test_set: TestSet, errors: Errors) -> str:
    rows = [
        [name, *(f"{kind.count_by_class[i]:,}" for kind in errors.kinds)]
        for i, name in enumerate(test_set.class_names)
    ]
    header = ["class", *(_KINDS[k.kind][0] for k in errors.kinds)]
    return numbers(header, rows, title=f"By class, at the score {errors.threshold:.2f}")


# ---------------------------------------------------------------- accuracy


def _curves(test_set: TestSet) -> str:
    if not (test_set.thresholds and test_set.classes and test_set.all):
        return ""
    return (
        note(
            "Each score is a choice: a low one finds more boxes (recall), a high one errs less "
            "(precision)."
        )
        + '<div data-controls="class score"></div><p data-tally></p><div class="charts">'
        + '<figure><h3>Precision over recall, by class</h3><div data-curve="recall"></div>'
        + _recall_table(test_set)
        + "</figure><figure><h3>What each score gives</h3>"
        + f'<div data-curve="score"></div>{_score_table(test_set.thresholds)}</figure></div>'
    )


def _recall_table(test_set: TestSet) -> str:
    rows = [
        [accuracy.name or "mean", *(show(curve[i], 2) for i in _WITHOUT_SCRIPT)]
        for accuracy in (*(test_set.classes or ()), *filter(None, [test_set.all]))
        if (curve := accuracy.curves.get("0.50"))
    ]
    return numbers(["precision at recall", *(f"{i / 100:.1f}" for i in _WITHOUT_SCRIPT)], rows)


def _score_table(thresholds: Thresholds) -> str:
    own = thresholds.all
    rows = [
        [
            f"{thresholds.scores[i]:.1f}",
            *(show(c[i], 2) for c in (own.precision, own.recall, own.f1)),
        ]
        for i in _WITHOUT_SCRIPT
    ]
    return numbers(["score at least", "precision", "recall", "F1"], rows)


def _classes(test_set: TestSet, run: Run) -> str:
    if not (test_set.classes and test_set.all):
        return ""
    ranked = sorted(test_set.classes, key=lambda a: -1 if a.ap is None else a.ap, reverse=True)
    training = next(
        (d.boxes_by_class for d in run.datasets if d.split == "training" and d.boxes_by_class), None
    )
    taught = dict(zip(test_set.class_names, training, strict=False)) if training else {}
    rows = [
        [
            a.name,
            *([f"{taught[a.name]:,}" if a.name in taught else DASH] if taught else []),
            f"{a.boxes:,}",
            *map(show, (a.ap, a.ap50, a.ap75, a.ap_small, a.ap_medium, a.ap_large)),
        ]
        for a in ranked
    ]
    header = ["class", *(["training boxes"] if taught else []), "test boxes", "AP", "AP50", "AP75"]
    all_ = test_set.all
    sizes = [
        ("small", all_.ap_small, "under 32 x 32 pixels"),
        ("medium", all_.ap_medium, "up to 96 x 96"),
        ("large", all_.ap_large, "above"),
    ]
    title, drawn = "AP by class", ranked
    if len(ranked) > 2 * _EXTREMES:
        title = f"AP by class: the best and the worst {_EXTREMES} of {len(ranked):,}"
        drawn = [a for a in ranked if a.ap is not None]
        drawn = [*drawn[:_EXTREMES], *drawn[_EXTREMES:][-_EXTREMES:]]
    return (
        f'<div class="charts"><div><h3>{title}</h3>'
        + bars([(a.name or "", a.ap, show(a.ap), "") for a in drawn], full=100)
        + "</div><div><h3>AP by size of the boxes</h3>"
        + bars(
            [
                (name, ap, show(ap), f"{about}: {boxes:,} boxes")
                for (name, ap, about), boxes in zip(sizes, all_.boxes_by_size, strict=True)
            ],
            full=100,
        )
        + "</div></div>"
        + numbers([*header, "small", "medium", "large"], rows)
    )


# ---------------------------------------------------------------- confusion


def _confusion(test_set: TestSet) -> str:
    if not test_set.confusions:
        return ""
    names = test_set.class_names
    first = test_set.confusions[0]
    about = note(
        "What became of each box: a row is what it is, a column what it was detected as, "
        "matched at IoU 0.50 as for AP. The last column holds boxes missed, the last row "
        "detections of nothing, or of a box that another detection has found."
    )
    if len(names) <= MAX_MATRIX:
        return f"{about}<div data-confusion></div>{_matrix(first, names)}"
    mistakes = sorted(
        ((count, row, column) for row, column, count in first.counts if row != column), reverse=True
    )
    words = [*names, "(background)"]
    rows = [[words[row], words[column], f"{count:,}"] for count, row, column in mistakes[:30]]
    return note(
        f"The most frequent confusions at the score {first.threshold:.2f}, at IoU 0.50."
    ) + table(["what it is", "detected as", "boxes"], rows, numeric=[2])


def _cells(confusion: Confusion, background: int) -> list[tuple[int, int, int, float]]:
    """Row, column, count, and its share of the row; of the last row, that of the column."""
    rows, columns = Counter[int](), Counter[int]()
    for row, column, count in confusion.counts:
        rows[row] += count
        columns[column] += count
    return [
        (
            row,
            column,
            count,
            round(count / (columns[column] if row == background else rows[row]), 3),
        )
        for row, column, count in confusion.counts
    ]


def _matrix(confusion: Confusion, names: Sequence[str]) -> str:
    cells = {
        (row, column): (count, share) for row, column, count, share in _cells(confusion, len(names))
    }
    head = "".join(f"<th>{text(name)}</th>" for name in (*names, "missed"))
    lines = []
    for row, name in enumerate((*names, "no box")):
        line = []
        for column in range(len(names) + 1):
            count, share = cells.get((row, column), (0, 0.0))
            kind = "hit" if row == column else "miss"
            line.append(
                f'<td class="{kind}" data-cell="{row},{column}" style="--share:{share}">'
                f"{f'{count:,}' if count else ''}</td>"
            )
        lines.append(f"<tr><th>{text(name)}</th>{''.join(line)}</tr>")
    return (
        '<div class="scroll" tabindex="0"><table class="confusion"><thead><tr>'
        f'<th class="corner">is \\ detected as</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
