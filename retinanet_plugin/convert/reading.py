"""A file of weights: read safely, and its kind known from its keys."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..config import get_config
from ..engine.checkpoint import classes_in, local_file, read_safely
from ..errors import UserError, printable
from . import from_detectron2, from_mmdetection, from_torchvision
from .model import Model, Options, listed

_NESTED = ("model", "state_dict", "model_state_dict")  # where frameworks keep the weights


def read_model(file: Path, config: str | Path | None, options: Options) -> tuple[Model, CfgNode]:
    """The model in a file, and the configuration that it needs.

    Args:
        config: of a model with this plugin's or detectron2's names; None: the ``config.yaml``
            beside it, if any.

    Raises:
        UserError: for a file that cannot be read, is of no known kind, or is not wholly known.
    """
    local_file(str(file), "FILE")
    try:
        content = read_safely(str(file))
    except UserError as error:
        raise UserError(str(error).removeprefix("MODEL.WEIGHTS: ")) from None
    tensors = _tensors(content, file)
    try:
        return _model(tensors, content, file, config, options)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (RuntimeError, IndexError, TypeError, ZeroDivisionError) as error:
        reason = printable(str(error), 200)
        raise UserError(f"{file}: its weights have shapes of no RetinaNet ({reason}).") from None


def _model(
    tensors: dict[str, Tensor],
    content: Mapping[str, Any],
    file: Path,
    config: str | Path | None,
    options: Options,
) -> tuple[Model, CfgNode]:
    if "head.cls_score.weight" in tensors:
        beside = file.with_name("config.yaml")
        cfg = _config(config or (beside if beside.is_file() else None), tensors, content)
        model = from_detectron2.read(tensors, classes_in(dict(content)), cfg, options)
        return model, cfg or config_of(model)
    if config is not None:
        raise UserError("--config-file is for weights with this plugin's names, and these are not.")
    model = _foreign(tensors, content, file, options)
    return model, config_of(model)


def _foreign(
    tensors: dict[str, Tensor], content: Mapping[str, Any], file: Path, options: Options
) -> Model:
    if any(key.startswith("head.classification_head.") for key in tensors):
        return from_torchvision.read_detector(tensors, options, sha256(file))
    if "bbox_head.retina_cls.weight" in tensors:
        return from_mmdetection.read(tensors, content.get("meta"), options)
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return from_torchvision.read_backbone(tensors)
    if "conv1_w" in tensors:
        raise UserError(
            "ImageNet weights of Caffe2, which MODEL.WEIGHTS takes as they are; nothing to convert."
        )
    raise UserError(
        f"the keys ({listed(tensors)}) are of no known kind; known are RetinaNets of detectron2, "
        "torchvision and mmdetection, and ResNets of torchvision."
    )


def config_of(model: Model) -> CfgNode:
    """``Base-RetinaNet.yaml`` under the model's settings."""
    words = [word for key, value in model.settings.items() for word in (key, str(value) or "''")]
    return get_config(overrides=words)


def _config(
    config: str | Path | None, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> CfgNode | None:
    if config is None:
        return None
    cfg = get_config(config)
    retinanet, anchors = cfg.MODEL.RETINANET, cfg.MODEL.ANCHOR_GENERATOR
    if retinanet.NUM_CLASSES < 0:  # as many as the data set had
        ratios = anchors.ASPECT_RATIOS
        ratios = ratios[0] if isinstance(ratios[0], list | tuple) else ratios
        num_anchors = len(ratios) * anchors.SCALES_PER_OCTAVE
        retinanet.NUM_CLASSES = len(tensors["head.cls_score.weight"]) // num_anchors
    return cfg


def _tensors(content: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    found = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
    tensors = {
        key.removeprefix("module."): torch.as_tensor(value)  # as a data-parallel wrapper names them
        for key, value in found.items()
        if isinstance(key, str) and _is_array(value)
    }
    if not tensors:
        raise UserError(f"{file}: it holds no tensors, but {listed(map(str, found))}.")
    return tensors


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def sha256(file: Path) -> str:
    """Of a file, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
