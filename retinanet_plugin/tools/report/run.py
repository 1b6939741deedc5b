"""What the folder of a run says about its training: curves, evaluations, speed, settings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median

from detectron2.config import CfgNode, get_cfg

from ...config import add_retinanet_config, get_config
from ...errors import UserError
from ...evaluation.run_log import read_lines, read_scalars
from ...utils import flatten

# detectron2's log lines: its hooks, its evaluator, and its table of the environment at the start.
_TRAINED = re.compile(r"Total training time: (?:(\d+) days?, )?(\d+):(\d+):(\d+)")
_INFERENCE = re.compile(r"Total inference time: .*\(([\d.e-]+) s / iter per device")
_NETWORK = re.compile(r"inference pure compute time: .*\(([\d.e-]+) s / iter per device")
_GPU = re.compile(r"^GPU 0[\d,]*  +(.+?)(?: \(arch=.*)?$", re.MULTILINE)

Series = dict[int, float]  # values by step, ascending; NaN and infinity are kept


@dataclass(frozen=True)
class Run:
    """What a run wrote, except its detections.

    Args:
        folder: absolute path.
        series: of ``metrics.json``, by name, such as ``total_loss`` and ``bbox/AP`` (in percent;
            with several test sets, ``NAME/bbox/AP``).
        last: the step of the evaluation that was made last, whatever its checkpoint's step.
        steps: that were trained, SOLVER.MAX_ITER if it finished.
        device: name of the GPU, or MODEL.DEVICE.
        speed: times to show, by what they measure.
        settings: the keys that differ from the defaults of detectron2 and the plugin.
        config: content of config.yaml.
    """

    folder: str
    series: dict[str, Series]
    last: int | None
    steps: int
    max_steps: int
    device: str
    speed: dict[str, str]
    settings: dict[str, str]
    config: str


def read_config(folder: Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads the config of the run in ``folder``, and sets OUTPUT_DIR to it, as it may have moved.

    Raises:
        UserError: if the folder holds no run, or its config is not valid.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the OUTPUT_DIR of a training run.")
    cfg = get_config(path, overrides)
    if not any((folder / name).exists() for name in ("metrics.json", "inference")):
        raise UserError(
            f"{folder}: no run here, only a config whose OUTPUT_DIR is {cfg.OUTPUT_DIR}; give the "
            "OUTPUT_DIR of a training run."
        )
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def read_run(folder: Path, cfg: CfgNode) -> Run:
    """Reads what a run wrote; ``cfg`` is from :func:`read_config`."""
    series, last = _read_metrics(folder / "metrics.json")
    log = "\n".join(read_lines(folder / "log.txt"))
    defaults = get_cfg()
    add_retinanet_config(defaults)
    usual = dict(flatten(defaults))
    gpus = _GPU.findall(log) if cfg.MODEL.DEVICE.startswith("cuda") else []
    return Run(
        str(folder.resolve()),
        series,
        last,
        max(series.get("total_loss", {}), default=-1) + 1,
        cfg.SOLVER.MAX_ITER,
        gpus[-1] if gpus else cfg.MODEL.DEVICE,
        _speed(log, series.get("time", {}), cfg.SOLVER.IMS_PER_BATCH),
        {key: str(value) for key, value in flatten(cfg) if usual.get(key) != value},
        "\n".join(read_lines(folder / "config.yaml")),
    )


def _read_metrics(path: Path) -> tuple[dict[str, Series], int | None]:
    """Reads all series, and the step of the last evaluation.

    A resumed run repeats steps: only what was logged last counts, and nothing that came after the
    checkpoint in the earlier session.
    """
    series: dict[str, Series] = {}
    trained, last = -1, None
    for line in read_scalars(path):
        step = line.pop("iteration")
        if "total_loss" in line:  # of training; evaluations have lines of their own
            if step < trained:
                series = {
                    key: {i: value for i, value in values.items() if i <= step}
                    for key, values in series.items()
                }
            trained = step
        for key, value in line.items():
            series.setdefault(key, {})[step] = value
            if key.endswith("bbox/AP"):
                last = step
    return {key: dict(sorted(values.items())) for key, values in series.items() if values}, last


def _speed(log: str, times: Mapping[int, float], batch_size: int) -> dict[str, str]:
    sessions = [[int(n or 0) for n in session] for session in _TRAINED.findall(log)]
    seconds = sum(((d * 24 + h) * 60 + m) * 60 + s for d, h, m, s in sessions)
    speed = {"training in total": str(timedelta(seconds=seconds))} if seconds else {}
    if times:
        step = median(times.values())
        speed["per training step"] = f"{1000 * step:,.1f} ms"
        speed["images per second in training"] = f"{batch_size / step:,.1f}"
    for label, pattern in (
        ("per image in evaluation, with data loading", _INFERENCE),
        ("of it in the network", _NETWORK),
    ):
        if evaluations := pattern.findall(log):
            speed[label] = f"{1000 * float(evaluations[-1]):,.1f} ms"
    return speed
