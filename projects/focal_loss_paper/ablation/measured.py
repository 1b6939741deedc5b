"""What the seeds of a row gave, taken together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from ..tables import Row
from .plan import Plan, PlannedRow
from .results import Result, result_for


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
    def seconds(self) -> float | None:
        """Of a run, on average; None where all results are those of other rows."""
        taken = [result.seconds for result in self.results if result.same_as is None]
        return mean(taken) if taken else None

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
