"""What a weight is called in torchvision and mmdetection, and what here, as in detectron2."""

import re

_SUBNETS = {"classification": "cls", "regression": "bbox", "cls": "cls", "reg": "bbox"}
_PYRAMID = {"inner": "lateral", "layer": "output", "lateral": "lateral", "fpn": "output"}
_OUTPUTS = {
    "head.classification_head.cls_logits": "head.cls_score",
    "head.regression_head.bbox_reg": "head.bbox_pred",
    "bbox_head.retina_cls": "head.cls_score",
    "bbox_head.retina_reg": "head.bbox_pred",
}


def of_resnet(key: str) -> str | None:
    """Of torchvision's ResNet, whose names mmdetection shares; None for what is none of its."""
    if stem := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        return f"stem.conv1.{_norm(stem[1] == 'bn')}{stem[2]}"
    block = re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", key)
    if not block:
        return None
    stage, index, kind, number, what = block.groups()
    is_shortcut = kind == "downsample."  # whose two parts are a convolution and its norm
    layer = "shortcut" if is_shortcut else f"conv{number}"
    is_norm = number == "1" if is_shortcut else kind == "bn"
    return f"res{int(stage) + 1}.{index}.{layer}.{_norm(is_norm)}{what}"


def of_torchvision(key: str, *, head_has_norms: bool) -> str | None:
    """Of torchvision's RetinaNet."""
    if key.startswith("backbone.body."):
        return _prefixed(of_resnet(key.removeprefix("backbone.body.")))
    if found := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.([0-2])\.([01])\.(\w+)", key):
        kind, index, part, what = found.groups()
        return f"backbone.fpn_{_PYRAMID[kind]}{int(index) + 3}.{_norm(part == '1')}{what}"
    if found := re.fullmatch(r"backbone\.fpn\.extra_blocks\.(p[67]\.\w+)", key):
        return f"backbone.top_block.{found[1]}"
    if found := re.fullmatch(
        r"head\.(classification|regression)_head\.conv\.(\d+)\.([01])\.(\w+)", key
    ):
        return _subnet(found[1], int(found[2]), found[3] == "1", found[4], head_has_norms)
    return _output(key)


def modern_torchvision(key: str) -> str:
    """A name of torchvision before 0.14, whose layers were not yet each a convolution and norm."""
    key = re.sub(r"(fpn\.\w+_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
    if found := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)", key):
        return f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}"  # there the ReLUs were counted
    return key


def of_mmdetection(key: str, *, head_has_norms: bool) -> str | None:
    """Of mmdetection's RetinaNet, whose pyramid begins at C3."""
    if key.startswith("backbone."):
        return _prefixed(of_resnet(key.removeprefix("backbone.")))
    if found := re.fullmatch(r"neck\.(lateral|fpn)_convs\.([0-4])\.(conv|bn|gn)\.(\w+)", key):
        kind, index, part, what = found.groups()
        if int(index) < 3:
            return f"backbone.fpn_{_PYRAMID[kind]}{int(index) + 3}.{_norm(part != 'conv')}{what}"
        is_extra = kind == "fpn" and part == "conv"
        return f"backbone.top_block.p{int(index) + 3}.{what}" if is_extra else None
    if found := re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|bn|gn)\.(\w+)", key):
        return _subnet(found[1], int(found[2]), found[3] != "conv", found[4], head_has_norms)
    return _output(key)


def _norm(is_norm: bool) -> str:
    return "norm." if is_norm else ""


def _prefixed(name: str | None) -> str | None:
    return name and f"backbone.bottom_up.{name}"


def _subnet(kind: str, layer: int, is_norm: bool, what: str, head_has_norms: bool) -> str:
    """A subnet here is convolution, norm, ReLU in a row, or convolution and ReLU."""
    index = layer * (3 if head_has_norms else 2) + is_norm
    return f"head.{_SUBNETS[kind]}_subnet.{index}.{what}"


def _output(key: str) -> str | None:
    layer, _, what = key.rpartition(".")
    return f"{_OUTPUTS[layer]}.{what}" if layer in _OUTPUTS else None
