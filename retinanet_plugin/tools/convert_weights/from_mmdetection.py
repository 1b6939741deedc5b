"""Reads mmdetection's RetinaNets.

They have no ReLU between P6 and P7, clip boxes before NMS, and order anchors by ratio, then size.
Channel order, normalization, stride placement, anchor sizes and thresholds are only in the config
that mmdetection stores in the file: Python source, which is parsed but never run.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import UserError
from .model import (
    Model,
    Options,
    add_zero_biases,
    foreign_settings,
    num_classes_of,
    rename,
    swap_anchors,
)
from .names import mmdetection_name

_CAFFE = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
}
# Values of mmdetection's config that can be converted; the first is the default.
_ALLOWED: dict[str, Sequence[Any]] = {
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


def read_detector(tensors: Mapping[str, Tensor], meta: object, options: Options) -> Model:
    """Reads a state dictionary of mmdetection 2 or 3.

    Args:
        meta: the file's "meta" entry.

    Raises:
        UserError: if it cannot be converted completely.
    """
    has_norms = any(
        key.startswith("bbox_head.cls_convs.0.") and ".conv." not in key for key in tensors
    )
    copies = {f"ema_{key.replace('.', '_')}" for key in tensors} & tensors.keys()
    weights, keys = rename(
        {key: x for key, x in tensors.items() if key not in copies},
        lambda key: mmdetection_name(key, head_has_norms=has_norms),
        "RetinaNet of mmdetection",
    )
    keys.unused |= dict.fromkeys(sorted(copies), "not averaged; the averaged weights are used")
    num_classes_of(weights)  # refuses other heads
    for name in [name for name in weights if name.startswith(("head.cls_score", "head.bbox_pred"))]:
        weights[name] = swap_anchors(weights[name], 3, 3)
    if has_norms:
        add_zero_biases(weights, keys)
    config, classes = _config_and_classes(meta)
    settings = foreign_settings(weights)
    _check_config(config, settings["MODEL.FPN.P6_INPUT"])
    caffe, notes = options.caffe_style, []
    if caffe is None:
        caffe = config.get("model.backbone.style") == "caffe"
        if not config:
            notes.append(
                "the file has no readable config, so mmdetection's defaults are used; if the "
                'name of the original config has "caffe" in it, give --caffe-style'
            )
    settings |= _CAFFE if caffe else {}
    settings["MODEL.RESNETS.STRIDE_IN_1X1"] = caffe
    settings |= _configured(config)
    if options.caffe_style is None:
        settings |= _normalization(config)
    return Model("mmdetection RetinaNet", weights, keys, settings, classes, notes)


def _config_and_classes(meta: object) -> tuple[dict[str, Any], list[str] | None]:
    """Returns the values of the config in the file, and the class names."""
    if not isinstance(meta, dict):
        return {}, None
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    config = _read_config(text)
    # Before version 2.4, test_cfg was not part of the model.
    config |= {f"model.{k}": v for k, v in config.items() if k.startswith("test_cfg.")}
    dataset: Any = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    for names in (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")):
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return config, list(names)
    return config, None


def _read_config(text: str) -> dict[str, Any]:
    """Returns ``{"model.backbone.depth": 50}`` for ``model = dict(backbone=dict(depth=50))``.

    Tuples become lists. Anything but literals, lists and calls of dict is left out; text that is
    not Python gives an empty config.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values |= _flatten(statement.targets[0].id, statement.value)
    return values


def _flatten(name: str, node: ast.expr) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if isinstance(node, ast.Call):  # of dict
        for keyword in node.keywords:
            values |= _flatten(f"{name}.{keyword.arg}", keyword.value) if keyword.arg else {}
    elif isinstance(node, ast.List | ast.Tuple) and any(isinstance(x, ast.Call) for x in node.elts):
        for i, element in enumerate(node.elts):
            values |= _flatten(f"{name}.{i}", element)
    else:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError):
            return {}
        values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _check_config(config: Mapping[str, Any], p6_input: str) -> None:
    for key, allowed in _ALLOWED.items():
        if (value := config.get(key, allowed[0])) not in allowed:
            raise UserError(
                f"its config has {key}={value}, which cannot be converted; it can be "
                f"{' or '.join(map(str, allowed))}."
            )
    if p6_input == "p5" and config.get("model.neck.add_extra_convs") != "on_output":
        raise UserError(
            "P6 is not computed from C5 (add_extra_convs is not 'on_input'), and its config does "
            "not say that it is computed from P5 ('on_output')."
        )


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config keys by the config in the file, with mmdetection's defaults."""
    anchors, coder = "model.bbox_head.anchor_generator.", "model.bbox_head.bbox_coder."
    nms = config.get("model.test_cfg.nms.iou_threshold", config.get("model.test_cfg.nms.iou_thr"))
    ratios = config.get(f"{anchors}ratios", [0.5, 1.0, 2.0])
    settings = {
        "MODEL.FPN.P7_RELU": bool(config.get("model.neck.relu_before_extra_convs", False)),
        "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE": float(config.get(f"{anchors}octave_base_scale", 4)),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[float(x) for x in ratios]],
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": [
            1 / x for x in config.get(f"{coder}target_stds", [1.0] * 4)
        ],
        "MODEL.RETINANET.SCORE_THRESH_TEST": config.get("model.test_cfg.score_thr", 0.05),
        "MODEL.RETINANET.NMS_THRESH_TEST": 0.5 if nms is None else nms,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": config.get("model.test_cfg.nms_pre", 1000),
        "TEST.DETECTIONS_PER_IMAGE": config.get("model.test_cfg.max_per_img", 100),
    }
    for key, value in config.items():
        is_size = isinstance(value, list) and [type(x) for x in value] == [int, int]
        if is_size and re.fullmatch(r"test_pipeline\..*scale", key):
            settings["INPUT.MIN_SIZE_TEST"], settings["INPUT.MAX_SIZE_TEST"] = sorted(value)
    return settings


def _normalization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns channel order, means and deviations, whose keys differ between versions."""
    for group, swap in (("img_norm_cfg", "to_rgb"), ("model.data_preprocessor", "bgr_to_rgb")):
        if f"{group}.mean" in config and f"{group}.std" in config:
            return {
                "INPUT.FORMAT": "RGB" if config.get(f"{group}.{swap}") else "BGR",
                "MODEL.PIXEL_MEAN": [float(x) for x in config[f"{group}.mean"]],
                "MODEL.PIXEL_STD": [float(x) for x in config[f"{group}.std"]],
            }
    return {}
