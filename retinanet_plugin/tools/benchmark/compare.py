"""Runs the parts: correctness first, then time, then memory in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from .measure import Rates, alternate, peak_memory, summary
from .models import Bench, Setting
from .parts import PARTS
from .units import duration, size
from .workers import CANNOT, Worker, prepare_process, reason

T = TypeVar("T")
SIDES = ("detectron2", "torchvision", "ours")
TWO_SIDES = ("detectron2", "ours")
_MANY_BOXES = 500  # beyond which torchvision takes ten seconds and seven gigabytes for labels


@dataclass(frozen=True)
class Sweep:
    """One number that varies, and the parts that show what it does."""

    title: str
    values: Sequence[int]
    parts: Sequence[str]
    apply: Callable[[Setting, int], Setting]


def _with_classes(setting: Setting, value: int) -> Setting:
    words = (*setting.overrides, "MODEL.RETINANET.NUM_CLASSES", str(value))
    return replace(setting, overrides=words)


def _with_size(setting: Setting, short: int) -> Setting:
    scale = short / min(setting.height, setting.width)
    return replace(
        setting, height=round(setting.height * scale), width=round(setting.width * scale)
    )


SWEEPS = {
    "classes": Sweep("classes", (1, 80, 365, 1203), ("class-loss", "decoding"), _with_classes),
    "boxes": Sweep(
        "boxes a picture",
        (1, 10, 100, 1000, 5000),
        ("labels",),
        lambda setting, value: replace(setting, boxes=value),
    ),
    "sizes": Sweep(
        "shorter side in pixels",
        (400, 600, 800, 1000, 1333),
        ("loss", "inference", "inference-bfloat16"),
        _with_size,
    ),
    "batch": Sweep(
        "pictures a batch",
        (1, 2, 4),
        ("training", "training-bfloat16", "inference"),
        lambda setting, value: replace(setting, batch=value),
    ),
}


@dataclass(frozen=True)
class Options:
    """How to measure."""

    setting: Setting
    threads: int
    rounds: int | None
    memory: bool
    say: Callable[[str], None]


class Comparison:
    """Measures parts on settings, each side in a process of its own; to be closed.

    Args:
        options: how to measure.
        folder: for the weights that it shares with the processes that measure memory.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self._folder = folder
        self._workers: dict[str, Worker] = {}
        self._probed: dict[tuple[object, Setting], dict[str, int] | None] = {}

    def part(
        self, name: str, setting: Setting, sides: Sequence[str] = SIDES, suffix: str = ""
    ) -> dict[str, Any]:
        """Compares the detectors in one part, whose title the suffix makes plainer.

        Returns:
            JSON: the sides' times and memory, the ratios, what agrees, and notes.
        """
        part, weights = PARTS[name], self._weights(setting)
        seen: dict[str, Any] = {}
        notes: list[str] = []
        count = 0
        self.options.say(f"{part.title}{suffix}")
        workers: dict[str, Worker] = {}
        for side in filter(part.sides.get, sides):
            needed = 0.0 if side == "ours" else part.needs(setting)
            if needed > available_memory(torch.device(setting.device)):
                notes.append(f"{side} was not tried: it takes about {needed / 1e9:.0f} GB")
            else:
                workers[side] = self._worker(side)
        for side, worker in workers.items():
            warm = _tried(side, partial(worker.start, name, setting, weights), notes)
            if warm is not None:
                seen[side], count = warm
        both = "detectron2" in seen and "ours" in seen
        checks = part.compare(seen["detectron2"], seen["ours"]) if both else []
        turns = {side: partial(_tried, side, workers[side].seconds, notes) for side in seen}
        del seen
        all_times = alternate(turns, self.options.rounds)
        for side, worker in workers.items():
            if worker.alive:
                _tried(side, worker.finish, notes)
        times = {side: summary(t) for side, t in all_times.items()}
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
        }
        self._say({side: duration(t) for side, t in medians.items()})
        if self.options.memory:
            memory = {side: self._probe(name, side, setting, notes) for side in times}
            bytes_used = {side: used(m, part.whole) for side, m in memory.items() if m}
            self._say({side: size(x) for side, x in bytes_used.items()})
            result |= {"memory": bytes_used, "memory_of": fractions(bytes_used)}
        result["notes"] = notes
        return result

    def parts(self, names: Sequence[str], label_boxes: Sequence[int]) -> dict[str, dict[str, Any]]:
        """The parts named, on the options' setting; the labels at each of some numbers of boxes."""
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

    def sweep(self, name: str) -> list[dict[str, Any]]:
        """The parts of a sweep at each of its values: detectron2 and ours."""
        sweep, points = SWEEPS[name], []
        for value in sweep.values:
            setting = sweep.apply(self.options.setting, value)
            suffix = f", {sweep.title}: {value:,}"
            parts = {p: self.part(p, setting, TWO_SIDES, suffix) for p in sweep.parts}
            points.append({"value": value, "parts": parts})
        return points

    def _say(self, values: Mapping[str, str]) -> None:
        self.options.say(f"  {', '.join(f'{side} {x}' for side, x in values.items())}")

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers.values():
            worker.close()

    def _worker(self, side: str) -> Worker:
        """That of the parts before, as long as it lives."""
        if side not in self._workers or not self._workers[side].alive:
            self._workers[side] = Worker(side, self.options.setting, self.options.threads)
        return self._workers[side]

    def _weights(self, setting: Setting) -> Path:
        """Settings of one architecture and size share them."""
        cfg = setting.cfg()
        folder = (
            self._folder / f"{cfg.MODEL.RETINANET.NUM_CLASSES}-{setting.height}-{setting.width}"
        )
        folder.mkdir(exist_ok=True)
        return folder

    def _probe(
        self, name: str, side: str, setting: Setting, notes: list[str]
    ) -> dict[str, int] | None:
        """The memory of one side, measured by a process of its own, once."""
        key = (PARTS[name].sides[side], setting)
        if key in self._probed:
            return self._probed[key]
        command = [sys.executable, "-m", __package__, "--probe", f"{name}:{side}"]
        command += ["--weights", str(self._weights(setting)), *arguments(setting)]
        command += ["--threads", str(self.options.threads), *setting.overrides]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            notes.append(f"memory of {side} was not measured, status {done.returncode}: {why}")
        self._probed[key] = None if done.returncode else json.loads(done.stdout.splitlines()[-1])
        return self._probed[key]


