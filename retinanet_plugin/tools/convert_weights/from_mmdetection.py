"""mmdetection's RetinaNet.

It has no ReLU between P6 and P7, clips boxes before NMS, and its anchors run through the sizes of
one ratio first. Channels, their normalisation, the place of strides, sizes of anchors and
thresholds are told by the config in the file alone.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import UserError
from . import rows
from .from_torchvision import RGB
from .mmdetection_config import read_config
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
# What the config may say of the parts that no shape tells; where it is silent, this is what it has.
_NEEDED: dict[str, Sequence[Any]] = {
    "model.backbone.type": ("ResNet", "ResNeXt"),
    "model.backbone.strides": ([1, 2, 2, 2],),
    "model.backbone.dilations": ([1, 1, 1, 1],),
    "model.neck.type": ("FPN",),
    "model.neck.start_level": (1,),
    "model.neck.num_outs": (5,),
    "model.neck.upsample_cfg.mode": ("nearest",),
    "model.bbox_head.type": ("RetinaHead",),
    "model.bbox_head.loss_cls.use_sigmoid": (True,),
    "model.bbox_head.anchor_generator.type": ("AnchorGenerator",),
    "model.bbox_head.anchor_generator.strides": ([8, 16, 32, 64, 128],),
    "model.bbox_head.anchor_generator.scales_per_octave": (3,),
    "model.bbox_head.anchor_generator.scales": (None,),
    "model.bbox_head.anchor_generator.base_sizes": (None,),
    "model.bbox_head.anchor_generator.center_offset": (0,),
    "model.bbox_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
    "model.bbox_head.bbox_coder.target_means": ([0, 0, 0, 0],),
    "model.test_cfg.nms.type": ("nms",),
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
    copies = {f"ema_{key.replace('.', '_')}" for key in tensors} & tensors.keys()
    weights, keys = renamed(
        {key: x for key, x in tensors.items() if key not in copies},
        lambda key: of_mmdetection(key, head_has_norms=has_norms),
        "RetinaNet of mmdetection",
    )
    keys.unused |= dict.fromkeys(sorted(copies), "as it was before the average that the file has")
    num_classes = num_classes_of(weights)
    for name in ("cls_score", "bbox_pred"):
        for part in ("weight", "bias"):
            if (key := f"head.{name}.{part}") in weights:
                weights[key] = rows.sizes_first(weights[key], 3, 3)
    if has_norms:
        add_zero_biases(weights, keys)
    settings = detector_settings(weights)
    config, classes = _told(meta)
    for key, allowed in _NEEDED.items():
        if (found := config.get(key, allowed[0])) not in allowed:
            raise UserError(
                f"its config says {key}={found}, for which nothing is known here; it can be "
                f"{' or '.join(map(str, allowed))}."
            )
    from_p5 = weights["backbone.top_block.p6.weight"].shape[1] == settings["MODEL.FPN.OUT_CHANNELS"]
    if from_p5 and config.get("model.neck.add_extra_convs") != "on_output":
        raise UserError(
            "P6 is not made from C5 there (add_extra_convs is not 'on_input'), and the file does "
            "not tell that it is made from P5 ('on_output')."
        )
    caffe, notes = options.caffe_style, []
    if caffe is None:
        caffe = config.get("model.backbone.style") == "caffe"
        if not config:
            notes.append(
                "no config that can be read is in the file: sizes and thresholds are mmdetection's "
                "defaults, and its ResNet is taken for PyTorch's (RGB, divided by the deviation); "
                "give --caffe-style for one whose name has caffe in it"
            )
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
            "MODEL.FPN.P6_INPUT": "p5" if from_p5 else "res5",
            "MODEL.RETINANET.CLIP_BEFORE_NMS": True,
            "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
            **_configured(config, is_given=options.caffe_style is not None),
        },
        classes,
        notes,
    )


def _configured(config: Mapping[str, Any], *, is_given: bool) -> dict[str, Any]:
    """What the config tells, and mmdetection's defaults for the rest.

    Args:
        is_given: whether a person has said which channels and normalisation there are.
    """
    anchors, coder = "model.bbox_head.anchor_generator.", "model.bbox_head.bbox_coder."
    nms = config.get("model.test_cfg.nms.iou_threshold", config.get("model.test_cfg.nms.iou_thr"))
    ratios = config.get(f"{anchors}ratios", [0.5, 1.0, 2.0])
    deviations = config.get(f"{coder}target_stds", [1.0] * 4)
    told = {
        "MODEL.FPN.P7_RELU": bool(config.get("model.neck.relu_before_extra_convs", False)),
        "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE": float(config.get(f"{anchors}octave_base_scale", 4)),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[float(x) for x in ratios]],
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": [1 / x for x in deviations],
        "MODEL.RETINANET.SCORE_THRESH_TEST": config.get("model.test_cfg.score_thr", 0.05),
        "MODEL.RETINANET.NMS_THRESH_TEST": 0.5 if nms is None else nms,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": config.get("model.test_cfg.nms_pre", 1000),
        "TEST.DETECTIONS_PER_IMAGE": config.get("model.test_cfg.max_per_img", 100),
    }
    for place, swap in (("model.data_preprocessor", "bgr_to_rgb"), ("img_norm_cfg", "to_rgb")):
        if f"{place}.mean" in config and f"{place}.std" in config and not is_given:
            told["INPUT.FORMAT"] = "RGB" if config.get(f"{place}.{swap}") else "BGR"
            told["MODEL.PIXEL_MEAN"], told["MODEL.PIXEL_STD"] = (
                [float(x) for x in config[f"{place}.{part}"]] for part in ("mean", "std")
            )
    for key, value in config.items():
        if re.fullmatch(r"test_pipeline\..*scale", key) and _is_size(value):
            told["INPUT.MIN_SIZE_TEST"], told["INPUT.MAX_SIZE_TEST"] = sorted(value)
    return told


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(x) is int for x in value)


def _told(meta: object) -> tuple[dict[str, Any], list[str] | None]:
    """The values of the config and the classes that mmdetection wrote beside the weights."""
    if not isinstance(meta, dict):
        return {}, None
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    config = read_config(text)
    config |= {
        f"model.{k}": v for k, v in config.items() if k.startswith("test_cfg.")
    }  # before 2.4
    dataset: Any = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    found = (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES"))
    return config, next(filter(None, map(_names, found)), None)


def _names(value: Any) -> list[str] | None:
    is_list = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return list(value) if is_list else None
