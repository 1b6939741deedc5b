"""Reads a file of weights safely, and recognizes its framework by its keys."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ...config import get_config
from ...engine.checkpoint import classes_in, read_safely
from ...errors import UserError, printable
from ...utils import sha256, shorten
from . import from_detectron2, from_mmdetection, from_torchvision
from .head_rows import COCO_CLASSES
from .model import Model, Options, check_values
from .to_torchvision import factory
from .training_state import ignore_training_state

_WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys that hold the weights


def read_model(file: Path, config: str | None, options: Options) -> tuple[Model, CfgNode]:
    """Returns the model in a file and its config.

    Args:
        config: of a model with detectron2's names; None: the ``config.yaml`` beside it, if any.

    Raises:
        UserError: if the file cannot be read, is of an unknown kind, or not known completely.
    """
    if file.suffix == ".safetensors":
        raise UserError(
            f"--weights: {file} is in safetensors' format; save its content as .pth by "
            "torch.save(safetensors.torch.load_file(FILE), OTHER)."
        )
    try:
        with ignore_training_state():
            content = read_safely(str(file))
    except UserError as error:
        raise UserError(str(error).replace("MODEL.WEIGHTS", "--weights", 1)) from None
    try:
        tensors, others = _tensors(content)
        if "head.cls_score.weight" in tensors:
            classes = classes_in(dict(content))
            cfg = _own_config(config, file, classes)
            model = from_detectron2.read_model(tensors, classes, cfg)
        elif config is not None:
            raise UserError("--config-file: only for weights with detectron2's names.")
        else:
            cfg, model = None, _read_foreign(tensors, content, file, options)
        check_values(model.weights)
        cfg = cfg or _config_of(model)
        model.classes = options.classes or model.classes
        if model.classes is None and _is_coco(cfg):
            model.classes = list(COCO_CLASSES)
        _check_options(model, cfg, options)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (RuntimeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = printable(str(error), 200)
        raise UserError(f"{file}: its shapes are not a RetinaNet's ({reason}).") from None
    model.keys.unused |= others
    return model, cfg


def _read_foreign(
    tensors: dict[str, Tensor], content: Mapping[str, Any], file: Path, options: Options
) -> Model:
    if any(key.startswith("head.classification_head.") for key in tensors):
        _refuse_own_export(file)
        return from_torchvision.read_detector(tensors, options, sha256(file))
    if "bbox_head.retina_cls.weight" in tensors:
        return from_mmdetection.read_detector(tensors, content.get("meta"), options)
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        return from_torchvision.read_backbone(tensors)
    if "conv1_w" in tensors:
        raise UserError("ImageNet weights of Caffe2; MODEL.WEIGHTS accepts them unconverted.")
    raise UserError(
        f"unknown kind of model ({printable(shorten(tensors))}); known: RetinaNets of detectron2, "
        "torchvision and mmdetection, and torchvision's ResNets."
    )


def _refuse_own_export(file: Path) -> None:
    """Refuses what ``--to torchvision`` wrote, if its settings are not torchvision's defaults."""
    path = file.with_name("model.json")
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if isinstance(settings, dict) and "stride_in_1x1" in settings and not factory(settings):
        raise UserError(
            f"{path.name} beside it has settings that weights do not tell; convert the original "
            "weights instead."
        )


def _config_of(model: Model) -> CfgNode:
    pairs = model.settings.items()
    return get_config(overrides=[x for key, value in pairs for x in (key, str(value) or "''")])


def _own_config(config: str | None, file: Path, classes: list[str] | None) -> CfgNode | None:
    beside = file.with_name("config.yaml")
    if config is None and not beside.is_file():
        return None
    cfg = get_config(config or beside)
    if cfg.MODEL.RETINANET.NUM_CLASSES < 0:  # as many as the dataset had
        cfg.MODEL.RETINANET.NUM_CLASSES = len(classes or ())
    return cfg


def _is_coco(cfg: CfgNode) -> bool:
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    is_coco = bool(names) and all(name.startswith("coco_") for name in names)
    return is_coco and cfg.MODEL.RETINANET.NUM_CLASSES == len(COCO_CLASSES)


def _check_options(model: Model, cfg: CfgNode, options: Options) -> None:
    """Raises a UserError for an option of another kind of file, or a wrong number of classes."""
    for option, is_given, framework in (
        ("--no-background", not options.has_background, "torchvision RetinaNet"),
        ("--norm-eps", options.norm_eps is not None, "torchvision RetinaNet"),
        ("--caffe-style", options.caffe_style is not None, "mmdetection RetinaNet"),
    ):
        if is_given and not model.source.startswith(framework):
            raise UserError(f"{option}: only for a {framework}; this is a {model.source}.")
    if options.classes and not model.is_detector:
        raise UserError("--classes: only for detectors; this is a backbone.")
    if options.classes and len(set(options.classes)) < len(options.classes):
        raise UserError("--classes: a name is given twice; give each class a name of its own.")
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    if model.is_detector and model.classes and len(model.classes) != num_classes:
        where = "--classes" if options.classes else "class names in the file"
        note = " besides the background" if model.source.startswith("torchvision") else ""
        raise UserError(
            f"{where}: {len(model.classes)} names, but the model has {num_classes} classes{note}."
        )


def _tensors(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the weights without a data-parallel wrapper's prefix, and why others are left out.

    Raises:
        UserError: if there are none, or two with the same name.
    """
    state = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    tensors: dict[str, Tensor] = {}
    others = {}
    for key, value in state.items():
        name = str(key).removeprefix("module.")
        if not isinstance(key, str) or not _is_array(value):
            others[str(key)] = f"not a tensor, but a {type(value).__name__}"
        elif name in tensors:
            raise UserError(f"{name} is there twice, with and without the prefix module.")
        else:
            tensors[name] = torch.as_tensor(value)
    if not tensors:
        raise UserError(f"it has no tensors ({printable(shorten(state)) or 'it is empty'}).")
    return tensors, others


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_complex() or value.is_meta)
    )
