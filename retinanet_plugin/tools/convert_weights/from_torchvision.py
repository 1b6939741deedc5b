"""torchvision's RetinaNets and ResNets.

Both RetinaNets take RGB from 0 to 1, round their anchors, clip boxes before NMS and have an output
for the background and for each number up to the highest category id. The first makes P6 from P5;
the second makes it from C5 and has group norms in its subnets, whose convolutions have no bias.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import UserError
from . import rows
from .model import (
    BOTTOM_UP,
    Model,
    Options,
    add_zero_biases,
    detector_settings,
    num_classes_of,
    renamed,
    resnet_settings,
)
from .names import modern_torchvision, of_resnet, of_torchvision

_EPS = 1e-5
# torchvision sets the epsilon of these weights' norms to 0; part of the file's name and SHA-256.
_PUBLISHED_V1 = "eeacb38b"
# 0 to 1 becomes 0 to 255: the means and deviations that torchvision has, times 255.
RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}


def read_detector(tensors: Mapping[str, Tensor], options: Options, digest: str) -> Model:
    """A state dictionary of ``torchvision.models.detection.RetinaNet``.

    Args:
        digest: SHA-256 of the file, in hexadecimal.

    Raises:
        UserError: for one that cannot be converted wholly.
    """
    modern = {modern_torchvision(key): key for key in tensors}
    has_norms = "head.classification_head.conv.0.1.weight" in modern
    weights, keys = renamed(
        {new: tensors[old] for new, old in modern.items()},
        lambda key: of_torchvision(key, head_has_norms=has_norms),
        "RetinaNet of torchvision",
    )
    keys.used = {name: modern[key] for name, key in keys.used.items()}
    keys.unused = {modern[key]: why for key, why in keys.unused.items()}
    classes, chosen, notes = _classes(num_classes_of(weights), options)
    for part in ("weight", "bias"):
        scores, boxes = (f"head.{layer}.{part}" for layer in ("cls_score", "bbox_pred"))
        if scores in weights and boxes in weights:
            weights[scores] = rows.sizes_first(rows.take_classes(weights[scores], 9, chosen), 3, 3)
            weights[boxes] = rows.sizes_first(weights[boxes], 3, 3)
    if has_norms:
        add_zero_biases(weights, keys)
    is_frozen = not any(key.endswith(".num_batches_tracked") for key in tensors)
    if is_frozen:
        notes += _with_eps(weights, options.norm_eps, digest)
    elif options.norm_eps is not None:
        raise UserError("--norm-eps is for frozen batch norms, and these are not.")
    settings = detector_settings(weights)
    from_p5 = weights["backbone.top_block.p6.weight"].shape[1] == settings["MODEL.FPN.OUT_CHANNELS"]
    kind = "retinanet_resnet50_fpn_v2's kind" if has_norms else "retinanet_resnet50_fpn's kind"
    return Model(
        f"torchvision RetinaNet of {kind}",
        weights,
        keys,
        {
            **RGB,
            **settings,
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.BACKBONE.NAME": "build_resnet_fpn_p6p7_backbone",
            "MODEL.FPN.P6_INPUT": "p5" if from_p5 else "res5",
            "MODEL.ANCHOR_GENERATOR.NAME": "TorchvisionAnchorGenerator",
            "MODEL.RETINANET.CLIP_BEFORE_NMS": True,
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
            "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
            "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
            "TEST.DETECTIONS_PER_IMAGE": 300,
            **(
                {"MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou"}
                if has_norms
                else {"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0}
            ),
        },
        classes,
        notes,
    )


def read_backbone(tensors: Mapping[str, Tensor]) -> Model:
    """A state dictionary of ``torchvision.models.ResNet``, to train a RetinaNet from."""
    classifier = {key for key in tensors if key in ("fc.weight", "fc.bias")}

    def name_of(key: str) -> str | None:
        name = of_resnet(key)
        return name and BOTTOM_UP + name

    weights, keys = renamed(
        {key: x for key, x in tensors.items() if key not in classifier}, name_of, "ResNet"
    )
    keys.unused |= dict.fromkeys(sorted(classifier), "the classifier of ImageNet")
    settings = {**RGB, **resnet_settings(weights), "MODEL.RESNETS.STRIDE_IN_1X1": False}
    return Model("torchvision ResNet", weights, keys, settings, is_detector=False)


def _classes(num_outputs: int, options: Options) -> tuple[list[str] | None, list[int], list[str]]:
    """Names of the classes, the outputs that they have in torchvision, and what to say about it."""
    names = options.classes
    if num_outputs == rows.TORCHVISION_COCO and options.has_background and names is None:
        note = "outputs 0 (background) and of ids that COCO does not use are left out: 80 stay"
        return list(rows.COCO_CLASSES), list(rows.COCO_IDS), [note]
    first = int(options.has_background)
    chosen = list(range(first, num_outputs))
    if not chosen or (names is not None and len(names) != len(chosen)):
        raise UserError(
            f"--classes: {len(names or [])} names given, but the file has {len(chosen)} classes"
            f"{', the background left out' if first else ''}."
        )
    return names, chosen, ["output 0, the background, is left out"] if first else []


def _with_eps(weights: dict[str, Tensor], given: float | None, digest: str) -> list[str]:
    """Scales frozen norms that have another epsilon so that they are the same with ours."""
    eps = given
    if given is not None and not 0 <= given < 1:
        raise UserError(f"--norm-eps: {given:g} given; it can be 0 or a small number such as 1e-5.")
    if eps is None:
        eps = 0.0 if digest.startswith(_PUBLISHED_V1) else _EPS
    if eps != _EPS:
        for name in [name for name in weights if name.endswith("norm.running_var")]:
            variance = weights[name].double()
            scale = torch.sqrt((variance + _EPS) / (variance + eps))
            weight = name.replace("running_var", "weight")
            weights[weight] = (weights[weight].double() * scale).float()
    how = "as given" if given is not None else "as published" if eps == 0 else "their default"
    more = "" if how != "their default" else "; if training began from COCO_V1, give --norm-eps 0"
    return [f"frozen batch norms have epsilon {eps:g} there, {how}{more}"]