def _tried(side: str, work: Callable[[], T], notes: list[str]) -> T | None:
    """What the work gave, or None and a note."""
    try:
        return work()
    except CANNOT as error:
        notes.append(f"{side} cannot run: {reason(error)}")
        return None


def arguments(setting: Setting) -> list[str]:
    """The words of a command line that give this setting, but for the overrides."""
    return [
        *("--config", setting.config, "--size", f"{setting.height}x{setting.width}"),
        *("--batch", str(setting.batch), "--boxes", str(setting.boxes)),
        *("--device", setting.device),
    ]


def probe(name: str, side: str, setting: Setting, weights: Path) -> dict[str, int]:
    """What :meth:`Comparison._probe` asks another process for."""
    prepare_process(side, setting)
    part, bench = PARTS[name], Bench(setting, weights)
    return peak_memory(lambda: part.sides[side](bench), bench.device, warm=not part.whole)


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """How many times as fast as each other side ours is."""
    return {k: 1 / x for k, x in fractions(medians).items()}


def fractions(values: Mapping[str, float]) -> dict[str, float]:
    """Ours as a part of each other side's."""
    if "ours" not in values:
        return {}
    return {k: values["ours"] / max(x, 1e-9) for k, x in values.items() if k != "ours"}


def add_float32_ratio(result: dict[str, Any], results: Mapping[str, dict[str, Any]]) -> None:
    """Half precision against detectron2's float32 too: on a CPU it has nothing else."""
    other = results.get(PARTS[result["part"]].float32 or "", {"seconds": {}})["seconds"]
    if "detectron2" in other and "ours" in result["seconds"]:
        ours = result["seconds"]["ours"]["median"]
        result["times_as_fast_as_float32"] = other["detectron2"]["median"] / ours


def add_floor(result: dict[str, Any], rates: Rates) -> None:
    """The least time that the machine needs, and how much of ours that is."""
    floor = PARTS[result["part"]].floor
    if floor is not None and "ours" in result["seconds"]:
        least = floor(rates, result["logits"], result["multiplications"])
        result |= {"floor": least, "share_of_floor": least / result["seconds"]["ours"]["median"]}


def used(memory: Mapping[str, int], whole: bool) -> int:
    """Bytes that a run takes at its peak: with what the detector itself holds, or without."""
    return max(memory["peak"] - memory["before_build" if whole else "before_run"], 0)


def available_memory(device: torch.device) -> float:
    """Bytes that can still be had, or infinity where nobody tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float("inf")
