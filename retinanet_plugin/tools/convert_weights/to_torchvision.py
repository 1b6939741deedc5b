"""Converts a model to torchvision's RetinaNet: a state dictionary, and settings to build it."""

from collections.abc import Collection
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from torch import Tensor

from ...errors import UserError
from .detectron2_model import COMMON
from .model import (
    BOTTOM_UP,
    COCO_CLASSES,
    COCO_IDS,
    TORCHVISION_COCO,
    Keys,
    Model,
    NoRandomValues,
    check_config,
    check_fit,
    swap_anchors,
)
from .names import torchvision_name
from .torchvision_model import NORMS, assemble

_ALLOWED: dict[str, Collection[Any]] = {
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
_NEVER = -20.0  # bias of outputs that must never score: a sigmoid of 2e-9


def convert(model: Model, cfg: CfgNode) -> Model:
    """Returns the model under torchvision's names, with the settings for ``torchvision_model``.

    Raises:
        UserError: if torchvision's class cannot express the model.
    """
    res2 = [64 if cfg.MODEL.RESNETS.DEPTH < 50 else 256]
    allowed = {**_ALLOWED, "MODEL.RESNETS.RES2_OUT_CHANNELS": res2}
    if cfg.MODEL.ANCHOR_GENERATOR.NAME == "TorchvisionAnchorGenerator":
        allowed["MODEL.ANCHOR_GENERATOR.OFFSET"] = [0.0]
    check_config(cfg, allowed, "torchvision's RetinaNet")
    anchors, num_sizes, num_ratios = _anchors(cfg)
    weights = dict(model.weights)
    if cfg.INPUT.FORMAT == "BGR":
        stem = f"{BOTTOM_UP}stem.conv1.weight"
        weights[stem] = weights[stem].flip(1)
    indices = list(range(1, cfg.MODEL.RETINANET.NUM_CLASSES + 1))
    num_outputs = len(indices) + 1
    if model.classes == COCO_CLASSES:
        indices, num_outputs = COCO_IDS, TORCHVISION_COCO
    for part, fill in (("weight", 0.0), ("bias", _NEVER)):
        scores, boxes = (f"head.{layer}.{part}" for layer in ("cls_score", "bbox_pred"))
        weights[boxes] = swap_anchors(weights[boxes], num_sizes, num_ratios)
        rows = swap_anchors(weights[scores], num_sizes, num_ratios)
        rows = rows.unflatten(0, (num_ratios * num_sizes, -1))
        outputs = torch.full((len(rows), num_outputs, *rows.shape[2:]), fill, dtype=rows.dtype)
        outputs[:, indices] = rows
        weights[scores] = outputs.flatten(0, 1)
    names = model.classes or [f"class {i}" for i in range(len(indices))]
    settings = {
        **_settings(cfg, weights),
        "anchors": anchors,
        "num_classes": num_outputs,
        "labels": {str(i): name for i, name in zip(indices, names, strict=True)},
    }
    state, keys = _renamed(weights, settings)
    notes = list(model.notes)
    if not cfg.MODEL.RETINANET.CLIP_BEFORE_NMS:
        notes.append(
            "torchvision clips boxes before NMS, this model after, so detections at the edge of an "
            "image can differ"
        )
    return Model(model.source, state, keys, settings, model.classes, notes)


def _anchors(cfg: CfgNode) -> tuple[dict[str, Any], int, int]:
    """Returns the settings of the anchors, and the numbers of sizes and ratios."""
    config = cfg.MODEL.ANCHOR_GENERATOR
    levels = [ShapeSpec(channels=1, stride=2**i) for i in range(3, 8)]
    generator: Any = build_anchor_generator(cfg, levels)
    ratios = config.ASPECT_RATIOS  # of each level, or of all
    ratios = [list(x) for x in (ratios if isinstance(ratios[0], list | tuple) else [ratios])]
    num_ratios = len(ratios[0])
    num_sizes = generator.num_anchors[0] // num_ratios
    if config.NAME == "TorchvisionAnchorGenerator":
        octave = [2 ** (i / num_sizes) for i in range(num_sizes)]
        sizes = [[int(config.ANCHOR_SCALE * s * x) for x in octave] for s in generator.strides]
        ratios = ratios if len(ratios) == 5 else ratios * 5
        return {"rounded": True, "sizes": sizes, "ratios": ratios}, num_sizes, num_ratios
    cells = [
        swap_anchors(cell + generator.offset * stride, num_sizes, num_ratios).tolist()
        for cell, stride in zip(generator.cell_anchors, generator.strides, strict=True)
    ]
    settings = {"rounded": False, "cells": cells, "strides": list(generator.strides)}
    return settings, num_sizes, num_ratios


def _settings(cfg: CfgNode, weights: dict[str, Tensor]) -> dict[str, Any]:
    model, retinanet, resnets = cfg.MODEL, cfg.MODEL.RETINANET, cfg.MODEL.RESNETS
    order = 1 if cfg.INPUT.FORMAT == "RGB" else -1
    mean, std = (list(x)[::order] for x in (model.PIXEL_MEAN, model.PIXEL_STD))
    is_ours = model.BACKBONE.NAME == "build_resnet_fpn_p6p7_backbone"
    convs = [name for name, x in weights.items() if "_subnet." in name and x.ndim == 4]
    biases = [weights[name.replace(".weight", ".bias")] for name in convs]
    return {
        "backbone": f"resnet{resnets.DEPTH}",
        "groups": resnets.NUM_GROUPS,
        "width_per_group": resnets.WIDTH_PER_GROUP,
        "stride_in_1x1": resnets.STRIDE_IN_1X1 and resnets.DEPTH >= 50,
        "backbone_norm": resnets.NORM,
        "fpn_norm": model.FPN.NORM,
        "out_channels": model.FPN.OUT_CHANNELS,
        "p6_from_p5": is_ours and model.FPN.P6_INPUT == "p5",
        "num_convs": len(convs) // 2,
        "head_norm": retinanet.NORM,
        "head_bias": not retinanet.NORM or any(bool(x.any()) for x in biases),
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
    used = set(keys.used.values())
    for name in [name for name in weights if name not in used]:
        if name == "loss_normalizer":
            keys.unused[name] = "torchvision divides the losses of each image by its own positives"
        elif not settings["head_bias"] and "_subnet." in name and name.endswith(".bias"):
            keys.unused[name] = "zeros: the convolution has no bias there"
        else:
            raise UserError(f"{name}: torchvision's RetinaNet has no such parameter.")
    return state, keys
