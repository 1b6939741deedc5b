"""What a finished run's folder tells of its training: curves, evaluations, speed, settings."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from detectron2.config import CfgNode, get_cfg

import retinanet_plugin

from ...config import add_retinanet_config, get_config
from ...errors import UserError
from ...evaluation.metrics import read_lines, read_scalars

_TRAINING = "total_loss"  # is in the lines of training, not in those of evaluations
_TRAINED = re.compile(r"Total training time: (?:(\d+) days?, )?(\d+):(\d+):(\d+)")
_INFERENCE = re.compile(r"Total inference time: .*\(([\d.e-]+) s / iter per device")
_NETWORK = re.compile(r"inference pure compute time: .*\(([\d.e-]+) s / iter per device")
# Of detectron2's table of the environment, at the start of the log.
_VERSION = re.compile(r"(Python|numpy|detectron2|PyTorch|torchvision|fvcore|Pillow|cv2)  +(\S+)")
_GPU = re.compile(r"GPU 0[\d,]*  +(.+?)(?: \(arch=.*)?")


@dataclass(frozen=True)
class Series:
    """One scalar of ``metrics.json`` against the step.

    Args:
        steps: ascending, each once.
        values: as many; None where it was not finite.
    """

    steps: list[int]
    values: list[float | None]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of all test sets after ``step`` steps, by detectron2's names, in percent.

    With several test sets the names begin with the set's: ``NAME/bbox/AP``.
    """

    step: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Speed:
    """None where the run does not tell.

    Args:
        device: the name of the GPU, or what MODEL.DEVICE says.
        seconds_per_step: the median over the run's lines of detectron2's ``time``.
        pictures_per_second: of training, from that and the batch.
        training_seconds: of all times that the run was gone on with.
        seconds_per_picture: of evaluation on one device, with everything.
        network_seconds_per_picture: of that, the network and its NMS.
    """

    device: str | None
    seconds_per_step: float | None
    pictures_per_second: float | None
    training_seconds: float | None
    seconds_per_picture: float | None
    network_seconds_per_picture: float | None


@dataclass(frozen=True)
class DatasetSize:
    """Of one data set; numbers are None where the data set is not there any more.

    Args:
        split: "training", "test", or "validation".
        boxes: without crowds.
        boxes_by_class: as the class names.
    """

    name: str
    split: str
    pictures: int | None
    boxes: int | None
    boxes_by_class: list[int] | None


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Args:
        folder: absolute path.
        class_names: by their numbers; empty where no data set is there to tell.
        series: by the names in ``metrics.json``, such as ``total_loss``, ``lr``.
        evaluations: ascending by step.
        best: the one with the highest AP of the first test set.
        last: the one that was made last, whatever the step of its checkpoint.
        steps: that were trained, SOLVER.MAX_ITER if it was finished.
        versions: of Python, PyTorch, detectron2 and so on, as logged when it ran; of the plugin,
            which the log does not tell, the one that reads it.
        settings: the keys that differ from detectron2's and the plugin's defaults.
        config: all of config.yaml.
    """

    folder: str
    class_names: list[str]
    series: dict[str, Series]
    evaluations: list[Evaluation]
    best: Evaluation | None
    last: Evaluation | None
    steps: int
    max_steps: int
    speed: Speed
    versions: dict[str, str]
    datasets: list[DatasetSize]
    settings: dict[str, str]
    config: str


def read_run(folder: Path, cfg: CfgNode, test_sets: Sequence[str]) -> Run:
    """Reads what a run wrote, but for its data sets.

    Args:
        cfg: of :func:`read_config`.
        test_sets: names, of which the first says which evaluation was best.
    """
    series, evaluations, last = _read_metrics(folder / "metrics.json")
    key = f"{test_sets[0]}/bbox/AP" if len(test_sets) > 1 else "bbox/AP"
    rated = [e for e in evaluations if e.metrics.get(key) is not None]
    log = read_lines(folder / "log.txt")
    trained = series.get(_TRAINING)
    return Run(
        str(folder.resolve()),
        [],
        series,
        evaluations,
        max(rated, key=lambda e: e.metrics[key] or 0, default=None),
        last,
        trained.steps[-1] + 1 if trained else 0,
        cfg.SOLVER.MAX_ITER,
        _speed(log, series, cfg),
        _versions(log),
        [],
        _settings(cfg),
        "\n".join(read_lines(folder / "config.yaml")),
    )


def read_config(folder: Path) -> CfgNode:
    """The configuration of the run in a folder, with that as OUTPUT_DIR, wherever it was before.

    Raises:
        UserError: where the folder holds no run, or its configuration cannot be used.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"no file {path}; give the OUTPUT_DIR of a training run.")
    cfg = get_config(path)
    if not any((folder / name).exists() for name in ("metrics.json", "inference")):
        raise UserError(
            f"{folder} holds a config, but neither metrics.json nor inference, so no run; give the "
            f"OUTPUT_DIR of one ({path} says {cfg.OUTPUT_DIR})."
        )
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def _read_metrics(path: Path) -> tuple[dict[str, Series], list[Evaluation], Evaluation | None]:
    """The scalars, and apart from them those of evaluations.

    A run that went on from a checkpoint repeats steps: what was logged last counts, and nothing
    that the steps after that checkpoint had led to.
    """
    scalars: dict[str, dict[int, float | None]] = {}
    metrics: dict[int, dict[str, float | None]] = {}
    trained, last = -1, None
    for line in read_scalars(path):
        step = line.pop("iteration", None)
        if not isinstance(step, int):
            continue
        if _TRAINING in line:
            if step < trained:
                for values in scalars.values():
                    _forget(values, step)
                _forget(metrics, step)
            trained = step
        for key, value in line.items():
            if isinstance(value, int | float):
                number = float(value) if math.isfinite(value) else None
                if _is_metric(key):
                    metrics.setdefault(step, {})[key] = number
                    last = step
                else:
                    scalars.setdefault(key, {})[step] = number
    evaluations = {step: Evaluation(step, found) for step, found in sorted(metrics.items())}
    series = {key: _series(values) for key, values in sorted(scalars.items()) if values}
    return series, list(evaluations.values()), evaluations.get(last) if last is not None else None


