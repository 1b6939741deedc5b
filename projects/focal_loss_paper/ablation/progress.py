"""What a terminal shows while rows run: which, how far, and how much time is left."""

import sys
import time
from collections.abc import Callable, Sequence

from .plan import Run
from .results import Result, last_step
from .runs import Running

_LOOK, _SAY = 1.0, 30.0  # seconds between two looks at a terminal, and two lines elsewhere


def minutes(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    hours, left = divmod(round(seconds / 60), 60)
    return f"{hours} h {left:02d} min" if hours else f"{left} min"


class _Pace:
    """How fast a row trains, from when its first steps were seen; its start is apart."""

    def __init__(self, run: Run, began: float) -> None:
        self.run, self.began = run, began
        self.start: float | None = None
        self.seconds_a_unit: float | None = None  # of ``cost``
        self._first = 0

    def look(self, steps: int, first_step: int, now: float) -> None:
        if self.start is None and steps > first_step:
            self.start, self._first = now - self.began, steps
        elif self.start is not None and steps > self._first:
            done = (steps - self._first) * self.run.cost
            self.seconds_a_unit = (now - self.began - self.start) / done


class Terminal:
    """A line that is renewed on a terminal, or a line every half minute in a file.

    Args:
        runs: all, those that have ended too.
        jobs: how many run at once.
        after_each: called when a run has ended.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, after_each: Callable[[Run], None]) -> None:
        self.runs, self.jobs, self.after_each = list(runs), jobs, after_each
        self.stream = sys.stderr
        self._numbers = {str(run.folder): i for i, run in enumerate(self.runs, start=1)}
        self._start = self._looked_at = self._said_at = time.monotonic()
        self._paces: dict[str, _Pace] = {}  # by folder
        self._width = 0

    def started(self, run: Run, from_step: int) -> None:
        self._paces[str(run.folder)] = _Pace(run, time.monotonic())
        goes_on = f", goes on at step {from_step:,}" if from_step else ""
        self._line(f"{self._name(run)}: {run.max_iter:,} steps{goes_on}; log: {run.log}")

    def ended(self, run: Run, result: Result | None, sentence: str) -> None:
        if result is None:
            self._line(f"{self._name(run)}: FAILED: {sentence}")
        else:
            said = _found(result)
            if result.same_as:
                said += f", as {result.same_as}, which has the same settings"
            else:
                said += f" after {minutes(result.seconds)}"
            self._line(f"{self._name(run)}: {said}")
        self.after_each(run)

    def looked(self, running: Sequence[Running], waiting: Sequence[Run]) -> None:
        now = time.monotonic()
        live = self.stream.isatty()
        if now - self._looked_at < _LOOK or (not live and now - self._said_at < _SAY):
            return
        self._looked_at = self._said_at = now
        steps = {
            id(r): min(max(last_step(r.run.folder, r.metrics_start), r.first_step), r.run.max_iter)
            for r in running
        }
        for r in running:
            self._paces[str(r.run.folder)].look(steps[id(r)], r.first_step, now)
        parts = [f"{self._name(r.run)} {steps[id(r)]:,}/{r.run.max_iter:,}" for r in running]
        left = self._time_left([(r.run, r.run.max_iter - steps[id(r)]) for r in running], waiting)
        text = "; ".join([*parts, f"{minutes(left)} left" if left else "time left: not known yet"])
        if live:
            self.stream.write(f"\r{text[:150]:<{self._width}}")
            self._width = len(text[:150])
            self.stream.flush()
        else:
            self._line(text)

    def _time_left(
        self, running: Sequence[tuple[Run, int]], waiting: Sequence[Run]
    ) -> float | None:
        """Seconds, from the pace of all rows so far; None before any has one."""
        known = [pace for pace in self._paces.values() if pace.seconds_a_unit is not None]
        if not known:
            return None
        mean = sum(pace.seconds_a_unit or 0.0 for pace in known) / len(known)
        start = sum(pace.start or 0.0 for pace in known) / len(known)
        now = [
            steps * run.cost * (self._paces[str(run.folder)].seconds_a_unit or mean)
            for run, steps in running
        ]
        later = [start + run.max_iter * run.cost * mean for run in waiting]
        return max([sum(now + later) / self.jobs, *now, *later])

    def _name(self, run: Run) -> str:
        return f"row {self._numbers[str(run.folder)]} of {len(self.runs)} ({run.name})"

    def _line(self, text: str) -> None:
        passed = time.monotonic() - self._start
        clear = "\r" + " " * self._width + "\r" if self._width else ""
        self._width = 0
        print(f"{clear}[{minutes(passed):>6}] {text}", file=self.stream, flush=True)


def _found(result: Result) -> str:
    if result.diverged_at is not None:
        return f"diverged at step {result.diverged_at:,}, a result"
    return f"AP {result.ap:.1f}, AP50 {result.ap50:.1f}, AP75 {result.ap75:.1f}"
