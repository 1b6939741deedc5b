"""A model of this plugin as detectron2's own RetinaNet: the same names, a config without ours."""

from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ...errors import UserError
from .model import Keys, Model, NoRandomValues, check_fit, flat, settings_yaml

_GROUPS = ("MODEL.", "INPUT.", "TEST.", "VERSION")


def refuse_others(cfg: CfgNode, target: str) -> None:
    """Raises a UserError for a model whose parts no other framework has."""
    retinanet = cfg.MODEL.RETINANET
    needed = {
        "MODEL.META_ARCHITECTURE": (cfg.MODEL.META_ARCHITECTURE, "FocalRetinaNet"),
        "MODEL.RETINANET.HEAD_NAME": (retinanet.HEAD_NAME, "FocalLossHead"),
        "MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG": (retinanet.CLASS_AGNOSTIC_BBOX_REG, True),
        "MODEL.FPN.P7_RELU": (cfg.MODEL.FPN.P7_RELU, True),
    }
    for key, (found, allowed) in needed.items():
        if found != allowed:
            raise UserError(f"{key}: {found}, for which {target} has nothing; it can be {allowed}.")


def convert(model: Model, cfg: CfgNode) -> tuple[Model, dict[str, Any]]:
    """The model without what is ours alone, and detectron2's keys that differ from its defaults.

    Raises:
        UserError: for a model that detectron2 cannot express.
    """
    refuse_others(cfg, "detectron2's RetinaNet")
    anchors, backbone = cfg.MODEL.ANCHOR_GENERATOR.NAME, cfg.MODEL.BACKBONE.NAME
    if anchors == "TorchvisionAnchorGenerator":
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.NAME: {anchors} rounds as torchvision does, which none of "
            "detectron2's generators can; convert it --to torchvision."
        )
    if backbone == "build_resnet_fpn_p6p7_backbone" and cfg.MODEL.FPN.P6_INPUT != "res5":
        raise UserError(
            f"MODEL.FPN.P6_INPUT: {cfg.MODEL.FPN.P6_INPUT}, but detectron2's "
            "build_retinanet_resnet_fpn_backbone makes P6 from res5 alone; convert it --to "
            "torchvision."
        )
    theirs = get_cfg()
    known, ours = flat(theirs), flat(cfg)
    values = {
        key: ours[key] for key in known if key.startswith(_GROUPS) and ours[key] != known[key]
    }
    for key in ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.ANCHOR_GENERATOR.NAME"):
        values.pop(key, None)
    values["MODEL.META_ARCHITECTURE"] = "RetinaNet"
    if backbone == "build_resnet_fpn_p6p7_backbone":
        values["MODEL.BACKBONE.NAME"] = "build_retinanet_resnet_fpn_backbone"
    if anchors == "RetinaNetAnchorGenerator":
        values["MODEL.ANCHOR_GENERATOR.SIZES"] = _sizes(cfg)
    elif anchors != "DefaultAnchorGenerator":
        raise UserError(f"MODEL.ANCHOR_GENERATOR.NAME: {anchors} is not one of detectron2's.")
    keys = Keys({}, {"loss_normalizer": "detectron2 keeps its moving average in no checkpoint"})
    weights = {key: x for key, x in model.weights.items() if key not in keys.unused}
    keys.unused = {key: why for key, why in keys.unused.items() if key in model.weights}
    keys.used = {key: key for key in weights}
    nested = settings_yaml(values)
    check_fit(weights, _built(nested).state_dict(), "detectron2's RetinaNet")
    notes = list(model.notes)
    if cfg.MODEL.RETINANET.CLIP_BEFORE_NMS:
        notes.append(
            "detectron2 clips boxes after NMS, this model before: at a picture's edge one box more "
            "or less may stay"
        )
    return Model(model.kind, weights, keys, values, model.classes, notes), nested


def _sizes(cfg: CfgNode) -> list[list[float]]:
    scale, steps = (
        cfg.MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE,
        cfg.MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE,
    )
    strides = [2 ** int(name.removeprefix("p")) for name in cfg.MODEL.RETINANET.IN_FEATURES]
    return [[scale * stride * 2 ** (i / steps) for i in range(steps)] for stride in strides]


def _built(values: dict[str, Any]) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(values))
    with NoRandomValues():
        model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model
