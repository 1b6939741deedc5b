"""All numbers of a report, from a run's folder."""

from dataclasses import dataclass
from pathlib import Path

from .error_kinds import Errors
from .matches import ClassAccuracy, Confusion, Thresholds
from .pictures import Pictures
from .run import Run


@dataclass(frozen=True)
class TestSet:
    """What was found on one test set.

    Args:
        left_out: a sentence that says why the numbers below are None, or None.
        disagrees: a sentence where AP is not that of ``metrics.json``, or None.
        pictures, boxes, crowds, detections: how many.
        all: AP over all classes.
        classes: AP of each.
        confusions: at the thresholds 0.1 .. 0.9 and, first, the one of the best F1.
    """

    name: str
    left_out: str | None
    disagrees: str | None
    pictures: int | None
    boxes: int | None
    crowds: int | None
    detections: int | None
    class_names: list[str]
    all: ClassAccuracy | None
    classes: list[ClassAccuracy] | None
    thresholds: Thresholds | None
    confusions: list[Confusion] | None
    errors: Errors | None
    examples: Pictures | None


@dataclass(frozen=True)
class Numbers:
    """Of a run and each of its test sets."""

    run: Run
    test_sets: list[TestSet]


def gather(folder: Path, *, num_pictures: int = 24) -> Numbers:
    """Reads a finished run and computes the numbers of its report.

    What needs a data set or detections that are not there any more is left out with a sentence.

    Raises:
        UserError: where the folder holds no run.
    """
    raise NotImplementedError
