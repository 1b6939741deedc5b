"""The values that ``report.html`` shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from tqdm import tqdm

from ...data.images import read_image
from ...evaluation.matching import Matches
from ...html_page import image_tag, render
from .charts import recall_chart, score_chart, training_charts
from .datasets import Dataset
from .error_kinds import KINDS, NAMES, kinds_of
from .examples import Example
from .run import Run, finite
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
    "duplicate": ("duplicate", "A second box on an object that was found already."),
    "background": ("background", "Nothing is annotated there."),
    "missed": ("missed", "Objects without any detection near them."),
}


def report_page(
    run: Run, train: Sequence[Dataset], test: Sequence[Dataset], test_sets: Sequence[SetReport]
) -> str:
    """The HTML of a report."""
    training_boxes: dict[str, int] = next((d.boxes_by_class for d in train if not d.missing), {})
    sets = [
        {
            "prefix": f"set-{i}",
            "heading": test_set.name if len(test_sets) > 1 else "",
            "test_set": test_set,
            "results": test_set.results,
            **(_values(test_set.results, f"set-{i}", training_boxes) if test_set.results else {}),
        }
        for i, test_set in enumerate(test_sets)
    ]
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
    steps = f"{run.steps:,} steps"
    if run.steps < run.max_steps:
        steps += f" of {run.max_steps:,}"
    parts = [f"Trained for {steps}"]
    for datasets, word in ((train, "on"), (test, "tested on")):
        sizes = [f"{len(d.files):,} images" for d in datasets if not d.missing]
        if sizes:
            parts.append(f"{word} {' and '.join(sizes)}")
    return f"{', '.join(parts)}."


def _values(results: Results, prefix: str, training_boxes: dict[str, int]) -> dict[str, Any]:
    """What the template shows of one test set, in addition to its results."""
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
            title: _images(results.matches, examples)
            for title, examples in (("Worst", results.worst), ("Best", results.best))
            if examples
        },
        "first": _FIRST,
        "data": {
            "boxes": counts.boxes.tolist(),
            "right": counts.right.tolist(),
            "detections": counts.detections.tolist(),
        },
    }


def _cells(matrix: np.ndarray) -> list[list[tuple[int, float]]]:
    """Count and its share of the row; in the last row, of the column."""
    whole = np.repeat(matrix.sum(axis=1, keepdims=True), len(matrix), axis=1)
    whole[-1] = matrix.sum(axis=0)
    shares = matrix / np.maximum(whole, 1)
    return [
        list(zip(*row, strict=True))
        for row in zip(matrix.tolist(), shares.round(3).tolist(), strict=True)
    ]


def _mistakes(matrix: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int]]:
    """What it is, what it is detected as, and how often, the most frequent first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = np.stack(np.unravel_index(order, wrong.shape), axis=1).tolist()
    return [(names[row], names[k], int(wrong[row, k])) for row, k in cells if wrong[row, k]]


def _images(matches: Matches, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Images and the boxes to draw in them; an image that cannot be read any more is gray."""
    truths, detections = matches.truths, matches.detections
    kinds = [NAMES[kind] for kind in kinds_of(matches)]
    found = dict(zip(detections.truth.tolist(), detections.score.tolist(), strict=True))
    images = []
    for example in tqdm(examples, desc="images", leave=False):
        name, readable = Path(example.file).name, True
        try:
            rgb = read_image(example.file, "RGB")
        except Exception:  # PIL's decoders raise nearly everything on damaged files
            rgb, readable = np.full((480, 640, 3), 128, np.uint8), False
        boxes = [
            ("crowd" if truths.crowd[m] else "truth", found.get(m), truths.label[m], truths.box[m])
            for m in example.truths
        ]
        drawn = [
            (kinds[n], float(detections.score[n]), detections.label[n], detections.box[n])
            for n in example.detections[:_MAX_BOXES]
            if kinds[n] != "ignored" and detections.score[n] >= _MIN_SCORE
        ]
        # High scores are drawn over low ones, and mistakes over everything.
        drawn.sort(key=lambda box: (box[0] != "right", box[1]))
        images.append(
            {
                "name": name,
                "readable": readable,
                "tag": image_tag(rgb, alt=f"test image {name}"),
                "size": rgb.shape[:2],
                "errors": example.errors,
                "boxes": [(*box, xywh.round(1).tolist()) for *box, xywh in (*boxes, *drawn)],
            }
        )
    return images


def _show(value: float | None, digits: int = 1) -> str:
    return f"{value:,.{digits}f}" if finite(value) else _DASH
