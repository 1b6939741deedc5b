"""The model card of an exported file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...evaluation.timing import time_in_turn
from ...model_card import about, accuracy_table, metrics_of, origin, plain, table
from ...predictor import Predictor
from ...runtimes.exported_files import Runtime
from ...utils import sha256
from .comparison import BOX_TOLERANCE, SCORE_TOLERANCE, Comparison, eager_detections

_ROUNDS = 5


def model_card(
    path: Path,
    predictor: Predictor,
    runtime: Runtime,
    comparison: Comparison,
    *,
    accuracy: Mapping[str, Mapping[str, float]],
    image: np.ndarray,
    machine: Mapping[str, Any],
) -> str:
    """Returns the card of the file at ``path`` as Markdown.

    Args:
        accuracy: metrics, in percent, by name of what was evaluated; may be empty.
        image: (H, W, 3), on which the model and the file are timed.
        machine: description of this machine.
    """
    cfg, metadata = predictor.cfg, runtime.metadata
    trained = metrics_of(Path(cfg.MODEL.WEIGHTS), cfg)
    columns = {"the model, when it was trained": trained} if trained else {}
    given = metadata["input"]
    rows = {
        **about(cfg, metadata["classes"]),
        "precision": metadata["precision"],
        "input": f"{given['name']}: batch of images of any size, {given['layout'].upper()}, "
        f"{given['channels']}, {given['dtype']}, 0 to 255",
        "output": ", ".join(metadata["outputs"]),
    }
    hashes = {
        "this file": sha256(path),
        "weights": metadata["weights_sha256"],
        "config": metadata["config_sha256"],
    }
    speed = {name: f"{x * 1000:.1f}" for name, x in _seconds(predictor, runtime, image).items()}
    parts = [
        f"# {plain(path.name)}",
        table(("", ""), rows),
        "## Accuracy",
        accuracy_table({**columns, **accuracy}, cfg) or "Not measured; `--evaluate` does so.",
        "## Speed",
        table((f"one image of {image.shape[0]} x {image.shape[1]}", "ms"), speed),
        f"Median of {_ROUNDS} on {plain(str(machine['device']))}, {machine['threads']} threads.",
        "## Compared with the model",
        _summary(comparison, metadata["precision"]),
        *origin(hashes, metadata["versions"]),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(comparison: Comparison, precision: str) -> str:
    total = f"{comparison.detections} detections in {comparison.images} images"
    if precision != "float32":
        return (
            f"The model has {total}. Of all detections above a score of 0.3, {comparison.agreed} "
            f"of {comparison.confident} are in both."
        )
    edges = f" {comparison.at_edge} are at the edge of a threshold." if comparison.at_edge else ""
    return (
        f"The model has {total}, and so has this file. Boxes differ by at most "
        f"{comparison.box:.2g} pixels, scores by {comparison.score:.2g} (allowed: {BOX_TOLERANCE} "
        f"and {SCORE_TOLERANCE}).{edges}"
    )


def _seconds(predictor: Predictor, runtime: Runtime, image: np.ndarray) -> dict[str, float]:
    """Returns the median time of both for one image, measured in turn."""
    models: dict[str, Callable[[np.ndarray], Any]] = {
        "the model": lambda x: eager_detections(predictor.model, x),
        f"this file, by {runtime.name}": runtime,
    }
    given = {name: [image[None]] for name in models}
    device = torch.device(predictor.cfg.MODEL.DEVICE)
    times = time_in_turn(models, given, device, _ROUNDS)
    return {name: float(np.median(values)) for name, values in times.items()}
