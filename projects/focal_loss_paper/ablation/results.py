"""What a run leaves on disk, and what that says: finished, diverged, to go on with, or changed."""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision
import yaml

import retinanet_plugin
from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.metrics import METRICS, last_metrics, read_lines, read_scalars
from retinanet_plugin.utils import write_json, write_text

from .plan import Run

# The trainer's sentence about a loss that is not finite, which is a result too.
_DIVERGED = re.compile(r"training stopped at step (\d+): the loss is not finite")
# detectron2's evaluator, about the network alone, at one picture a time.
_LATENCY = re.compile(r"inference pure compute time: .*\(([\d.e-]+) s / iter per device")


@dataclass(frozen=True)
class Result:
    """A run that ended.

    Args:
        ap, ap50, ap75: in percent; None where it diverged. Without any detection they are 0.
        metrics: all that the evaluation gave.
        diverged_at: the step whose loss was not finite.
        seconds: of all attempts.
        attempts: 1, and one more each time that it was stopped and went on.
        milliseconds: of the network a picture, in the evaluation; None where it is not known.
        same_as: the folder of a run with the same settings, whose result this is.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    metrics: Mapping[str, float]
    diverged_at: int | None
    seed: int
    seconds: float
    attempts: int
    digest: str
    versions: Mapping[str, str]
    device: str
    milliseconds: float | None = None
    same_as: str | None = None


def versions() -> dict[str, str]:
    """Of what computed a result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "retinanet_plugin": retinanet_plugin.__version__,
    }


def read_result(folder: Path) -> Result | None:
    """Of a run that ended; None for one that did not."""
    result: Result | None = _read(folder / "result.json", Result)
    return result


def write_result(folder: Path, result: Result) -> None:
    """All of it or nothing."""
    write_json(folder / "result.json", asdict(result))


def result_of(
    run: Run, status: int, log_start: int, *, seconds: float, attempts: int, device: str
) -> Result | None:
    """What a process that ended with ``status`` gave; None where it failed.

    Args:
        log_start: where in the log it began to write.
        seconds: of all attempts.
    """
    common: dict[str, Any] = {
        "seed": run.seed,
        "seconds": round(seconds, 1),
        "attempts": attempts,
        "digest": run.digest,
        "versions": versions(),
        "device": device,
    }
    if status:
        found = _DIVERGED.search(last_sentence(run.log, log_start))
        if found is None:
            return None
        return Result(None, None, None, {}, int(found[1]), **common)
    datasets = run.cfg.DATASETS
    evaluated = ["own_test"] if datasets.OWN.TEST_JSON else datasets.TEST
    metrics = last_metrics(run.folder / "metrics.json", evaluated)
    if metrics is None:
        return None
    ap, ap50, ap75 = (metrics[key] for key in METRICS)
    latencies = _LATENCY.findall("\n".join(read_lines(run.log, since=log_start)))
    milliseconds = round(float(latencies[-1]) * 1000, 2) if latencies else None
    return Result(ap, ap50, ap75, metrics, None, milliseconds=milliseconds, **common)


def last_step(folder: Path, since: int = 0) -> int:
    """How many steps ``metrics.json`` tells of, from byte ``since`` on."""
    for scalars in reversed(read_scalars(folder / "metrics.json", last=100_000, since=since)):
        if "iteration" in scalars:
            return int(scalars["iteration"]) + 1
    return 0


def last_sentence(log: Path, since: int = 0) -> str:
    """What a process that failed said last, an ``error:`` before anything else.

    Args:
        since: where in the file it began to write.
    """
    lines = [line.strip() for line in read_lines(log, since=since) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def _read(path: Path, kind: type) -> Any:
    """What was written there, as ``kind``; None where nothing is."""
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); move {path.parent} away to have the row run anew."
        ) from None


# ---------------------------------------------------------------- a run's folder


@dataclass
class State:
    """Of a run that has begun: what it is, and what it has taken so far."""

    settings: dict[str, Any]
    seconds: float = 0.0
    attempts: int = 0


def read_state(run: Run) -> State | None:
    """Of a run that has begun; None for one that has not."""
    state: State | None = _read(run.folder / "state.json", State)
    return state


def write_state(run: Run, state: State) -> None:
    """All of it or nothing."""
    write_text(run.folder / "state.json", json.dumps(asdict(state)))


def has_checkpoint(run: Run) -> bool:
    """Whether ``--resume`` would go on with it."""
    return (run.folder / "last_checkpoint").is_file()


def checkpoint_step(run: Run) -> int:
    """How many steps its newest checkpoint has done; metrics.json tells of later ones too."""
    lines = read_lines(run.folder / "last_checkpoint")
    name = lines[0].strip() if lines else ""
    if name == "model_final.pth":
        return run.max_iter
    found = re.fullmatch(r"model_(\d+)\.pth", name)
    return int(found[1]) + 1 if found else 0


def result_for(run: Run) -> Result | None:
    """The result of just this run, not of one with other settings in its folder."""
    return None if changes(run) else read_result(run.folder)


def changes(run: Run) -> list[str]:
    """The settings in which a begun run differs from ``run``: ``KEY: was -> is``."""
    state = read_state(run)
    if state is None or not (has_checkpoint(run) or read_result(run.folder)):
        return []  # nothing that would be lost
    old, new = state.settings, run.settings
    # A key that another version of the plugin lacks says nothing.
    keys = {k for k in old.keys() | new.keys() if (k in old) == (k in new) or k.startswith("--")}
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(keys)
        if old.get(key) != new.get(key)
    ]


def set_aside(run: Run) -> Path:
    """Renames the folder of a run that is to begin anew."""
    number = 1
    while (aside := run.folder.with_name(f"{run.folder.name}.old{number}")).exists():
        number += 1
    run.folder.rename(aside)
    return aside


def prepare_folder(run: Run) -> State:
    """Writes the YAML that the run is started by; returns what is known of earlier attempts."""
    content = {**run.content, "OUTPUT_DIR": str(run.folder)}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, f"# Row {run.name}. Written by ablate; can be run by hand.\n{text}")
    state = read_state(run) or State({})
    if not has_checkpoint(run):
        state = State({})
        for name in ("metrics.json", "run.log"):
            (run.folder / name).unlink(missing_ok=True)
    state.settings = dict(run.settings)
    write_state(run, state)
    return state
