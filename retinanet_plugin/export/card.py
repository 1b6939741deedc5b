"""A model card: what a person should know of an exported model, as Markdown beside it."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..analysis.metrics import METRICS, last_metrics
from ..analysis.speed_accuracy import time_in_turn
from ..predictor import Predictor
from .checking import BOX_TOLERANCE, SCORE_TOLERANCE, Comparison, eager
from .runtimes import Runtime

_ROUNDS = 5


def card_path(path: Path) -> Path:
    """``model.onnx.md`` of ``model.onnx``."""
    return path.with_name(f"{path.name}.md")


def model_card(
    path: Path,
    predictor: Predictor,
    runtime: Runtime,
    comparison: Comparison,
    *,
    measured: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    machine: Mapping[str, Any],
    shape: tuple[int, int],
) -> str:
    """The card of the file at ``path``.

    Args:
        measured: metrics in percent of "the model" and "this file", where they were evaluated.
        seconds: a picture, of the same two.
        machine: that they were measured on, as ``describe_machine`` tells.
        shape: height and width of the pictures timed.
    """
    cfg, told = predictor.cfg, runtime.metadata
    run = Path(cfg.MODEL.WEIGHTS).parent
    trained = last_metrics(run / "metrics.json", cfg.DATASETS.TEST)
    sides = told["resize"]
    rows = {
        "architecture": f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}",
        "trained on": ", ".join(cfg.DATASETS.TRAIN) or "not told by the config",
        "evaluated on": ", ".join(cfg.DATASETS.TEST) or "not told by the config",
        f"classes ({len(told['classes'])})": ", ".join(told["classes"]),
        "precision": told["precision"],
        "input": f"{told['input']['name']}: batch of pictures, {told['input']['layout'].upper()}, "
        f"{told['input']['channels']}, {told['input']['dtype']}, 0 to 255; any number, height and "
        "width",
        "meant for": f"pictures whose short side is resized to {sides['short_side']}, the long "
        f"side to at most {sides['long_side']} pixels",
        "output": ", ".join(told["outputs"]),
        "thresholds": f"score {told['score_threshold']:g}, IoU of NMS {told['nms_threshold']:g}, "
        f"at most {told['max_detections']} detections a picture",
    }
    hashes = {
        "this file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights": told["weights_sha256"],
        "config": told["config_sha256"],
    }
    parts = [
        f"# {_plain(path.name)}",
        _table(("", ""), rows),
        "## Accuracy",
        _accuracy(trained, measured, cfg.DATASETS.TEST),
        "## Speed",
        _table(
            (f"one picture of {shape[0]} x {shape[1]}", "ms"),
            {name: f"{value * 1000:.1f}" for name, value in seconds.items()},
        ),
        f"Median of {_ROUNDS} on {_plain(str(machine['device']))}, {machine['threads']} threads.",
        "## Compared with the model",
        _compared(comparison, told["precision"]),
        "## Where it comes from",
        _table(("", "SHA-256"), {name: f"`{value}`" for name, value in hashes.items()}),
        _table(("", "version"), told["versions"]),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(
    trained: Mapping[str, float] | None,
    measured: Mapping[str, Mapping[str, float]],
    datasets: Any,
) -> str:
    columns = {"the model, at the end of its training": trained} if trained else {}
    columns |= {name: dict(metrics) for name, metrics in measured.items()}
    if not columns:
        return "Not measured; `--evaluate` measures it."
    rows = {
        name: " | ".join(f"{metrics.get(key, float('nan')):.2f}" for key in METRICS)
        for name, metrics in columns.items()
    }
    head = (_plain(f"on {datasets[0]}, in percent"), " | ".join(METRICS))
    lines = [f"| {head[0]} | {head[1]} |", "| --- |" + " --- |" * len(METRICS)]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def _compared(comparison: Comparison, precision: str) -> str:
    seen = f"{comparison.detections} detections in {comparison.pictures} pictures"
    if precision != "float32":
        return (
            f"Of the {seen} and its own, {comparison.confident} score above 0.3; of these the "
            f"other has {comparison.agreed} too."
        )
    edges = (
        f" {comparison.at_edge} lie at the edge of a threshold, where the last bits decide."
        if comparison.at_edge
        else ""
    )
    return (
        f"Of {seen}, boxes are at most {comparison.box:.2g} pixels off and scores at most "
        f"{comparison.score:.2g} (allowed: {BOX_TOLERANCE} and {SCORE_TOLERANCE}); classes and "
        f"number are the same.{edges}"
    )


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {key} | {_plain(value)} |" for key, value in rows.items())])


def _plain(text: str) -> str:
    """Without what Markdown or HTML would act on: names come from files."""
    return re.sub(r"[<>|\[\]*\\\n\r]", " ", text)


def time_both(predictor: Predictor, runtime: Runtime, picture: np.ndarray) -> dict[str, float]:
    """Median seconds of one picture (H, W, 3), in turn, warm."""
    given = {"image": picture[None]}
    times = time_in_turn(
        {
            "the model": lambda x: eager(predictor.model, x["image"]),
            f"this file, by {runtime.name}": lambda x: runtime(x["image"]),
        },
        {name: [dict(given)] for name in ("the model", f"this file, by {runtime.name}")},
        torch.device(predictor.cfg.MODEL.DEVICE),
        _ROUNDS,
    )
    return {name: float(np.median(values)) for name, values in times.items()}
