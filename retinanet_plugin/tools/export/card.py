"""The model card of an exported file."""

from pathlib import Path

from ...model_card import about, accuracy_table, metrics_of, origin, plain, table
from ...predictor import Predictor
from ...runtimes.exported_files import ExportedModel
from ...utils import sha256
from .comparison import TOLERANCES, Comparison


def model_card(
    path: Path, predictor: Predictor, exported: ExportedModel, comparison: Comparison
) -> str:
    """Returns the card of the file at ``path`` as Markdown."""
    cfg, metadata = predictor.cfg, exported.metadata
    trained = metrics_of(Path(cfg.MODEL.WEIGHTS), cfg)
    columns = {"the model, when it was trained": trained} if trained else {}
    given, tolerance = metadata["input"], TOLERANCES[metadata["precision"]]
    rows = {
        **about(cfg, metadata["classes"]),
        "precision": metadata["precision"],
        "input": f"{given['name']}: batch of images of any size, {given['layout'].upper()}, "
        f"{given['channels']}, {given['dtype']}, 0 to 255",
        "output": ", ".join(metadata["outputs"]),
    }
    hashes = {"this file": sha256(path), "weights": metadata["weights_sha256"]}
    parts = [
        f"# {plain(path.name)}",
        table(("", ""), rows),
        "## Accuracy",
        accuracy_table(columns, cfg) or "Not measured.",
        f"`retinanet evaluate --weights {plain(path.name)}` measures AP and milliseconds per "
        "image.",
        "## Compared with the model",
        f"In {comparison.images} images, the file and the model have {comparison.detections} "
        f"detections above a score of {tolerance.min_score:g}; {comparison.same} of them are in "
        f"both, with scores that differ by at most {tolerance.score:g}.",
        *origin(hashes, metadata["versions"]),
    ]
    return "\n\n".join(parts) + "\n"
