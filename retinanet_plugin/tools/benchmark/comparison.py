"""Compares the detectors part by part: results first, then time, then memory."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .measure import Rates, alternate, summary
from .models import Setting
from .parts import PARTS
from .processes import Worker
from .report import SIDES, duration, size

_MANY_BOXES = 500  # above which torchvision takes ten seconds and seven gigabytes for labels


class Comparison:
    """Measures parts for settings, each side in a process of its own; to be closed.

    Args:
        args: ``imports``, ``rounds`` and ``no_memory`` of the command line.
        folder: for the weights that the processes share.
    """

    def __init__(self, setting: Setting, args: argparse.Namespace, folder: Path) -> None:
        self._setting = setting
        self._args = args
        self._folder = folder
        self._workers: dict[str, Worker] = {}
        self._start = time.perf_counter()

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers.values():
            worker.close()

    def parts(self, names: Sequence[str], label_boxes: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Compares several parts; labels for each of several numbers of boxes per image."""
        results = {}
        for name in names:
            if name != "labels":
                results[name] = self.part(name, self._setting)
                continue
            for boxes in label_boxes:
                setting = replace(self._setting, boxes=boxes)
                sides = SIDES if boxes <= _MANY_BOXES else ("detectron2", "ours")
                results[f"{name}-{boxes}"] = self.part(name, setting, sides, f", {boxes:,} boxes")
        for result in results.values():
            add_float32_ratio(result, results)
        return results

    def part(
        self, name: str, setting: Setting, sides: Sequence[str] = SIDES, suffix: str = ""
    ) -> dict[str, Any]:
        """Compares the detectors in one part; ``suffix`` is added to its title.

        Returns:
            JSON: times and memory of the sides, ratios, checks, and notes.
        """
        part, notes = PARTS[name], list[str]()
        self._log(f"{part.title}{suffix}")
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
            "times_as_fast_as": {k: 1 / x for k, x in fractions(medians).items()},
            "multiplications": count,
            "logits": setting.num_logits,
            "checks": [{"what": what, "agrees": agrees} for what, agrees in checks],
            "notes": notes,
        }
        self._log("  " + ", ".join(f"{side} {duration(t)}" for side, t in medians.items()))
        can_measure = setting.device.startswith("cuda") or sys.platform == "linux"
        if can_measure and not self._args.no_memory:
            measured = {side: self._memory(name, side, setting, notes) for side in times}
            used = {side: bytes_used(m, part.whole) for side, m in measured.items() if m}
            self._log("  " + ", ".join(f"{side} {size(x)}" for side, x in used.items()))
            result |= {"memory": used, "memory_of": fractions(used)}
        return result

    def _times(
        self, name: str, setting: Setting, sides: Sequence[str], notes: list[str]
    ) -> tuple[dict[str, dict[str, Any]], list[tuple[str, bool]], int]:
        """Returns each side's times, the checks of ours, and our multiplications."""
        part, weights = PARTS[name], self._weights(setting)
        observed: dict[str, Any] = {}
        count = 0
        for side in filter(part.sides.get, sides):
            if side not in self._workers or not self._workers[side].alive:
                self._workers[side] = self._new_worker(side, self._setting)
            start = partial(self._workers[side].call, "start", name, setting, weights)
            if (started := _attempt(side, start, notes)) is not None:
                observed[side], count = started
        both = "detectron2" in observed and "ours" in observed
        checks = part.compare(observed["detectron2"], observed["ours"]) if both else []
        workers = {side: self._workers[side] for side in observed}
        del observed
        turns = {
            side: partial(_attempt, side, partial(worker.call, "seconds"), notes)
            for side, worker in workers.items()
        }
        times = alternate(turns, self._args.rounds)
        for side, worker in workers.items():
            if worker.alive:
                _attempt(side, partial(worker.call, "finish"), notes)
        return {side: summary(t) for side, t in times.items()}, checks, count

    def _memory(
        self, name: str, side: str, setting: Setting, notes: list[str]
    ) -> dict[str, int] | None:
        """Measures the memory of one side in a fresh process."""
        with closing(self._new_worker(side, setting)) as worker:
            measure = partial(worker.call, "peak_memory", name, setting, self._weights(setting))
            memory: dict[str, int] | None = _attempt(f"memory of {side}", measure, notes)
            return memory

    def _new_worker(self, side: str, setting: Setting) -> Worker:
        return Worker(side, setting, torch.get_num_threads(), self._args.imports)

    def _weights(self, setting: Setting) -> Path:
        """Returns the folder of the weights of settings with the same architecture and size."""
        folder = self._folder / f"{setting.num_classes}-{setting.height}-{setting.width}"
        folder.mkdir(exist_ok=True)
        return folder

    def _log(self, text: str) -> None:
        seconds = time.perf_counter() - self._start
        print(f"[{seconds:4.0f} s] {text}", file=sys.stderr, flush=True)


def _attempt(what: str, function: Callable[[], Any], notes: list[str]) -> Any:
    """Returns what the function returns, or None and adds a note."""
    try:
        return function()
    except RuntimeError as error:
        notes.append(f"{what} failed: {str(error).splitlines()[0]}")
        return None


def fractions(values: Mapping[str, float]) -> dict[str, float]:
    """Returns our value as a fraction of each other side's."""
    if "ours" not in values:
        return {}
    return {k: values["ours"] / max(x, 1e-9) for k, x in values.items() if k != "ours"}


def add_float32_ratio(result: dict[str, Any], results: Mapping[str, dict[str, Any]]) -> None:
    """Adds the ratio of half precision to detectron2's float32, all that it has on a CPU."""
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
