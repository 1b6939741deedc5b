"""What a run achieves on one of its test sets."""

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

from ...errors import UserError
from ...evaluation.matching import Matches
from .accuracy import Accuracy, ScoreCounts, accuracies, confusion, score_counts
from .datasets import Dataset, match_detections
from .error_kinds import Errors, errors
from .examples import Example, choose_examples
from .run import Run, finite

_CONFUSION_SCORES = np.arange(1, 10) / 10
_SAME_AP = 1e-3  # percent; detectron2's compiled evaluation rounds in another order


@dataclass(frozen=True)
class Results:
    """The numbers of one test set.

    Args:
        accuracies: of each class, then of all classes.
        confusions: (K + 1, K + 1) by score, at 0.1, 0.2 .. 0.9.
    """

    matches: Matches
    accuracies: list[Accuracy]
    counts: ScoreCounts
    confusions: dict[float, np.ndarray]
    errors: Errors
    best: list[Example]
    worst: list[Example]


@dataclass(frozen=True)
class SetReport:
    """A test set of a run.

    Args:
        metrics: AP, AP50, ... in percent by detectron2's names, of ``results``, else of the log.
        history: metrics by step, of all evaluations.
        warning: a sentence on why there are no ``results``, or how they differ from the log.
        results: None if there is a ``warning`` why not.
    """

    name: str
    metrics: dict[str, float | None]
    history: dict[int, dict[str, float]]
    warning: str | None
    results: Results | None


def read_set_report(cfg: CfgNode, dataset: Dataset, run: Run, *, num_images: int) -> SetReport:
    """Computes the numbers of a test set, as far as its data and detections can still be read.

    Args:
        num_images: examples, the best and the worst together.
    """
    start = f"{dataset.name}/bbox/" if len(cfg.DATASETS.TEST) > 1 else "bbox/"
    history = {step: run.metrics(start, step) for step in run.evaluations}
    history = {step: metrics for step, metrics in history.items() if metrics}
    logged = run.metrics(start, run.last)
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
        *choose_examples(matches, dataset.files, counts.best_score, count=num_images),
    )
    metrics = results.accuracies[-1].metrics
    return SetReport(dataset.name, metrics, history, _disagreement(metrics["AP"], logged), results)


def _disagreement(ap: float | None, logged: dict[str, float]) -> str | None:
    """Tells if ``metrics.json`` has another AP, which belongs to other detections then."""
    if "AP" not in logged:
        return None
    values = [value if finite(value) else 0.0 for value in (ap, logged["AP"])]
    if abs(values[0] - values[1]) < _SAME_AP:
        return None
    return (
        f"The detections on disk give an AP of {values[0]:.3f}, but metrics.json says "
        f"{values[1]:.3f}: they are of another checkpoint or dataset."
    )
