"""A model of this plugin as torchvision's RetinaNet: a state dictionary, and what builds it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from torch import Tensor

from ...errors import UserError
from . import rows
from .model import BOTTOM_UP, Keys, Model, NoRandomValues, check_fit
from .names import of_torchvision
from .to_detectron2 import refuse_others
from .torchvision_model import NORMS, assemble

_LAYERS = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
_FACTORY: dict[str, Any] = {  # what retinanet_resnet50_fpn and its second version share
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
    """The model under torchvision's names, and the settings that ``torchvision_model`` builds.

    Raises:
        UserError: for a model that torchvision's class cannot express.
    """
    _refuse(cfg)
    weights = dict(model.weights)
    num_ratios, num_sizes = _ratios_and_sizes(cfg)
    places, total = _places(model.classes, cfg)
    for layer in ("cls_score", "bbox_pred"):
        for part in ("weight", "bias"):
            name = f"head.{layer}.{part}"
            weights[name] = rows.ratios_first(weights[name], num_ratios, num_sizes)
            if layer == "cls_score":
                fill = rows.NEVER if part == "bias" else 0.0
                weights[name] = rows.spread_classes(
                    weights[name], num_ratios * num_sizes, places, total, fill
                )
    if cfg.INPUT.FORMAT == "BGR":
        stem = f"{BOTTOM_UP}stem.conv1.weight"
        weights[stem] = weights[stem].flip(1)
    settings = _settings(cfg, weights, total)
    names = model.classes or [f"class {i}" for i in range(len(places))]
    settings["labels"] = {str(i): name for i, name in zip(places, names, strict=True)}
    state: dict[str, Tensor] = {}
    keys = Keys()
    has_norms = bool(settings["head_norm"])
    with NoRandomValues():
        built = assemble(settings).state_dict()
    for key in built:
        source = of_torchvision(key, head_has_norms=has_norms)
        if source in weights:
            state[key] = weights[source].contiguous()
            keys.used[key] = source
    for key in [key for key in state if key.endswith(".running_var")]:
        counter = key.replace("running_var", "num_batches_tracked")
        built[counter] = state[counter] = torch.zeros((), dtype=torch.int64)
        keys.made[counter] = "0: a batch norm's count of training steps, which frozen ones ignore"
    check_fit(state, built, "torchvision's RetinaNet")
    for name in weights.keys() - set(keys.used.values()):
        if name == "loss_normalizer":
            keys.unused[name] = "torchvision divides each picture's losses by its own positives"
        elif not settings["head_bias"] and "_subnet." in name and name.endswith(".bias"):
            keys.unused[name] = "zeros: the convolution has no bias there"
        else:
            raise UserError(f"{name} has no place in torchvision's RetinaNet.")
    notes = list(model.notes)
    if not cfg.MODEL.RETINANET.CLIP_BEFORE_NMS:
        notes.append(
            "torchvision clips boxes before NMS, this model after: at a picture's edge one box "
            "more or less may stay"
        )
    return Model(model.kind, state, keys, settings, model.classes, notes), settings


def factory(settings: dict[str, Any]) -> str | None:
    """The function of torchvision that makes such a model by its defaults, if there is one."""
    if not all(_same(settings[key], value) for key, value in _FACTORY.items()):
        return None
    name = {(True, ""): "", (False, "GN"): "_v2"}.get(
        (settings["p6_from_p5"], settings["head_norm"])
    )
    return None if name is None else f"retinanet_resnet50_fpn{name}"


def is_default(settings: dict[str, Any]) -> bool:
    """Whether torchvision's class has anchors, strides and normalisation by its defaults."""
    ours, theirs = settings["options"], _FACTORY["options"]
    return all(
        _same(settings[key], _FACTORY[key]) for key in ("stride_in_1x1", "box_weights", "anchors")
    ) and all(_same(ours[key], theirs[key]) for key in ("image_mean", "image_std"))


def _same(value: Any, other: Any) -> bool:
    """With numbers equal but for rounding."""
    if isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(value[x], other[x]) for x in other)
    if isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    return math.isclose(value, other) if isinstance(other, float) else bool(value == other)


