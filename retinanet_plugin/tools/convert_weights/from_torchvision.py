"""Reads torchvision's RetinaNets and ResNets.

Both versions of the RetinaNet take RGB from 0 to 1, round their anchors, clip boxes before NMS, and
have an output for the background and for each number up to the highest category id. Version 1
computes P6 from P5; version 2 from C5, with group norms in its subnets instead of biases.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import UserError
from .model import (
    COCO_CLASSES,
    COCO_IDS,
    RGB,
    TORCHVISION_COCO,
    Model,
    Options,
    add_zero_biases,
    foreign_settings,
    num_classes_of,
    rename,
    resnet_settings,
    swap_anchors,
)
from .names import modern_torchvision_name, resnet_name, torchvision_name

_EPS = 1e-5
# torchvision sets the epsilon of this file's norms to 0; the number is in its name and its SHA-256.
_PUBLISHED_V1 = "eeacb38b"


def read_detector(tensors: Mapping[str, Tensor], options: Options, sha256: str) -> Model:
    """Reads a state dictionary of ``torchvision.models.detection.RetinaNet``.

    Args:
        sha256: of the file.

    Raises:
        UserError: if it cannot be converted completely.
    """
    has_norms = "head.classification_head.conv.0.1.weight" in tensors
    weights, keys = rename(
        tensors,
        lambda key: torchvision_name(modern_torchvision_name(key), head_has_norms=has_norms),
        "RetinaNet of torchvision",
    )
    classes, indices, notes = _classes(num_classes_of(weights), options)
    for part in ("weight", "bias"):
        scores, boxes = (f"head.{layer}.{part}" for layer in ("cls_score", "bbox_pred"))
        selected = weights[scores].unflatten(0, (9, -1))[:, indices].flatten(0, 1)
        weights[scores] = swap_anchors(selected, 3, 3)
        weights[boxes] = swap_anchors(weights[boxes], 3, 3)
    if has_norms:
        add_zero_biases(weights, keys)
    if not any(key.endswith(".num_batches_tracked") for key in tensors):
        notes.append(_adapt_frozen_norms(weights, options.norm_eps, sha256))
    elif options.norm_eps is not None:
        raise UserError("--norm-eps: only for frozen batch norms, which this model does not have.")
    settings = {
        **foreign_settings(weights),
        "MODEL.ANCHOR_GENERATOR.NAME": "TorchvisionAnchorGenerator",
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
        "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
        "TEST.DETECTIONS_PER_IMAGE": 300,
    }
    if has_norms:  # version 2 was trained with GIoU
        del settings["MODEL.RETINANET.SMOOTH_L1_LOSS_BETA"]
        settings["MODEL.RETINANET.BBOX_REG_LOSS_TYPE"] = "giou"
    version = "retinanet_resnet50_fpn_v2" if has_norms else "retinanet_resnet50_fpn"
    source = f"torchvision RetinaNet like {version}"
    return Model(source, weights, keys, settings, classes, notes)


def read_backbone(tensors: Mapping[str, Tensor]) -> Model:
    """Reads a state dictionary of ``torchvision.models.ResNet``, to train a RetinaNet from."""
    classifier = [key for key in tensors if key in ("fc.weight", "fc.bias")]
    body = {key: x for key, x in tensors.items() if key not in classifier}
    weights, keys = rename(body, resnet_name, "ResNet")
    keys.unused |= dict.fromkeys(classifier, "the classifier of ImageNet")
    settings = {**RGB, **resnet_settings(weights), "MODEL.RESNETS.STRIDE_IN_1X1": False}
    return Model("torchvision ResNet", weights, keys, settings, is_detector=False)


def _classes(num_outputs: int, options: Options) -> tuple[list[str] | None, list[int], list[str]]:
    """Returns the class names, their indices among the outputs, and notes."""
    if not options.has_background:
        return options.classes, list(range(num_outputs)), []
    if num_outputs == TORCHVISION_COCO and options.classes is None:
        note = "output 0 (background) and those of ids that COCO does not use are left out: 80 stay"
        return list(COCO_CLASSES), list(COCO_IDS), [note]
    if num_outputs < 2:
        raise UserError("it has one output, which would be the background; give --no-background.")
    return options.classes, list(range(1, num_outputs)), ["output 0, the background, is left out"]


def _adapt_frozen_norms(weights: dict[str, Tensor], eps: float | None, sha256: str) -> str:
    """Adapts norms that were trained with another epsilon to this plugin's; returns a note."""
    if eps is not None and not 0 <= eps < 1:
        raise UserError(f"--norm-eps: {eps:g} given; give 0 or a small number such as 1e-5.")
    origin = "as given"
    if eps is None and sha256.startswith(_PUBLISHED_V1):
        eps, origin = 0.0, "as published"
    elif eps is None:
        eps, origin = _EPS, "the default; if training started from COCO_V1, give --norm-eps 0"
    if eps != _EPS:
        for name in [name for name in weights if name.endswith("norm.running_var")]:
            variance = weights[name].double()
            scale = torch.sqrt((variance + _EPS) / (variance + eps))
            weight = name.replace("running_var", "weight")
            weights[weight] = (weights[weight].double() * scale).float()
    return f"epsilon of the frozen batch norms: {eps:g}, {origin}"
