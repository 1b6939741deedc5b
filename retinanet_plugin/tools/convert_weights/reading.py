"""Reads a file of weights safely, and recognizes its framework by its keys."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ...config import get_config
from ...engine.checkpoint import classes_in, read_safely
from ...errors import UserError, printable
from ...predictor import config_beside
from ...utils import flatten, sha256, shorten
from . import detectron2_model, from_mmdetection, from_torchvision
from .model import COCO_CLASSES, Model, Options, check_values

_WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys that hold the weights
# What the training state in mmengine's checkpoints names besides tensors.
_TRAINING_STATE = {
    "mmengine.logging.history_buffer": ["HistoryBuffer"],
    "builtins": ["getattr"],  # buffers name their own methods by it
    "numpy": ["ndarray", "dtype"],
    "numpy.core.multiarray": ["_reconstruct", "scalar"],  # numpy 1
    "numpy._core.multiarray": ["_reconstruct", "scalar"],  # numpy 2
}


def read_model(
    file: Path, config: str | None, options: Options, overrides: Sequence[str] = ()
) -> tuple[Model, CfgNode]:
    """Returns the model in a file and its config.

    Args:
        config: of a model with detectron2's names; None: the ``config.yaml`` beside it, if any.
        overrides: of the model's config, key and value in turn.

    Raises:
        UserError: if the file cannot be read, is of an unknown kind, or not known completely.
    """
    get_config(overrides=overrides)  # refuses mistakes before the file is read
    with _ignore_training_state():
        content = read_safely(str(file), "--weights")
    try:
        tensors, others = _tensors(content)
        cfg = None
        if "head.cls_score.weight" in tensors:
            classes = classes_in(dict(content))
            cfg = _own_config(config, file, classes, overrides)
            model = detectron2_model.read(tensors, classes, cfg)
        elif config is not None:
            raise UserError("--config-file: only for weights with detectron2's names.")
        else:
            model = _read_foreign(tensors, content, file, options)
        check_values(model.weights)
        if cfg is None:
            settings = [x for k, v in model.settings.items() for x in (k, str(v) or "''")]
            cfg = get_config(overrides=[*settings, *overrides])
            values = dict(flatten(cfg))
            model.settings |= {key: values[key] for key in overrides[::2]}
        model.classes = options.classes or model.classes
        if model.classes is None and _is_coco(cfg):
            model.classes = list(COCO_CLASSES)
        _check_options(model, cfg, options)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (RuntimeError, LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = printable(str(error), 200)
        raise UserError(f"{file}: keys or shapes are not a RetinaNet's ({reason}).") from None
    model.keys.unused |= others
    return model, cfg


def _read_foreign(
    tensors: dict[str, Tensor], content: Mapping[str, Any], file: Path, options: Options
) -> Model:
    if any(key.startswith("head.classification_head.") for key in tensors):
        if file.with_name("model.json").exists():
            raise UserError(
                "written by --to torchvision: model.json beside it has settings that the weights "
                "do not tell; convert the original weights instead."
            )
        return from_torchvision.read_detector(tensors, options, sha256(file))
    if "bbox_head.retina_cls.weight" in tensors:
        return from_mmdetection.read_detector(tensors, content.get("meta"), options)
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return from_torchvision.read_backbone(tensors)
    raise UserError(
        f"unknown kind of model ({printable(shorten(tensors))}); known: RetinaNets of detectron2, "
        "torchvision and mmdetection, and torchvision's ResNets."
    )


def _own_config(
    config: str | Path | None, file: Path, classes: list[str] | None, overrides: Sequence[str]
) -> CfgNode | None:
    if config is None:
        try:
            config = config_beside(file)
        except UserError:
            return None
    cfg = get_config(config, overrides)
    if cfg.MODEL.RETINANET.NUM_CLASSES < 0:  # as many as the dataset had
        cfg.MODEL.RETINANET.NUM_CLASSES = len(classes or ())
    return cfg


def _is_coco(cfg: CfgNode) -> bool:
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    is_coco = bool(names) and all(name.startswith("coco_") for name in names)
    return is_coco and cfg.MODEL.RETINANET.NUM_CLASSES == len(COCO_CLASSES)


def _check_options(model: Model, cfg: CfgNode, options: Options) -> None:
    """Raises a UserError for an option of another kind of file, or a wrong number of classes."""
    for option, is_given, source in (
        ("--no-background", not options.has_background, "torchvision RetinaNet"),
        ("--norm-eps", options.norm_eps is not None, "torchvision RetinaNet"),
        ("--caffe-style", options.caffe_style is not None, "mmdetection RetinaNet"),
        ("--classes", options.classes is not None and not model.is_detector, "RetinaNet"),
    ):
        if is_given and not model.source.startswith(source):
            raise UserError(f"{option}: only for a {source}; this is a {model.source}.")
    names, num_classes = model.classes, cfg.MODEL.RETINANET.NUM_CLASSES
    if model.is_detector and names and len(names) != num_classes:
        where = "--classes" if options.classes else "class names in the file"
        note = " besides the background" if model.source.startswith("torchvision") else ""
        raise UserError(
            f"{where}: {len(names)} names, but the model has {num_classes} classes{note}."
        )


def _tensors(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the weights without a data-parallel wrapper's prefix, and why others are left out."""
    state = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    tensors: dict[str, Tensor] = {}
    others = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray | Tensor):
            others[str(key)] = f"not a tensor, but a {type(value).__name__}"
        else:
            tensors[key.removeprefix("module.")] = torch.as_tensor(value)
    if not tensors:
        raise UserError(f"it has no tensors ({printable(shorten(state)) or 'it is empty'}).")
    return tensors, others


class _Ignored:
    """Stands in for classes and functions of a training state; keeps nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


def _ignore_training_state() -> AbstractContextManager[Any]:
    """Lets ``torch.load(weights_only=True)`` read mmengine's files without its code."""
    if not hasattr(torch.serialization, "safe_globals"):  # torch 2.4
        return nullcontext()
    stand_ins: list[Any] = [
        type(name, (_Ignored,), {"__module__": module})
        for module, names in _TRAINING_STATE.items()
        for name in names
    ]
    return torch.serialization.safe_globals(stand_ins)
