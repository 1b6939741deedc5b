"""Converts a model to torchvision's RetinaNet: a state dictionary, and settings to build it."""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from torch import Tensor

from ...errors import UserError
from . import head_rows
from .model import BOTTOM_UP, Keys, Model, NoRandomValues, check_config, check_fit
from .names import torchvision_name
from .to_detectron2 import COMMON
from .torchvision_model import NORMS, assemble

_LAYERS = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
_ALLOWED: dict[str, list[Any]] = {
    **COMMON,
    "MODEL.BACKBONE.NAME": [
        "build_retinanet_resnet_fpn_backbone",
        "build_resnet_fpn_p6p7_backbone",
    ],
    "MODEL.FPN.IN_FEATURES": [["res3", "res4", "res5"]],
    "MODEL.FPN.FUSE_TYPE": ["sum"],
    "MODEL.FPN.NORM": list(NORMS),
    "MODEL.RETINANET.IN_FEATURES": [["p3", "p4", "p5", "p6", "p7"]],
    "MODEL.RETINANET.NORM": ["", "GN"],
    "MODEL.ANCHOR_GENERATOR.NAME": [
        "RetinaNetAnchorGenerator",
        "TorchvisionAnchorGenerator",
        "DefaultAnchorGenerator",
    ],
    "MODEL.RESNETS.NORM": ["BN", "FrozenBN", "GN"],
    "MODEL.RESNETS.RES5_DILATION": [1],
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [[False] * 4],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": [64],
    "INPUT.FORMAT": ["BGR", "RGB"],
}
_FACTORY: dict[str, Any] = {  # what retinanet_resnet50_fpn and its version 2 share
    "block": "Bottleneck",
    "layers": [3, 4, 6, 3],
    "groups": 1,
    "width_per_group": 64,
    "stride_in_1x1": False,
    "out_channels": 256,
    "fpn_norm": "",
    "num_convs": 4,
    "head_bias": False,
    "box_weights": [1.0, 1.0, 1.0, 1.0],
    "anchors": {
        "rounded": True,
        "sizes": [[int(x * 2 ** (i / 3)) for i in range(3)] for x in (32, 64, 128, 256, 512)],
        "ratios": [[0.5, 1.0, 2.0]] * 5,
    },
    "options": {
        "min_size": 800,
        "max_size": 1333,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "topk_candidates": 1000,
        "detections_per_img": 300,
    },
}


def convert(model: Model, cfg: CfgNode) -> tuple[Model, dict[str, Any]]:
    """Returns the model under torchvision's names, and the settings for ``torchvision_model``.

    Raises:
        UserError: if torchvision's class cannot express the model.
    """
    res2 = [64 if cfg.MODEL.RESNETS.DEPTH < 50 else 256]
    allowed = {**_ALLOWED, "MODEL.RESNETS.RES2_OUT_CHANNELS": res2}
    check_config(cfg, allowed, "torchvision's RetinaNet")
    weights, indices, num_outputs = _head_reordered(model, cfg)
    if cfg.INPUT.FORMAT == "BGR":
        stem = f"{BOTTOM_UP}stem.conv1.weight"
        weights[stem] = weights[stem].flip(1)
    settings = _settings(cfg, weights, num_outputs)
    names = model.classes or [f"class {i}" for i in range(len(indices))]
    settings["labels"] = {str(i): name for i, name in zip(indices, names, strict=True)}
    state, keys = _renamed(weights, settings)
    notes = list(model.notes)
    if not cfg.MODEL.RETINANET.CLIP_BEFORE_NMS:
        notes.append(
            "torchvision clips boxes before NMS, this model after, so detections at the edge of an "
            "image can differ"
        )
    return Model(model.source, state, keys, settings, model.classes, notes), settings


def factory(settings: dict[str, Any]) -> str | None:
    """Returns the name of torchvision's function that builds such a model by default, if any."""
    if not all(_equal(settings[key], value) for key, value in _FACTORY.items()):
        return None
    names = {(True, ""): "retinanet_resnet50_fpn", (False, "GN"): "retinanet_resnet50_fpn_v2"}
    return names.get((settings["p6_from_p5"], settings["head_norm"]))


def _equal(value: Any, other: Any) -> bool:
    """Compares nested values, floats up to rounding."""
    if isinstance(other, dict):
        return value.keys() == other.keys() and all(_equal(value[x], other[x]) for x in other)
    if isinstance(other, list):
        return len(value) == len(other) and all(map(_equal, value, other))
    return math.isclose(value, other) if isinstance(other, float) else bool(value == other)


def _head_reordered(model: Model, cfg: CfgNode) -> tuple[dict[str, Tensor], list[int], int]:
    """Returns weights in torchvision's anchor order, the output of each class, and their number."""
    count = cfg.MODEL.RETINANET.NUM_CLASSES
    indices, total = list(range(1, count + 1)), count + 1
    if model.classes == head_rows.COCO_CLASSES:
        indices, total = head_rows.COCO_IDS, head_rows.TORCHVISION_COCO
    num_ratios, num_sizes = _ratios_and_sizes(cfg)
    weights = dict(model.weights)
    for part, fill in (("weight", 0.0), ("bias", head_rows.NEVER)):
        scores, boxes = (f"head.{layer}.{part}" for layer in ("cls_score", "bbox_pred"))
        weights[boxes] = head_rows.ratios_first(weights[boxes], num_ratios, num_sizes)
        rows = head_rows.ratios_first(weights[scores], num_ratios, num_sizes)
        weights[scores] = head_rows.scatter_classes(
            rows, num_ratios * num_sizes, indices, total, fill
        )
    return weights, indices, total


