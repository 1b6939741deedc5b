"""The model card of an exported file: what a person who receives it should know, as Markdown."""

import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import detectron2
from detectron2.config import CfgNode

from ... import __version__
from ...engine.checkpoint import read_safely
from ...evaluation.run_log import METRICS, last_metrics
from ...predictor import Predictor
from ...runtimes.exported_files import ExportedModel
from ...utils import markdown_table, sha256
from .comparison import TOLERANCES, Comparison


def card_path(path: Path) -> Path:
    """Returns ``model.onnx.md`` for ``model.onnx``."""
    return path.with_name(f"{path.name}.md")


def model_card(
    path: Path, predictor: Predictor, exported: ExportedModel, comparison: Comparison
) -> str:
    """Returns the model card of an exported file, in Markdown."""
    cfg, metadata = predictor.cfg, exported.metadata
    retinanet, given = cfg.MODEL.RETINANET, metadata["input"]
    tolerance = TOLERANCES[metadata["precision"]]
    about = {
        "architecture": f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}",
        "trained on": ", ".join(_datasets(cfg, "TRAIN")) or "unknown",
        "evaluated on": ", ".join(_datasets(cfg, "TEST")) or "unknown",
        f"classes ({len(metadata['classes'])})": ", ".join(metadata["classes"]),
        "image size": f"short side resized to {cfg.INPUT.MIN_SIZE_TEST} pixels, long side at most "
        f"{cfg.INPUT.MAX_SIZE_TEST}",
        "thresholds": f"score {retinanet.SCORE_THRESH_TEST:g}, NMS IoU "
        f"{retinanet.NMS_THRESH_TEST:g}, at most {cfg.TEST.DETECTIONS_PER_IMAGE} detections per "
        "image",
        "precision": metadata["precision"],
        "input": f"{given['name']}: batch of images of any size, {given['layout'].upper()}, "
        f"{given['channels']}, {given['dtype']}, 0 to 255",
        "output": ", ".join(metadata["outputs"]),
    }
    hashes = {
        "this file": f"`{sha256(path)}`",
        "weights": f"`{metadata['weights_sha256']}`",
    }
    parts = [
        f"# {_plain(path.name)}",
        _table(("", ""), about),
        "## Accuracy",
        _accuracy(Path(cfg.MODEL.WEIGHTS), cfg),
        f"`retinanet evaluate --weights {_plain(path.name)}` measures AP and milliseconds per "
        "image.",
        "## Compared with the model",
        f"In {comparison.images} images, the file and the model have {comparison.detections} "
        f"detections above a score of {tolerance.min_score:g}; {comparison.same} of them are in "
        f"both, with scores that differ by at most {tolerance.score:g}.",
        "## Origin",
        _table(("", "SHA-256"), hashes),
        _table(("", "version"), metadata["versions"]),
    ]
    return "\n\n".join(parts) + "\n"


def _datasets(cfg: CfgNode, split: str) -> list[str]:
    """Returns the names of the datasets of a split ("TRAIN" or "TEST").

    Only the last two parts of the path of an own JSON file are shown: a card is for other people.
    """
    own = cfg.DATASETS.OWN
    if file := own[f"{split}_JSON"]:
        return [f"own_{split.lower()} ({'/'.join(Path(own.ROOT, file).parts[-2:])})"]
    return list(cfg.DATASETS[split])


def _accuracy(weights: Path, cfg: CfgNode) -> str:
    """Returns a checkpoint's metrics, if its own training run evaluated it."""
    iteration = read_safely(str(weights)).get("iteration")
    datasets = _datasets(cfg, "TEST")
    if not isinstance(iteration, int) or not datasets:
        return "Not measured."
    metrics = last_metrics(weights.with_name("metrics.json"), datasets, iteration + 1)
    if not metrics:
        return "Not measured."
    header = [_plain(f"on {datasets[0]}, in percent"), *METRICS]
    values = (f"{metrics.get(key, float('nan')):.2f}" for key in METRICS)
    return markdown_table(header, [["the model, when it was trained", *values]])


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


def _table(header: tuple[str, str], rows: Mapping[str, str]) -> str:
    return markdown_table(header, [(key, _plain(value)) for key, value in rows.items()])


def _plain(text: str) -> str:
    """Blanks out Markdown and HTML syntax: names come from files of unknown origin."""
    return re.sub(r"[<>|\[\]*\\\n\r]", " ", text)