def _forget(by_step: dict[int, Any], after: int) -> None:
    for step in [step for step in by_step if step > after]:
        del by_step[step]


def _is_metric(key: str) -> bool:
    """Whether an evaluator gave it: "bbox/AP", "NAME/bbox/AP50"."""
    return "bbox" in key.split("/")[:-1]


def _series(values: Mapping[int, float | None]) -> Series:
    steps = sorted(values)
    return Series(steps, [values[step] for step in steps])


def _speed(log: Sequence[str], series: Mapping[str, Series], cfg: CfgNode) -> Speed:
    times = [t for t in series["time"].values if t] if "time" in series else []
    step = median(times) if times else None
    sessions = [[int(n or 0) for n in found] for found in _all(_TRAINED, log)]
    evaluation, network = _all(_INFERENCE, log), _all(_NETWORK, log)
    gpus = [found[1] for line in log if (found := _GPU.fullmatch(line.strip()))]
    on_gpu = str(cfg.MODEL.DEVICE).startswith("cuda")
    return Speed(
        gpus[-1] if gpus and on_gpu else cfg.MODEL.DEVICE,
        step,
        cfg.SOLVER.IMS_PER_BATCH / step if step else None,
        float(sum(((d * 24 + h) * 60 + m) * 60 + s for d, h, m, s in sessions)) or None,
        float(evaluation[-1]) if evaluation else None,
        float(network[-1]) if network else None,
    )


def _all(pattern: re.Pattern[str], lines: Sequence[str]) -> list[Any]:
    """What the pattern's groups are in each line that has it."""
    return [found for line in lines for found in pattern.findall(line)]


def _versions(log: Sequence[str]) -> dict[str, str]:
    """The last that the log tells."""
    told = {found[1]: found[2] for line in log if (found := _VERSION.match(line))}
    return {**told, "retinanet_plugin": retinanet_plugin.__version__}


def _settings(cfg: CfgNode) -> dict[str, str]:
    defaults = get_cfg()
    add_retinanet_config(defaults)
    usual = _flat(defaults)
    return {key: str(value) for key, value in _flat(cfg).items() if usual.get(key) != value}


def _flat(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, CfgNode) else {name: value})
    return flat
