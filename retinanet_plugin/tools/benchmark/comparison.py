"""Compares the detectors part by part: results first, then time, then memory."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from .measure import Rates, alternate, available_memory, can_measure_memory, summary
from .models import Setting
from .parts import PARTS
from .processes import FAILURES, Worker
from .units import duration, size

T = TypeVar("T")
SIDES = ("detectron2", "torchvision", "ours")
TWO_SIDES = ("detectron2", "ours")
_MANY_BOXES = 500  # above which torchvision takes ten seconds and seven gigabytes for labels


@dataclass(frozen=True)
class Options:
    """How to measure.

    Args:
        threads: of the CPU.
        imports: Python code of --import.
        rounds: runs of each side; None: 3 to 15 within 12 seconds.
        memory: whether to measure memory.
        log: is told the progress.
    """

    setting: Setting
    threads: int
    imports: Sequence[str]
    rounds: int | None
    memory: bool
    log: Callable[[str], None]


class Comparison:
    """Measures parts for settings, each side in a process of its own; to be closed.

    Args:
        folder: for the weights that the processes share.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self._folder = folder
        self._workers: dict[str, Worker] = {}

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers.values():
            worker.close()

    def part(
        self, name: str, setting: Setting, sides: Sequence[str] = SIDES, suffix: str = ""
    ) -> dict[str, Any]:
        """Compares the detectors in one part; ``suffix`` is added to its title.

        Returns:
            JSON: times and memory of the sides, ratios, checks, and notes.
        """
        part, notes = PARTS[name], list[str]()
        self.options.log(f"{part.title}{suffix}")
        times, checks, count = self._times(name, setting, sides, notes)
        medians = {side: t["median"] for side, t in times.items()}
        result: dict[str, Any] = {
            "part": name,
            "title": part.title + suffix,
            "batch": setting.batch,
            "boxes": setting.boxes,
            "classes": setting.num_classes,
            "size": [setting.height, setting.width],
            "seconds": times,
            "times_as_fast_as": ratios(medians),
            "multiplications": count,
            "logits": setting.num_logits,
            "checks": [{"what": what, "agrees": agrees} for what, agrees in checks],
            "notes": notes,
        }
        self._log({side: duration(t) for side, t in medians.items()})
        if self.options.memory and can_measure_memory(torch.device(setting.device)):
            measured = {side: self._memory(name, side, setting, notes) for side in times}
            used = {side: bytes_used(m, part.whole) for side, m in measured.items() if m}
            self._log({side: size(x) for side, x in used.items()})
            result |= {"memory": used, "memory_of": fractions(used)}
        return result

    def parts(self, names: Sequence[str], label_boxes: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Compares several parts; labels for each of several numbers of boxes per image."""
        results = {}
        for name in names:
            if name != "labels":
                results[name] = self.part(name, self.options.setting)
                continue
            for boxes in label_boxes:
                setting = replace(self.options.setting, boxes=boxes)
                sides = SIDES if boxes <= _MANY_BOXES else TWO_SIDES
                suffix = f", {boxes:,} boxes"
                results[f"{name}-{boxes}"] = self.part(name, setting, sides, suffix)
        for result in results.values():
            add_float32_ratio(result, results)
        return results

    def _times(
        self, name: str, setting: Setting, sides: Sequence[str], notes: list[str]
    ) -> tuple[dict[str, dict[str, Any]], list[tuple[str, bool]], int]:
        """Returns each side's times, the checks of ours, and our multiplications."""
        part, weights = PARTS[name], self._weights(setting)
        observed: dict[str, Any] = {}
        count = 0
        for side in filter(part.sides.get, sides):
            needed = 0.0 if side == "ours" else part.needs(setting)
            if needed > available_memory(torch.device(setting.device)):
                notes.append(f"{side} was skipped: it needs about {needed / 1e9:.0f} GB")
                continue
            start = partial(self._worker(side).start, name, setting, weights)
            if (started := _attempt(side, start, notes)) is not None:
                observed[side], count = started
        both = "detectron2" in observed and "ours" in observed
        checks = part.compare(observed["detectron2"], observed["ours"]) if both else []
        turns = {
            side: partial(_attempt, side, self._workers[side].seconds, notes) for side in observed
        }
        del observed
        times = alternate(turns, self.options.rounds)
        for side in turns:
            if self._workers[side].alive:
                _attempt(side, self._workers[side].finish, notes)
        return {side: summary(t) for side, t in times.items()}, checks, count

    def _memory(
        self, name: str, side: str, setting: Setting, notes: list[str]
    ) -> dict[str, int] | None:
        """Measures the memory of one side in a fresh process."""
        with closing(self._new_worker(side, setting)) as worker:
            measure = partial(worker.peak_memory, name, setting, self._weights(setting))
            return _attempt(f"memory of {side}", measure, notes)

    def _log(self, values: Mapping[str, str]) -> None:
        self.options.log(f"  {', '.join(f'{side} {x}' for side, x in values.items())}")

    def _worker(self, side: str) -> Worker:
        """Returns the worker of the parts before, or a new one if that has died."""
        if side not in self._workers or not self._workers[side].alive:
            self._workers[side] = self._new_worker(side, self.options.setting)
        return self._workers[side]

    def _new_worker(self, side: str, setting: Setting) -> Worker:
        return Worker(side, setting, self.options.threads, self.options.imports)

    def _weights(self, setting: Setting) -> Path:
        """Returns the folder of the weights of settings with the same architecture and size."""
        folder = self._folder / f"{setting.num_classes}-{setting.height}-{setting.width}"
        folder.mkdir(exist_ok=True)
        return folder


def _attempt(what: str, function: Callable[[], T], notes: list[str]) -> T | None:
    """Returns what the function returns, or None and adds a note."""
    try:
        return function()
    except FAILURES as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        notes.append(f"{what} failed: {reason}")
        return None


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Returns how many times as fast as each other side ours is."""
    return {k: 1 / x for k, x in fractions(medians).items()}


def fractions(values: Mapping[str, float]) -> dict[str, float]:
    """Returns our value as a fraction of each other side's."""
    if "ours" not in values:
        return {}
    return {k: values["ours"] / max(x, 1e-9) for k, x in values.items() if k != "ours"}


def add_float32_ratio(result: dict[str, Any], results: Mapping[str, dict[str, Any]]) -> None:
    """Also compares half precision with detectron2's float32, all that it has on a CPU."""
    other = results.get(PARTS[result["part"]].float32 or "", {"seconds": {}})["seconds"]
    if "detectron2" in other and "ours" in result["seconds"]:
        ours = result["seconds"]["ours"]["median"]
        result["times_as_fast_as_float32"] = other["detectron2"]["median"] / ours


def add_floor(result: dict[str, Any], rates: Rates) -> None:
    """Adds the least time that the machine needs, and its share of our time."""
    floor = PARTS[result["part"]].floor
    if floor is not None and "ours" in result["seconds"]:
        least = floor(rates, result["logits"], result["multiplications"])
        result |= {"floor": least, "share_of_floor": least / result["seconds"]["ours"]["median"]}


def bytes_used(memory: Mapping[str, int], whole: bool) -> int:
    """Returns the bytes of a run at its peak, with or without those of the detector itself."""
    return max(memory["peak"] - memory["before_build" if whole else "before_run"], 0)