def _renamed(
    weights: dict[str, Tensor], settings: dict[str, Any]
) -> tuple[dict[str, Tensor], Keys]:
    with NoRandomValues():
        built = assemble(settings).state_dict()
    keys, state = Keys(), dict[str, Tensor]()
    for key in built:
        name = torchvision_name(key, head_has_norms=bool(settings["head_norm"]))
        if name in weights:
            state[key] = weights[name].contiguous()
            keys.used[key] = name
    for key in [key for key in state if key.endswith(".running_var")]:
        counter = key.replace("running_var", "num_batches_tracked")
        built[counter] = state[counter] = torch.zeros((), dtype=torch.int64)
        keys.made[counter] = "0: the number of training steps of a batch norm"
    check_fit(state, built, "torchvision's RetinaNet")
    for name in weights.keys() - set(keys.used.values()):
        if name == "loss_normalizer":
            keys.unused[name] = "torchvision divides the losses of each image by its own positives"
        elif not settings["head_bias"] and "_subnet." in name and name.endswith(".bias"):
            keys.unused[name] = "zeros: the convolution has no bias there"
        else:
            raise UserError(f"{name}: torchvision's RetinaNet has no such parameter.")
    return state, keys


def _generator(cfg: CfgNode) -> Any:
    levels = [ShapeSpec(channels=1, stride=2**i) for i in range(3, 8)]
    return build_anchor_generator(cfg, levels)


def _ratios_per_level(cfg: CfgNode) -> list[list[float]]:
    """Returns the aspect ratios of each level, or one list for all."""
    ratios = cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    return [list(x) for x in (ratios if isinstance(ratios[0], list | tuple) else [ratios])]


def _ratios_and_sizes(cfg: CfgNode) -> tuple[int, int]:
    num_ratios = len(_ratios_per_level(cfg)[0])
    return num_ratios, _generator(cfg).num_anchors[0] // num_ratios


def _settings(cfg: CfgNode, weights: dict[str, Tensor], num_outputs: int) -> dict[str, Any]:
    model, retinanet = cfg.MODEL, cfg.MODEL.RETINANET
    resnets, is_rgb = model.RESNETS, cfg.INPUT.FORMAT == "RGB"
    mean, std = (list(x) if is_rgb else list(x)[::-1] for x in (model.PIXEL_MEAN, model.PIXEL_STD))
    is_ours = model.BACKBONE.NAME == "build_resnet_fpn_p6p7_backbone"
    convs = [name for name, x in weights.items() if "_subnet." in name and x.ndim == 4]
    biases = [weights[name.replace(".weight", ".bias")] for name in convs]
    return {
        "block": "Bottleneck" if resnets.DEPTH >= 50 else "BasicBlock",
        "layers": _LAYERS[resnets.DEPTH],
        "groups": resnets.NUM_GROUPS,
        "width_per_group": resnets.WIDTH_PER_GROUP,
        "stride_in_1x1": resnets.STRIDE_IN_1X1 and resnets.DEPTH >= 50,
        "backbone_norm": resnets.NORM,
        "fpn_norm": model.FPN.NORM,
        "out_channels": model.FPN.OUT_CHANNELS,
        "p6_from_p5": is_ours and model.FPN.P6_INPUT == "p5",
        "anchors": _anchors(cfg),
        "num_classes": num_outputs,
        "num_convs": len(convs) // 2,
        "head_norm": retinanet.NORM,
        "head_bias": bool(retinanet.NORM) and any(bool(x.any()) for x in biases),
        "box_weights": list(retinanet.BBOX_REG_WEIGHTS),
        "options": {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "image_mean": [x / 255 for x in mean],
            "image_std": [x / 255 for x in std],
            "score_thresh": retinanet.SCORE_THRESH_TEST,
            "nms_thresh": retinanet.NMS_THRESH_TEST,
            "topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "detections_per_img": cfg.TEST.DETECTIONS_PER_IMAGE,
        },
    }


def _anchors(cfg: CfgNode) -> dict[str, Any]:
    generator, anchors = _generator(cfg), cfg.MODEL.ANCHOR_GENERATOR
    num_ratios, num_sizes = _ratios_and_sizes(cfg)
    if anchors.NAME != "TorchvisionAnchorGenerator":
        cells = [
            head_rows.ratios_first(cell + generator.offset * stride, num_ratios, num_sizes).tolist()
            for cell, stride in zip(generator.cell_anchors, generator.strides, strict=True)
        ]
        return {"rounded": False, "cells": cells, "strides": list(generator.strides)}
    if anchors.OFFSET:
        raise UserError(f"MODEL.ANCHOR_GENERATOR.OFFSET: {anchors.OFFSET}; torchvision needs 0.")
    octave = [2 ** (i / num_sizes) for i in range(num_sizes)]
    sizes = [[int(anchors.ANCHOR_SCALE * s * step) for step in octave] for s in generator.strides]
    ratios = _ratios_per_level(cfg)
    return {"rounded": True, "sizes": sizes, "ratios": ratios * (1 if len(ratios) == 5 else 5)}
