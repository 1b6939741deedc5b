"""mmdetection's RetinaNet.

It has no ReLU between P6 and P7, clips boxes before NMS, and its anchors run through the sizes of
one ratio first. Channels, their normalisation and the place of strides depend on the ``style`` of
its ResNet, which only the config in the file tells.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError
from . import rows
from .from_torchvision import RGB
from .model import (
    Model,
    Options,
    add_zero_biases,
    detector_settings,
    num_classes_of,
    renamed,
)
from .names import of_mmdetection

_CAFFE = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
}


def read(tensors: Mapping[str, Tensor], meta: object, options: Options) -> Model:
    """A state dictionary of mmdetection 2 or 3.

    Args:
        meta: what the file has under "meta".

    Raises:
        UserError: for one that cannot be converted wholly.
    """
    has_norms = any(
        key.startswith("bbox_head.cls_convs.0.") and ".conv." not in key for key in tensors
    )
    weights, keys = renamed(
        tensors,
        lambda key: of_mmdetection(key, head_has_norms=has_norms),
        "RetinaNet of mmdetection",
    )
    num_classes = num_classes_of(weights)
    for name in ("cls_score", "bbox_pred"):
        for part in ("weight", "bias"):
            if (key := f"head.{name}.{part}") in weights:
                weights[key] = rows.sizes_first(weights[key], 3, 3)
    if has_norms:
        add_zero_biases(weights, keys)
    settings = detector_settings(weights)
    p6 = weights["backbone.top_block.p6.weight"]
    if p6.shape[1] == settings["MODEL.FPN.OUT_CHANNELS"]:
        raise UserError(
            "P6 is not made from C5 there (add_extra_convs is not 'on_input'), and the file does "
            "not tell whether from P5 or from what comes before it."
        )
    config, classes = _told(meta)
    caffe, notes = options.caffe_style, []
    if caffe is None:
        caffe = bool(re.search(r"\bstyle\W{1,6}caffe\b", config))
        if not config:
            notes.append(
                "the file does not tell its ResNet's style: taken for pytorch (RGB, divided by the "
                "deviation); give --caffe-style for one whose name has caffe in it"
            )
    relu = bool(re.search(r"\brelu_before_extra_convs\W{1,6}True\b", config))
    classes = options.classes or classes
    if classes is None and num_classes == len(rows.COCO_CLASSES):
        classes = list(rows.COCO_CLASSES)
    if classes and len(classes) != num_classes:
        raise UserError(f"{len(classes)} names of classes, but the file has {num_classes} classes.")
    return Model(
        "mmdetection RetinaNet",
        weights,
        keys,
        {
            **(_CAFFE if caffe else RGB),
            **settings,
            "MODEL.RESNETS.STRIDE_IN_1X1": caffe,
            "MODEL.BACKBONE.NAME": "build_resnet_fpn_p6p7_backbone",
            "MODEL.FPN.P7_RELU": relu,
            "MODEL.RETINANET.CLIP_BEFORE_NMS": True,
            "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
            "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
            "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
            "TEST.DETECTIONS_PER_IMAGE": 100,
        },
        classes,
        notes,
    )


def _told(meta: object) -> tuple[str, list[str] | None]:
    """The text of the config and the classes that mmdetection wrote beside the weights."""
    if not isinstance(meta, dict):
        return "", None
    config = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    dataset: Any = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    found = (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES"))
    return config, next(filter(None, map(_names, found)), None)


def _names(value: Any) -> list[str] | None:
    is_list = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return list(value) if is_list else None
