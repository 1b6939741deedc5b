"""A checkpoint beside files exported from it: from pictures in memory to their detections."""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...engine.amp import DTYPES
from ...engine.checkpoint import local_file
from ...runtimes.exported_files import ONNX_RUNTIMES
from ...runtimes.network import EAGER, is_exported, load_network
from .measure import Run, alternate, seconds, summary
from .models import Setting, random_pictures
from .parts import inference
from .units import duration
from .workers import OTHERS_SLEEP

_WARM = 3  # runs, in the first of which TorchScript is compiled


@dataclass(frozen=True)
class ModelFile:
    """A checkpoint or an exported file.

    Args:
        path: where it lies.
        runtime: of an ONNX file.
    """

    path: str
    runtime: str = ONNX_RUNTIMES[0]

    def load(self, setting: Setting) -> tuple[Run, str]:
        """A run on a batch of noise, and the name of what runs it.

        Raises:
            UserError: for a file that cannot be used.
        """
        its_own = ("TEST.DTYPE", "float32") if is_exported(self.path) else ()
        cfg = setting.cfg("MODEL.WEIGHTS", self.path, *its_own)
        network, name, _ = load_network(cfg, runtime=self.runtime)
        name = f"{name}, {cfg.TEST.DTYPE}" if name == EAGER else name
        device, pictures = torch.device(setting.device), random_pictures(setting)
        return inference(device, network, DTYPES[cfg.TEST.DTYPE], pictures), name


def named(words: Sequence[str]) -> list[ModelFile]:
    """Those of a command line; an ONNX file once for each of its runtimes that is installed.

    Raises:
        UserError: for a file that is not there.
    """
    installed = [name for name in ONNX_RUNTIMES if importlib.util.find_spec(name)]
    found = []
    for word in words:
        path = local_file(word, "--models")
        runtimes = installed if path.endswith(".onnx") else []
        found += [ModelFile(path, runtime) for runtime in runtimes or ONNX_RUNTIMES[:1]]
    return list(dict.fromkeys(found))


def measure(
    files: Sequence[ModelFile], setting: Setting, rounds: int | None, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """JSON of each; they are timed in turn, in one process, warm."""
    device, runs, results = torch.device(setting.device), [], []
    for file in files:
        say(f"loading {file.path}")
        run, runtime = file.load(setting)
        for _ in range(_WARM):
            seconds(run, device)
        runs.append(run)
        size = Path(file.path).stat().st_size
        results.append({"file": file.path, "runtime": runtime, "bytes": size})
    say(f"timing {len(runs)} in turn")
    turns = {str(i): partial(_seconds, run, device) for i, run in enumerate(runs)}
    times = alternate(turns, rounds).values()
    return [{**a, "seconds": summary(t)} for a, t in zip(results, times, strict=True)]


def _seconds(run: Run, device: torch.device) -> float:
    time.sleep(OTHERS_SLEEP)
    return seconds(run, device)


def markdown(results: Mapping[str, Any]) -> str:
    """A table, whose first line is what the others are compared with, and what was measured."""
    first, machine, setting = results["models"][0], results["machine"], results["setting"]
    head = ["model", "runtime", "MB", "time: median (least to most)", "times as fast as the first"]
    rows = [head, ["---"] * len(head)]
    for one in results["models"]:
        times = one["seconds"]
        spread = duration(times["median"], times["min"], times["max"])
        faster = f"{first['seconds']['median'] / times['median']:.3g}"
        rows.append(
            [Path(one["file"]).name, one["runtime"], f"{one['bytes'] / 1e6:.1f}", spread, faster]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    note = (
        f"A batch of {setting['batch']}, noise of {setting['height']} x {setting['width']}. "
        f"{machine['device']}, CPU threads: {machine['threads']}, torch {machine['torch']}; "
        f"{len(first['seconds']['all'])} runs of each, in turn."
    )
    return "\n".join([*lines, "", note])
