"""Parts of a model card: what a person who receives a model should know about it, as Markdown."""

import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import detectron2
from detectron2.config import CfgNode

from . import __version__
from .engine.checkpoint import read_safely
from .evaluation.metrics import METRICS, last_metrics
from .utils import markdown_table


def card_path(path: Path) -> Path:
    """Returns ``model.onnx.md`` for ``model.onnx``."""
    return path.with_name(f"{path.name}.md")


def about(cfg: CfgNode, classes: Sequence[str]) -> dict[str, str]:
    """Describes a model and its data, as rows of a table."""
    retinanet = cfg.MODEL.RETINANET
    return {
        "architecture": f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}",
        "trained on": ", ".join(dataset_labels(cfg, "TRAIN")) or "unknown",
        "evaluated on": ", ".join(dataset_labels(cfg, "TEST")) or "unknown",
        f"classes ({len(classes)})": ", ".join(classes),
        "image size": f"short side resized to {cfg.INPUT.MIN_SIZE_TEST} pixels, long side at most "
        f"{cfg.INPUT.MAX_SIZE_TEST}",
        "thresholds": f"score {retinanet.SCORE_THRESH_TEST:g}, NMS IoU "
        f"{retinanet.NMS_THRESH_TEST:g}, at most {cfg.TEST.DETECTIONS_PER_IMAGE} detections per "
        "image",
    }


def dataset_labels(cfg: CfgNode, split: str) -> list[str]:
    """Returns the names of the datasets of a split ("TRAIN" or "TEST").

    Only the last two parts of the path of an own JSON file are shown: a card is for other people.
    """
    own = cfg.DATASETS.OWN
    if file := own[f"{split}_JSON"]:
        return [f"own_{split.lower()} ({'/'.join(Path(own.ROOT, file).parts[-2:])})"]
    return list(cfg.DATASETS[split])


def metrics_of(weights: Path, cfg: CfgNode) -> dict[str, float] | None:
    """Returns a checkpoint's metrics in percent, if its own training run evaluated it."""
    iteration = read_safely(str(weights)).get("iteration")
    labels = dataset_labels(cfg, "TEST")
    if not isinstance(iteration, int) or not labels:
        return None
    return last_metrics(weights.with_name("metrics.json"), labels, iteration + 1)


def accuracy_table(columns: Mapping[str, Mapping[str, float]], cfg: CfgNode) -> str:
    """Returns a table of the metrics, in percent, of each named model; empty without models."""
    if not columns:
        return ""
    rows = [
        [name, *(f"{metrics.get(key, float('nan')):.2f}" for key in METRICS)]
        for name, metrics in columns.items()
    ]
    header = [plain(f"on {dataset_labels(cfg, 'TEST')[0]}, in percent"), *METRICS]
    return markdown_table(header, rows)


def origin(hashes: Mapping[str, str], versions: Mapping[str, str]) -> list[str]:
    """Returns the last section of a card: which files it describes and what made them."""
    return [
        "## Origin",
        table(("", "SHA-256"), {name: f"`{value}`" for name, value in hashes.items()}),
        table(("", "version"), versions),
    ]


def versions() -> dict[str, str]:
    """Returns the versions of this package and of those that made an exported file."""
    result = {
        "retinanet_plugin": __version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }
    for name in ("torch", "torchvision", "onnx", "onnxruntime"):
        with suppress(PackageNotFoundError):
            result[name] = version(name)
    return result


def table(header: tuple[str, str], rows: Mapping[str, str]) -> str:
    """Returns a table of two columns."""
    return markdown_table(header, [(key, plain(value)) for key, value in rows.items()])


def plain(text: str) -> str:
    """Blanks out Markdown and HTML syntax: names come from files of unknown origin."""
    return re.sub(r"[<>|\[\]*\\\n\r]", " ", text)
