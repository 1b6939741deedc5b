"""Converts a model to detectron2's own RetinaNet: the same names, and a config of its keys only."""

from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from ...errors import UserError
from ...utils import flatten
from .model import Keys, Model, NoRandomValues, check_config, check_fit, nested

# The values that any other framework's RetinaNet needs.
COMMON: dict[str, list[Any]] = {
    "MODEL.META_ARCHITECTURE": ["FocalRetinaNet"],
    "MODEL.RETINANET.HEAD_NAME": ["FocalLossHead"],
    "MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG": [True],
    "MODEL.FPN.P7_RELU": [True],
}
_GROUPS = ("MODEL.", "INPUT.", "TEST.", "VERSION")
_DROPPED = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.ANCHOR_GENERATOR.NAME")


def convert(model: Model, cfg: CfgNode) -> tuple[Model, dict[str, Any]]:
    """Returns the model, and the keys of detectron2 that differ from its defaults.

    Raises:
        UserError: if detectron2 cannot express the model.
    """
    check_config(cfg, COMMON, "detectron2's RetinaNet")
    values = _values(cfg)
    keys = Keys({key: key for key in model.weights})
    if keys.used.pop("loss_normalizer", None):
        keys.unused["loss_normalizer"] = "detectron2 does not save its moving average"
    weights = {key: model.weights[key] for key in keys.used}
    theirs = get_cfg()
    theirs.merge_from_other_cfg(CfgNode(nested(values)))
    with NoRandomValues():
        built = META_ARCH_REGISTRY.get(theirs.MODEL.META_ARCHITECTURE)(theirs)
    check_fit(weights, built.state_dict(), "detectron2's RetinaNet")
    notes = list(model.notes)
    if cfg.MODEL.RETINANET.CLIP_BEFORE_NMS:
        notes.append(
            "detectron2 clips boxes after NMS, this model before, so detections at the edge of an "
            "image can differ"
        )
    return Model(model.source, weights, keys, values, model.classes, notes), values


def _values(cfg: CfgNode) -> dict[str, Any]:
    anchors, backbone = cfg.MODEL.ANCHOR_GENERATOR.NAME, cfg.MODEL.BACKBONE.NAME
    if anchors == "TorchvisionAnchorGenerator":
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.NAME: detectron2 has no rounded anchors like {anchors}'s; "
            "convert --to torchvision."
        )
    if anchors not in ("RetinaNetAnchorGenerator", "DefaultAnchorGenerator"):
        raise UserError(f"MODEL.ANCHOR_GENERATOR.NAME: detectron2 has no {anchors}.")
    is_ours = backbone == "build_resnet_fpn_p6p7_backbone"
    if is_ours and cfg.MODEL.FPN.P6_INPUT != "res5":
        raise UserError(
            f"MODEL.FPN.P6_INPUT: {cfg.MODEL.FPN.P6_INPUT}, but detectron2 computes P6 from res5 "
            "only; convert --to torchvision."
        )
    known, ours = dict(flatten(get_cfg())), dict(flatten(cfg))
    values = {
        key: ours[key]
        for key, default in known.items()
        if key.startswith(_GROUPS) and key not in _DROPPED and ours[key] != default
    }
    values["MODEL.META_ARCHITECTURE"] = "RetinaNet"
    if is_ours:
        values["MODEL.BACKBONE.NAME"] = "build_retinanet_resnet_fpn_backbone"
    if anchors == "RetinaNetAnchorGenerator":
        values["MODEL.ANCHOR_GENERATOR.SIZES"] = _sizes(cfg)
    return values


def _sizes(cfg: CfgNode) -> list[list[float]]:
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    scale, steps = anchors.ANCHOR_SCALE, anchors.SCALES_PER_OCTAVE
    strides = [2 ** int(name.removeprefix("p")) for name in cfg.MODEL.RETINANET.IN_FEATURES]
    return [[scale * stride * 2 ** (i / steps) for i in range(steps)] for stride in strides]
