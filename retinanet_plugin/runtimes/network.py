"""What detects, whether its weights are a checkpoint or a file that was exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ..acceleration.accelerate import speed_up_inference
from ..engine import SafeCheckpointer, Trainer
from ..engine.checkpoint import classes_in
from ..errors import UserError
from ..tools.export.files import FORMATS
from .exported_files import DetectronModel, load

EAGER = "PyTorch"


def is_exported(path: str | Path) -> bool:
    """Whether the name of a file of weights is that of an exported one, by its ending."""
    return Path(path).suffix.removeprefix(".") in FORMATS


def load_network(
    cfg: CfgNode, *, runtime: str = "onnxruntime", classes: list[str] | None = None
) -> tuple[Any, str, list[str] | None]:
    """What detects with ``MODEL.WEIGHTS``, the name of what runs it, and the classes it names.

    It is called as detectron2 calls a model in eval mode.

    Args:
        runtime: of an ONNX file.
        classes: that it must have, if it names any.

    Raises:
        UserError: for weights that cannot be used.
    """
    weights = cfg.MODEL.WEIGHTS
    if not is_exported(weights):
        network: nn.Module = Trainer.build_model(cfg)
        loaded = SafeCheckpointer(network, complete=True, classes=classes).load(weights)
        speed_up_inference(network, cfg)
        return network.eval(), EAGER, classes_in(loaded)
    exported = load(weights, cfg.MODEL.DEVICE, runtime)
    if classes and classes != exported.classes:
        raise UserError(
            f"{weights}: exported for the classes {_few(exported.classes)}, but the data set has "
            f"{_few(classes)}; give a data set with its classes in its order, or another file."
        )
    return DetectronModel(exported, cfg.INPUT.FORMAT), exported.name, exported.classes


def keys_of(metadata: Mapping[str, Any]) -> list[str]:
    """Key, value, key, value ... of a config that treats pictures as the file wants it."""
    resize = metadata["resize"]
    return [
        *("INPUT.MIN_SIZE_TEST", str(resize["short_side"])),
        *("INPUT.MAX_SIZE_TEST", str(resize["long_side"])),
        *("INPUT.FORMAT", metadata["input"]["channels"]),
        *("MODEL.RETINANET.NUM_CLASSES", str(len(metadata["classes"]))),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", str(metadata["score_threshold"])),
    ]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