def _refuse(cfg: CfgNode) -> None:
    target = "torchvision's RetinaNet"
    refuse_others(cfg, target)
    model = cfg.MODEL
    needed: dict[str, tuple[Any, Sequence[Any]]] = {
        "MODEL.BACKBONE.NAME": (
            model.BACKBONE.NAME,
            ("build_retinanet_resnet_fpn_backbone", "build_resnet_fpn_p6p7_backbone"),
        ),
        "MODEL.FPN.IN_FEATURES": (list(model.FPN.IN_FEATURES), [["res3", "res4", "res5"]]),
        "MODEL.FPN.FUSE_TYPE": (model.FPN.FUSE_TYPE, ["sum"]),
        "MODEL.FPN.NORM": (model.FPN.NORM, list(NORMS)),
        "MODEL.RETINANET.IN_FEATURES": (
            list(model.RETINANET.IN_FEATURES),
            [["p3", "p4", "p5", "p6", "p7"]],
        ),
        "MODEL.RETINANET.NORM": (model.RETINANET.NORM, ["", "GN"]),
        "MODEL.ANCHOR_GENERATOR.NAME": (
            model.ANCHOR_GENERATOR.NAME,
            ["RetinaNetAnchorGenerator", "TorchvisionAnchorGenerator", "DefaultAnchorGenerator"],
        ),
        "MODEL.RESNETS.NORM": (model.RESNETS.NORM, ["BN", "FrozenBN", "GN"]),
        "MODEL.RESNETS.RES5_DILATION": (model.RESNETS.RES5_DILATION, [1]),
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (
            list(model.RESNETS.DEFORM_ON_PER_STAGE),
            [[False] * 4],
        ),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": (model.RESNETS.STEM_OUT_CHANNELS, [64]),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": (
            model.RESNETS.RES2_OUT_CHANNELS,
            [64 if model.RESNETS.DEPTH < 50 else 256],
        ),
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, ["BGR", "RGB"]),
    }
    for key, (found, allowed) in needed.items():
        if found not in allowed:
            raise UserError(
                f"{key}: {found}, for which {target} has nothing; it can be "
                f"{' or '.join(str(value) or 'none' for value in allowed)}."
            )


def _generator(cfg: CfgNode) -> Any:
    levels = [ShapeSpec(channels=1, stride=2**i) for i in range(3, 8)]
    return build_anchor_generator(cfg, levels)


def _ratios_and_sizes(cfg: CfgNode) -> tuple[int, int]:
    ratios = cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    num_ratios = len(ratios[0] if isinstance(ratios[0], list | tuple) else ratios)
    return num_ratios, _generator(cfg).num_anchors[0] // num_ratios


def _places(classes: list[str] | None, cfg: CfgNode) -> tuple[list[int], int]:
    """The output of each class in torchvision, and how many outputs there are."""
    count = cfg.MODEL.RETINANET.NUM_CLASSES
    if classes == rows.COCO_CLASSES:
        return rows.COCO_IDS, rows.TORCHVISION_COCO
    return list(range(1, count + 1)), count + 1


def _settings(cfg: CfgNode, weights: dict[str, Tensor], num_classes: int) -> dict[str, Any]:
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
        "num_classes": num_classes,
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
    if anchors.NAME == "TorchvisionAnchorGenerator":
        if anchors.OFFSET:
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.OFFSET: {anchors.OFFSET}, but torchvision has 0."
            )
        octave = [2 ** (i / num_sizes) for i in range(num_sizes)]
        ratios = anchors.ASPECT_RATIOS
        by_level = ratios if isinstance(ratios[0], list | tuple) else [ratios]
        sizes = [
            [int(anchors.ANCHOR_SCALE * s * step) for step in octave] for s in generator.strides
        ]
        return {
            "rounded": True,
            "sizes": sizes,
            "ratios": [list(x) for x in by_level] * (1 if len(by_level) == 5 else 5),
        }
    cells = [
        rows.ratios_first(cell + generator.offset * stride, num_ratios, num_sizes).tolist()
        for cell, stride in zip(generator.cell_anchors, generator.strides, strict=True)
    ]
    return {"rounded": False, "cells": cells, "strides": list(generator.strides)}
