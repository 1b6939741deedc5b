"""A model card: what a person should know of a model that leaves, as Markdown beside it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from .engine.atomic_io import sha256
from .engine.checkpoint import read_safely
from .evaluation.metrics import METRICS, last_metrics
from .evaluation.timing import time_in_turn
from .predictor import Predictor
from .runtimes.exported_files import Runtime
from .tools.export.checking import BOX_TOLERANCE, SCORE_TOLERANCE, Comparison, eager

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
    trained = metrics_of(Path(cfg.MODEL.WEIGHTS), cfg)
    columns = {"the model, when it was trained": trained} if trained else {}
    rows = {
        **about(cfg, told["classes"]),
        "precision": told["precision"],
        "input": f"{told['input']['name']}: batch of pictures, {told['input']['layout'].upper()}, "
        f"{told['input']['channels']}, {told['input']['dtype']}, 0 to 255; any number, height and "
        "width",
        "output": ", ".join(told["outputs"]),
    }
    hashes = {
        "this file": sha256(path),
        "weights": told["weights_sha256"],
        "config": told["config_sha256"],
    }
    parts = [
        f"# {plain(path.name)}",
        table(("", ""), rows),
        "## Accuracy",
        accuracy_table({**columns, **measured}, cfg) or "Not measured; `--evaluate` measures it.",
        "## Speed",
        table(
            (f"one picture of {shape[0]} x {shape[1]}", "ms"),
            {name: f"{value * 1000:.1f}" for name, value in seconds.items()},
        ),
        f"Median of {_ROUNDS} on {plain(str(machine['device']))}, {machine['threads']} threads.",
        "## Compared with the model",
        _compared(comparison, told["precision"]),
        *origin(hashes, told["versions"]),
    ]
    return "\n\n".join(parts) + "\n"


def about(cfg: CfgNode, classes: Sequence[str]) -> dict[str, str]:
    """What a model is, and the data it is of, in rows of a table."""
    return {
        "architecture": f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}",
        "trained on": ", ".join(data_sets(cfg, "TRAIN")) or "not told by the config",
        "evaluated on": ", ".join(data_sets(cfg, "TEST")) or "not told by the config",
        f"classes ({len(classes)})": ", ".join(classes),
        "meant for": f"pictures whose short side is resized to {cfg.INPUT.MIN_SIZE_TEST}, the long "
        f"side to at most {cfg.INPUT.MAX_SIZE_TEST} pixels",
        "thresholds": f"score {cfg.MODEL.RETINANET.SCORE_THRESH_TEST:g}, IoU of NMS "
        f"{cfg.MODEL.RETINANET.NMS_THRESH_TEST:g}, at most {cfg.TEST.DETECTIONS_PER_IMAGE} "
        "detections a picture",
    }


def data_sets(cfg: CfgNode, part: str) -> list[str]:
    """The names of those to train on ("TRAIN") or of the others ("TEST"), with a file of one's own.

    Of its path the folder and the name are told: a card is for other people.
    """
    own = cfg.DATASETS.OWN
    if file := own[f"{part}_JSON"]:
        return [f"own_{part.lower()} ({'/'.join(Path(own.ROOT, file).parts[-2:])})"]
    return list(cfg.DATASETS[part])


def metrics_of(weights: Path, cfg: CfgNode) -> dict[str, float] | None:
    """The metrics of a checkpoint, in percent, where its own training evaluated it."""
    iteration = read_safely(str(weights)).get("iteration")
    sets = data_sets(cfg, "TEST")
    if not isinstance(iteration, int) or not sets:
        return None
    return last_metrics(weights.with_name("metrics.json"), sets, iteration + 1)


def accuracy_table(columns: Mapping[str, Mapping[str, float]], cfg: CfgNode) -> str:
    """The metrics of each of several, in percent; nothing for none."""
    if not columns:
        return ""
    rows = {
        name: " | ".join(f"{metrics.get(key, float('nan')):.2f}" for key in METRICS)
        for name, metrics in columns.items()
    }
    head = (plain(f"on {data_sets(cfg, 'TEST')[0]}, in percent"), " | ".join(METRICS))
    lines = [f"| {head[0]} | {head[1]} |", "| --- |" + " --- |" * len(METRICS)]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def origin(hashes: Mapping[str, str], versions: Mapping[str, str]) -> list[str]:
    """The last part of a card: of which bytes it speaks, and what made them."""
    return [
        "## Where it comes from",
        table(("", "SHA-256"), {name: f"`{value}`" for name, value in hashes.items()}),
        table(("", "version"), versions),
    ]


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


def table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    """Of two columns."""
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {key} | {plain(value)} |" for key, value in rows.items())])


def plain(text: str) -> str:
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
