"""A file of weights: read safely, and its kind known from its keys."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ...config import get_config
from ...engine.atomic_io import sha256
from ...engine.checkpoint import classes_in, local_file, read_safely
from ...errors import UserError, printable
from . import from_detectron2, from_mmdetection, from_torchvision
from .model import Model, Options, check_values, listed
from .to_torchvision import is_default
from .training_state import skipping_training_state

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
    if file.suffix == ".safetensors":
        raise UserError(
            f"{file}: a file of safetensors; write it as a .pth, by torch.save("
            "safetensors.torch.load_file(FILE), OTHER), and give that."
        )
    try:
        with skipping_training_state():
            content = read_safely(str(file))
    except UserError as error:
        raise UserError(str(error).removeprefix("MODEL.WEIGHTS: ")) from None
    try:
        tensors, others = _tensors(content)
        model, cfg = _model(tensors, content, file, config, options)
        check_values(model.weights)
        _check_options(model, cfg, options)
        model.keys.unused |= others
        return model, cfg
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (RuntimeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
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
        _refuse_own(file)
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


def _refuse_own(file: Path) -> None:
    """What ``--to torchvision`` has written is torchvision's in its weights, not in all else."""
    described = file.with_name("model.json")
    settings = json.loads(described.read_text(encoding="utf-8")) if described.is_file() else {}
    if isinstance(settings, dict) and "stride_in_1x1" in settings and not is_default(settings):
        raise UserError(
            "the model.json beside it tells of anchors, strides or normalisation that are not "
            "torchvision's own: convert what it was made of."
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


def _check_options(model: Model, cfg: CfgNode, options: Options) -> None:
    """No option is for another kind of file, and there are as many names of classes as outputs."""
    for option, is_given, kind in (
        ("--no-background", not options.has_background, "torchvision RetinaNet"),
        ("--norm-eps", options.norm_eps is not None, "torchvision RetinaNet"),
        ("--caffe-style", options.caffe_style is not None, "mmdetection RetinaNet"),
    ):
        if is_given and not model.kind.startswith(kind):
            raise UserError(f"{option} is for a {kind}, and this is a {model.kind}.")
    number = cfg.MODEL.RETINANET.NUM_CLASSES
    if options.classes and not model.is_detector:
        raise UserError("--classes is for detectors, and this is a backbone alone.")
    if options.classes and len(set(options.classes)) < len(options.classes):
        raise UserError("--classes: a name is given twice; each class has one of its own.")
    if model.classes and len(model.classes) != number:
        where = "--classes" if options.classes else 'the file\'s "classes"'
        raise UserError(f"{where}: {len(model.classes)} names, but the model has {number} classes.")


def _tensors(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights by name, without a wrapper's prefix, and why each entry beside them is none.

    Raises:
        UserError: where there are none, or two of one name.
    """
    found = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
    tensors: dict[str, Tensor] = {}
    others = {}
    for key, value in found.items():
        name = str(key).removeprefix("module.")  # as a data-parallel wrapper names them
        if not isinstance(key, str) or not _is_array(value):
            others[str(key)] = f"no tensor of numbers, but a {type(value).__name__}"
        elif name in tensors:
            raise UserError(f"{name} is there twice, with and without the prefix module.")
        else:
            tensors[name] = torch.as_tensor(value)
    if not tensors:
        held = f"but {listed(map(str, found))}" if found else "it is empty"
        raise UserError(f"it holds no tensors, {held}.")
    return tensors, others


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_complex() or value.is_meta)
    )
