"""Translates parameter names of torchvision and mmdetection into this plugin's (detectron2's)."""

import re

from .model import BOTTOM_UP

_SUBNETS = {"classification": "cls", "regression": "bbox", "cls": "cls", "reg": "bbox"}
_PYRAMID = {"inner": "lateral", "layer": "output", "lateral": "lateral", "fpn": "output"}
_OUTPUTS = {
    "head.classification_head.cls_logits": "head.cls_score",
    "head.regression_head.bbox_reg": "head.bbox_pred",
    "bbox_head.retina_cls": "head.cls_score",
    "bbox_head.retina_reg": "head.bbox_pred",
}


def resnet_name(key: str) -> str | None:
    """Translates a name of torchvision's ResNet, which mmdetection shares; None if unknown."""
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        return f"{BOTTOM_UP}stem.conv1.{_norm(match[1] == 'bn')}{match[2]}"
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", key)
    if not match:
        return None
    stage, index, kind, number, parameter = match.groups()
    is_shortcut = kind == "downsample."  # a Sequential of a convolution and its norm
    layer = "shortcut" if is_shortcut else f"conv{number}"
    is_norm = number == "1" if is_shortcut else kind == "bn"
    return f"{BOTTOM_UP}res{int(stage) + 1}.{index}.{layer}.{_norm(is_norm)}{parameter}"


def torchvision_name(key: str, *, head_has_norms: bool) -> str | None:
    """Translates a name of torchvision's RetinaNet; None if unknown."""
    if key.startswith("backbone.body."):
        return resnet_name(key.removeprefix("backbone.body."))
    if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.([0-2])\.([01])\.(\w+)", key):
        kind, index, part, parameter = match.groups()
        return f"backbone.fpn_{_PYRAMID[kind]}{int(index) + 3}.{_norm(part == '1')}{parameter}"
    if match := re.fullmatch(r"backbone\.fpn\.extra_blocks\.(p[67]\.\w+)", key):
        return f"backbone.top_block.{match[1]}"
    if match := re.fullmatch(
        r"head\.(classification|regression)_head\.conv\.(\d+)\.([01])\.(\w+)", key
    ):
        return _subnet_name(match[1], int(match[2]), match[3] == "1", match[4], head_has_norms)
    return _output_name(key)


def modern_torchvision_name(key: str) -> str:
    """Translates a name from before torchvision 0.14, in which convolutions had no wrapper."""
    key = re.sub(r"(fpn\.\w+_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    if match := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)", key):
        return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"  # ReLUs had numbers too
    return key


def mmdetection_name(key: str, *, head_has_norms: bool) -> str | None:
    """Translates a name of mmdetection's RetinaNet, whose pyramid begins at C3; None if unknown."""
    if key.startswith("backbone."):
        return resnet_name(key.removeprefix("backbone."))
    if match := re.fullmatch(r"neck\.(lateral|fpn)_convs\.([0-4])\.(conv|bn|gn)\.(\w+)", key):
        kind, index, part, parameter = match.groups()
        level = int(index) + 3
        if level <= 5:
            return f"backbone.fpn_{_PYRAMID[kind]}{level}.{_norm(part != 'conv')}{parameter}"
        is_extra = kind == "fpn" and part == "conv"
        return f"backbone.top_block.p{level}.{parameter}" if is_extra else None
    if match := re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|bn|gn)\.(\w+)", key):
        return _subnet_name(match[1], int(match[2]), match[3] != "conv", match[4], head_has_norms)
    return _output_name(key)


def _norm(is_norm: bool) -> str:
    return "norm." if is_norm else ""


def _subnet_name(kind: str, layer: int, is_norm: bool, parameter: str, head_has_norms: bool) -> str:
    """Returns our name: a subnet is a Sequential of convolution, norm (if any) and ReLU."""
    index = layer * (3 if head_has_norms else 2) + is_norm
    return f"head.{_SUBNETS[kind]}_subnet.{index}.{parameter}"


def _output_name(key: str) -> str | None:
    layer, _, parameter = key.rpartition(".")
    return f"{_OUTPUTS[layer]}.{parameter}" if layer in _OUTPUTS else None
