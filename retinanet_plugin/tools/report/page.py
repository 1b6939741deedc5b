"""The values that ``report.html`` shows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...data.images import read_image
from ...html_page import image_tag, render
from .charts import recall_chart, score_chart, training_charts
from .datasets import Dataset
from .error_kinds import KINDS, NAMES
from .run import Run
from .set_report import Results, SetReport

_HERE = Path(__file__).parent
_DASH = "\u2013"  # for what is not defined or not known
_FIRST = 3  # images of each list; the others are folded
_MIN_SCORE = 0.05  # of the slider, so of a detection that is drawn
_MAX_BOXES = 100  # detections drawn in an image
_EXTREMES = 6  # classes at either end that stand for more than twice as many
_MATRIX_CLASSES = 20  # the confusion of more is a list
_CONFUSIONS = 30  # in that list
_METRICS = {key: key for key in ("AP", "AP50", "AP75")}
_METRICS |= {"APs": "AP small", "APm": "AP medium", "APl": "AP large"}
_KINDS = {
    "class": ("wrong class", "The box fits, but its class is wrong: see the confusion."),
    "fit": ("poor fit", "The class is right, but the box fits poorly: IoU under 0.5."),
    "both": ("class and fit", "Near an object, with a wrong class and a poor fit."),
    "duplicate": ("duplicate", "A second box on an object that was already detected."),
    "background": ("background", "Nothing is annotated there."),
    "missed": ("missed", "Objects without any detection near them."),
}


def report_page(
    run: Run, train: Sequence[Dataset], test: Sequence[Dataset], test_sets: Sequence[SetReport]
) -> str:
    """Returns the HTML of a report."""
    training_boxes: dict[str, int] = next((d.boxes_by_class for d in train if not d.missing), {})
    sets = []
    for i, (dataset, test_set) in enumerate(zip(test, test_sets, strict=True)):
        values = {
            "prefix": f"set-{i}",
            "heading": test_set.name if len(test_sets) > 1 else "",
            "test_set": test_set,
            "steps": list(test_set.history.get("AP", ())),
        }
        if test_set.results:
            values |= _values(test_set.results, f"set-{i}", dataset.files, training_boxes)
        sets.append(values)
    return render(
        _HERE / "report.html",
        title=f"Report of {'/'.join(Path(run.folder).parts[-2:])}",  # the last is often "output"
        script=(_HERE / "report.js").read_text(encoding="utf-8"),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        show=_show,
        run=run,
        lead=_lead(run, train, test),
        charts=training_charts(run, test_sets),
        has_validation=any(name.startswith("validation/") for name in run.series),
        metric_names=_METRICS,
        kind_names=_KINDS,
        sets=sets,
    )


def _lead(run: Run, train: Sequence[Dataset], test: Sequence[Dataset]) -> str:
    of_all = f" of {run.max_steps:,}" if run.steps < run.max_steps else ""
    parts = [f"Trained for {run.steps:,} steps{of_all}"]
    for datasets, word in ((train, "on"), (test, "tested on")):
        sizes = [f"{len(d.files):,} images" for d in datasets if not d.missing]
        if sizes:
            parts.append(f"{word} {' and '.join(sizes)}")
    return f"{', '.join(parts)}."


def _values(
    results: Results, prefix: str, files: Mapping[Any, str], training_boxes: dict[str, int]
) -> dict[str, Any]:
    """Returns what the template shows of one test set, in addition to its results."""
    counts, names, score = results.counts, results.matches.class_names, results.counts.best_score
    at_best = round(100 * score)
    ranked = sorted(results.accuracies[:-1], key=lambda a: -(a.metrics["AP"] or 0))
    known = [a for a in ranked if a.metrics["AP"] is not None]
    extremes = [*known[:_EXTREMES], *known[_EXTREMES:][-_EXTREMES:]]
    is_small = len(names) <= _MATRIX_CLASSES
    return {
        "classes": names,
        "score": max(_MIN_SCORE, score),
        "precision": counts.precision[-1, at_best],
        "recall": counts.recall[-1, at_best],
        "recall_chart": recall_chart(results.accuracies, prefix),
        "score_chart": score_chart(counts, prefix),
        "ranked": ranked,
        "extremes": extremes if len(ranked) > 2 * _EXTREMES else ranked,
        "training_boxes": training_boxes,
        "longest": max(5.0, *(results.errors.gains[kind] or 0.0 for kind in KINDS)),
        "matrices": {s: _cells(m) for s, m in results.confusions.items() if is_small},
        "mistakes": {
            s: _mistakes(m, [*names, "(background)"]) for s, m in results.confusions.items()
        },
        "examples": {
            title: images
            for title, indices in (("Worst", results.worst), ("Best", results.best))
            if (images := _images(results, files, indices))
        },
        "first": _FIRST,
        "data": {key: values.tolist() for key, values in vars(counts).items()},
    }


def _cells(matrix: np.ndarray) -> list[list[tuple[int, float]]]:
    """Returns each count and its share of the row; in the last row, of the column."""
    whole = np.repeat(matrix.sum(axis=1, keepdims=True), len(matrix), axis=1)
    whole[-1] = matrix.sum(axis=0)
    shares = matrix / np.maximum(whole, 1)
    return [
        list(zip(*row, strict=True))
        for row in zip(matrix.tolist(), shares.round(3).tolist(), strict=True)
    ]


def _mistakes(matrix: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """Returns what it is, what it is detected as, and how often; the most frequent first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = np.stack(np.unravel_index(order, wrong.shape), axis=1).tolist()
    return [(names[row], names[k], int(wrong[row, k])) for row, k in cells if wrong[row, k]]


def _images(
    results: Results, files: Mapping[Any, str], indices: Sequence[int]
) -> list[dict[str, Any]]:
    """Images and the boxes to draw in them, except images that cannot be read."""
    truths, detections = results.matches.truths, results.matches.detections
    kinds = [NAMES[kind] for kind in results.errors.kinds]
    scores = dict(zip(detections.truth.tolist(), detections.score.tolist(), strict=True))
    images = []
    for i in indices:
        path = Path(files[results.matches.image_ids[i]])
        try:
            rgb = read_image(str(path), "RGB")
        except Exception:  # PIL's decoders raise nearly everything on damaged files
            continue
        boxes = [
            ("crowd" if truths.crowd[m] else "truth", scores.get(m), truths.label[m], truths.box[m])
            for m in np.flatnonzero(truths.image == i)
        ]
        rows = np.flatnonzero(detections.image == i)
        drawn = [
            (kinds[n], float(detections.score[n]), detections.label[n], detections.box[n])
            for n in rows[np.argsort(-detections.score[rows], kind="stable")][:_MAX_BOXES]
            if kinds[n] != "ignored" and detections.score[n] >= _MIN_SCORE
        ]
        # High scores are drawn over low ones, and mistakes over everything.
        drawn.sort(key=lambda box: (box[0] != "right", box[1]))
        images.append(
            {
                "name": path.name,
                "tag": image_tag(rgb, alt=f"test image {path.name}"),
                "size": rgb.shape[:2],
                "boxes": [(*box, xywh.round(1).tolist()) for *box, xywh in (*boxes, *drawn)],
            }
        )
    return images


def _show(value: float | None, digits: int = 1) -> str:
    return f"{value:,.{digits}f}" if value is not None and math.isfinite(value) else _DASH
