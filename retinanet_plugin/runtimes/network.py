"""Detectors from ``MODEL.WEIGHTS``, whether these are a checkpoint or an exported file."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ..acceleration.accelerate import accelerate_inference
from ..engine import SafeCheckpointer, Trainer
from ..engine.checkpoint import classes_in
from ..errors import UserError
from ..utils import shorten
from .exported_files import is_exported, load

EAGER = "PyTorch"


def load_network(
    cfg: CfgNode, *, runtime: str = "onnxruntime", classes: list[str] | None = None
) -> tuple[Any, str, list[str] | None]:
    """Loads ``MODEL.WEIGHTS`` for inference.

    Args:
        runtime: runs an ONNX file.
        classes: names that those of the file, if it has any, must equal.

    Returns:
        the model, which is called like detectron2's models; the name of what runs it; and the
        names of its classes, None if the file has none.

    Raises:
        UserError: if the weights cannot be used.
    """
    weights = cfg.MODEL.WEIGHTS
    if not is_exported(weights):
        network: nn.Module = Trainer.build_model(cfg)
        loaded = SafeCheckpointer(network, complete=True, classes=classes).load(weights)
        accelerate_inference(network, cfg)
        return network.eval(), EAGER, classes_in(loaded)
    exported = load(weights, cfg.MODEL.DEVICE, runtime)
    if classes and classes != exported.classes:
        raise UserError(
            f"{weights}: its {len(exported.classes)} classes ({shorten(exported.classes)}) are "
            f"not the dataset's {len(classes)} ({shorten(classes)}); give a dataset with the "
            "same classes in the same order."
        )
    exported.input_format = cfg.INPUT.FORMAT
    return exported, exported.runtime, exported.classes


def overrides_of(metadata: Mapping[str, Any]) -> list[str]:
    """Returns config overrides, key and value in turn, that prepare images for an exported file."""
    resize = metadata["resize"]
    return [
        *("INPUT.MIN_SIZE_TEST", str(resize["short_side"])),
        *("INPUT.MAX_SIZE_TEST", str(resize["long_side"])),
        *("INPUT.FORMAT", metadata["input"]["channels"]),
        *("MODEL.RETINANET.NUM_CLASSES", str(len(metadata["classes"]))),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", str(metadata["score_threshold"])),
    ]
