"""What a run achieves on one of its test sets."""

import math
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

from ...errors import UserError
from ...evaluation.matching import Matches
from .accuracy import Accuracy, ScoreCounts, accuracies, confusion, score_counts
from .datasets import Dataset, match_detections
from .error_kinds import Errors, errors
from .examples import choose_examples
from .run import Run, Series

_CONFUSION_SCORES = np.arange(1, 10) / 10
_NUM_IMAGES = 24  # the worst and the best together
_SAME_AP = 1e-3  # percent; detectron2's compiled evaluation rounds in another order


@dataclass(frozen=True)
class Results:
    """The numbers of one test set.

    Args:
        accuracies: of each class, then of all classes.
        confusions: (K + 1, K + 1) by score, at 0.1, 0.2 .. 0.9.
        worst, best: indices of images.
    """

    matches: Matches
    accuracies: list[Accuracy]
    counts: ScoreCounts
    confusions: dict[float, np.ndarray]
    errors: Errors
    worst: list[int]
    best: list[int]


@dataclass(frozen=True)
class SetReport:
    """A test set of a run.

    Args:
        metrics: AP, AP50, ... in percent by detectron2's names, of ``results``, else of the log.
        history: of all evaluations, by metric and step.
        warning: a sentence on why there are no ``results``, or how they differ from the log.
        results: None if there is a ``warning`` why not.
    """

    name: str
    metrics: dict[str, float | None]
    history: dict[str, Series]
    warning: str | None
    results: Results | None


def read_set_report(cfg: CfgNode, dataset: Dataset, run: Run) -> SetReport:
    """Computes the numbers of a test set, as far as its data and detections can still be read."""
    start = f"{dataset.name}/bbox/" if len(cfg.DATASETS.TEST) > 1 else "bbox/"
    history = {k.removeprefix(start): v for k, v in run.series.items() if k.startswith(start)}
    logged = {key: values[run.last] for key, values in history.items() if run.last in values}
    try:
        matches = match_detections(cfg, dataset)
    except UserError as error:
        return SetReport(dataset.name, dict(logged), history, str(error), None)
    counts = score_counts(matches)
    results = Results(
        matches,
        accuracies(matches),
        counts,
        {score: confusion(matches, score) for score in _CONFUSION_SCORES.tolist()},
        errors(matches, counts.best_score),
        *choose_examples(matches, dataset.files, counts.best_score, count=_NUM_IMAGES),
    )
    metrics = results.accuracies[-1].metrics
    ap = metrics["AP"] or 0.0
    logged_ap = logged.get("AP", ap)
    logged_ap = logged_ap if math.isfinite(logged_ap) else 0.0
    warning = None
    if abs(ap - logged_ap) >= _SAME_AP:
        warning = (
            f"The detections on disk give an AP of {ap:.3f}, but metrics.json says "
            f"{logged_ap:.3f}: they are of another checkpoint or dataset."
        )
    return SetReport(dataset.name, metrics, history, warning, results)
