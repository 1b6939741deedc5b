"""Reads RetinaNets with detectron2's names, and writes them for detectron2's own classes."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ...errors import UserError
from ...utils import flatten
from .model import Keys, Model, NoRandomValues, check_config, check_fit, detector_settings

# The values that any other framework's RetinaNet needs.
COMMON: dict[str, list[Any]] = {
    "MODEL.META_ARCHITECTURE": ["FocalRetinaNet"],
    "MODEL.RETINANET.HEAD_NAME": ["FocalLossHead"],
    "MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG": [True],
    "MODEL.FPN.P7_RELU": [True],
}
_COMPUTED = ("anchor_generator.cell_anchors.", "pixel_mean", "pixel_std")
GROUPS = ("MODEL.", "INPUT.", "TEST.")  # of the keys that describe a model
_DROPPED = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.ANCHOR_GENERATOR.NAME")


def read(tensors: Mapping[str, Tensor], classes: list[str] | None, cfg: CfgNode | None) -> Model:
    """Reads a state dictionary with detectron2's names.

    Args:
        classes: the class names in the file.
        cfg: the config that the model was trained with; None: it is from detectron2's model zoo.

    Raises:
        UserError: if it is not a RetinaNet, or has no config and needs one.
    """
    weights = {
        key: x.float() if x.is_floating_point() else x
        for key, x in tensors.items()
        if not key.startswith(_COMPUTED)
    }
    unused = {key: "follows from the config" for key in tensors if key not in weights}
    notes = ["MODEL.WEIGHTS also accepts the original file; only the config is new"]
    settings = {}
    if cfg is None:
        if any(key.endswith(".num_batches_tracked") for key in weights):
            raise UserError(
                "its batch norms are not frozen, so it is not from detectron2's model zoo; give "
                "--config-file, the config.yaml of its training."
            )
        settings = {**detector_settings(weights), "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0}
        notes.append(
            "no config was given: the new one is that of detectron2's model zoo (BGR, mean "
            "subtracted, stride in the first convolution of a block)"
        )
    keys = Keys({key: key for key in weights}, unused)
    return Model("detectron2 RetinaNet", weights, keys, settings, classes, notes)


def convert(model: Model, cfg: CfgNode) -> Model:
    """Returns the model with the keys of detectron2 that differ from its defaults.

    Raises:
        UserError: if detectron2 cannot express the model.
    """
    check_config(cfg, COMMON, "detectron2's RetinaNet")
    settings = _settings(cfg)
    keys = Keys({key: key for key in model.weights})
    if keys.used.pop("loss_normalizer", None):
        keys.unused["loss_normalizer"] = "detectron2 does not save its moving average"
    weights = {key: model.weights[key] for key in keys.used}
    theirs = get_cfg()
    theirs.merge_from_list([x for pair in settings.items() for x in pair])
    with NoRandomValues():
        built = META_ARCH_REGISTRY.get(theirs.MODEL.META_ARCHITECTURE)(theirs)
    check_fit(weights, built.state_dict(), "detectron2's RetinaNet")
    notes = list(model.notes)
    if cfg.MODEL.RETINANET.CLIP_BEFORE_NMS:
        notes.append(
            "detectron2 clips boxes after NMS, this model before, so detections at the edge of an "
            "image can differ"
        )
    return Model(model.source, weights, keys, settings, model.classes, notes)


def _settings(cfg: CfgNode) -> dict[str, Any]:
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    allowed: dict[str, list[Any]] = {
        "MODEL.ANCHOR_GENERATOR.NAME": ["RetinaNetAnchorGenerator", "DefaultAnchorGenerator"]
    }
    if is_ours := cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_p6p7_backbone":
        allowed["MODEL.FPN.P6_INPUT"] = ["res5"]
    check_config(cfg, allowed, "detectron2's RetinaNet")
    ours = dict(flatten(cfg))
    settings = {
        key: ours[key]
        for key, default in flatten(get_cfg())
        if key.startswith((*GROUPS, "VERSION")) and key not in _DROPPED and ours[key] != default
    }
    settings["MODEL.META_ARCHITECTURE"] = "RetinaNet"
    if is_ours:
        settings["MODEL.BACKBONE.NAME"] = "build_retinanet_resnet_fpn_backbone"
    if anchors.NAME == "RetinaNetAnchorGenerator":
        octave = [2 ** (i / anchors.SCALES_PER_OCTAVE) for i in range(anchors.SCALES_PER_OCTAVE)]
        strides = [2 ** int(name.removeprefix("p")) for name in cfg.MODEL.RETINANET.IN_FEATURES]
        settings["MODEL.ANCHOR_GENERATOR.SIZES"] = [
            [anchors.ANCHOR_SCALE * stride * step for step in octave] for stride in strides
        ]
    return settings
