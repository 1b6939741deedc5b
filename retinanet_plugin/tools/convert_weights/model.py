"""A model on its way from one framework to another: weights, config keys, and a record per key."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import UserError, printable
from ...utils import flatten, shorten

_COCO = MetadataCatalog.get("coco_2017_val")
COCO_CLASSES: list[str] = _COCO.thing_classes
# The COCO id, 1 to 90, of each of the 80 classes: torchvision's output index.
COCO_IDS: list[int] = sorted(_COCO.thing_dataset_id_to_contiguous_id)
TORCHVISION_COCO = 91

BOTTOM_UP = "backbone.bottom_up."
RGB = {  # the means and deviations of ImageNet for values from 0 to 255
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
_DEPTHS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_NUM_ANCHORS = 9  # 3 sizes x 3 ratios, as every framework's RetinaNet has


@dataclass
class Options:
    """What files of weights do not say."""

    classes: list[str] | None = None  # in the order of the outputs; None: as in the file
    has_background: bool = True  # as output 0 of torchvision's
    norm_eps: float | None = None  # of torchvision's frozen batch norms; None: as for this file
    caffe_style: bool | None = None  # BGR, stride in the 1x1 convolution; None: as in the file


@dataclass
class Keys:
    """The record of a conversion."""

    used: dict[str, str] = field(default_factory=dict)  # output key -> input key
    unused: dict[str, str] = field(default_factory=dict)  # input key -> why it was left out
    made: dict[str, str] = field(default_factory=dict)  # output key without an input -> its value
    missing: list[str] = field(default_factory=list)  # parameters that are left to training

    def then(self, after: "Keys") -> "Keys":
        """Returns one record for this conversion and the one applied to its result."""
        used = {new: self.used[old] for new, old in after.used.items() if old in self.used}
        made = {new: self.made[old] for new, old in after.used.items() if old in self.made}
        unused = {self.used[key]: why for key, why in after.unused.items() if key in self.used}
        return Keys(used, self.unused | unused, made | after.made, self.missing)


@dataclass
class Model:
    """Weights under this plugin's names, or, after a conversion, under another framework's."""

    source: str  # framework and architecture of the file
    weights: dict[str, Tensor]
    keys: Keys
    # On top of Base-RetinaNet.yaml; empty if the model came with a whole config.
    settings: dict[str, Any]
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)  # for the person who converts
    is_detector: bool = True  # False for a backbone alone


class NoRandomValues(TorchFunctionMode):
    """Builds models without drawing initial weights, which takes longer than all the rest."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return function(*args, **(kwargs or {}))


def rename(
    tensors: Mapping[str, Tensor], name_of: Callable[[str], str | None], source: str
) -> tuple[dict[str, Tensor], Keys]:
    """Returns the tensors in float32 under this plugin's names.

    Raises:
        UserError: if a key has no counterpart, because then it is another kind of model.
    """
    keys, weights, unknown = Keys(), dict[str, Tensor](), []
    for key, tensor in tensors.items():
        name = name_of(key)
        if key.endswith(".num_batches_tracked"):
            keys.unused[key] = "number of training steps of a batch norm, not needed"
        elif name is None or name in weights:
            unknown.append(key)
        else:
            weights[name] = tensor.float() if tensor.is_floating_point() else tensor
            keys.used[name] = key
    if unknown:
        raise UserError(
            f"not a {source}: {len(unknown)} of its {len(tensors)} keys are unknown "
            f"({printable(shorten(unknown))})."
        )
    return weights, keys


def add_zero_biases(weights: dict[str, Tensor], keys: Keys) -> None:
    """Adds the biases that convolutions of the subnets have here even before a norm."""
    for name in [name for name in weights if "_subnet." in name and weights[name].ndim == 4]:
        bias = name.replace(".weight", ".bias")
        if bias not in weights:
            weights[bias] = weights[name].new_zeros(len(weights[name]))
            keys.made[bias] = "zeros: the source has no bias there"


def swap_anchors(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Reorders the anchors of a location: by size, then ratio, here; vice versa elsewhere.

    Args:
        rows: of one of the head's last two convolutions, (outer * inner * outputs, ...).
    """
    return rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


# ---------------------------------------------------------------- config keys from shapes


def num_classes_of(weights: Mapping[str, Tensor]) -> int:
    """Returns the number of classes of a head with nine anchors per location.

    Raises:
        UserError: for other heads.
    """
    boxes, scores = weights["head.bbox_pred.weight"], weights["head.cls_score.weight"]
    if len(boxes) != 4 * _NUM_ANCHORS or len(scores) % _NUM_ANCHORS:
        raise UserError(
            f"the head has {len(boxes)} box and {len(scores)} class outputs per location; only "
            f"heads with {_NUM_ANCHORS} anchors and 4 box outputs each can be converted."
        )
    return len(scores) // _NUM_ANCHORS


def resnet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the config keys of the ResNet with these weights.

    Raises:
        UserError: if detectron2 has no such ResNet.
    """
    stages = {tuple(name.removeprefix(BOTTOM_UP).split(".")[:2]) for name in weights}
    blocks = tuple(sum(stage == f"res{i}" for stage, _ in stages) for i in range(2, 6))
    if blocks not in _DEPTHS:
        raise UserError(
            f"the backbone has {blocks} blocks per stage; only ResNets of 18, 34, 50, 101 and 152 "
            "layers can be converted."
        )
    middle = weights[f"{BOTTOM_UP}res2.0.conv2.weight"]
    last = weights.get(f"{BOTTOM_UP}res2.0.conv3.weight")
    depth = _DEPTHS[blocks]
    groups = len(middle) // middle.shape[1]
    has_statistics = f"{BOTTOM_UP}stem.conv1.norm.running_var" in weights
    settings = {
        "MODEL.RESNETS.DEPTH": 34 if depth == 50 and last is None else depth,
        "MODEL.RESNETS.NORM": "FrozenBN" if has_statistics else "GN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": len(weights[f"{BOTTOM_UP}stem.conv1.weight"]),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": len(middle if last is None else last),
    }
    if last is not None:
        settings["MODEL.RESNETS.NUM_GROUPS"] = groups
        settings["MODEL.RESNETS.WIDTH_PER_GROUP"] = len(middle) // groups
    return settings


def detector_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the config keys that shapes tell of a RetinaNet."""
    return {
        **resnet_settings(weights),
        "MODEL.FPN.OUT_CHANNELS": len(weights["backbone.fpn_output5.weight"]),
        "MODEL.FPN.NORM": _norm_of(weights, "backbone.fpn_output5.norm"),
        "MODEL.RETINANET.NUM_CLASSES": num_classes_of(weights),
        "MODEL.RETINANET.NUM_CONVS": sum(
            "head.cls_subnet." in name and tensor.ndim == 4 for name, tensor in weights.items()
        ),
        "MODEL.RETINANET.NORM": _norm_of(weights, "head.cls_subnet.1"),
    }


def foreign_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the config keys that torchvision's and mmdetection's RetinaNets share."""
    settings = detector_settings(weights)
    p6 = weights["backbone.top_block.p6.weight"]
    from_p5 = p6.shape[1] == settings["MODEL.FPN.OUT_CHANNELS"]
    return {
        **RGB,
        **settings,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_p6p7_backbone",
        "MODEL.FPN.P6_INPUT": "p5" if from_p5 else "res5",
        "MODEL.RETINANET.CLIP_BEFORE_NMS": True,
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
    }


def _norm_of(weights: Mapping[str, Tensor], name: str) -> str:
    if f"{name}.weight" not in weights:
        return ""
    return "FrozenBN" if f"{name}.running_var" in weights else "GN"


# ---------------------------------------------------------------- checks


def check_config(cfg: CfgNode, allowed: Mapping[str, Collection[Any]], target: str) -> None:
    """Raises a UserError naming the first key whose value ``target`` cannot express."""
    values = dict(flatten(cfg))
    for key, choices in allowed.items():
        value = list(values[key]) if isinstance(values[key], tuple) else values[key]
        if value not in choices:
            known = " or ".join(str(choice) or "none" for choice in choices)
            raise UserError(f"{key}: {target} cannot express {value}; it can be {known}.")


def check_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises a UserError unless ``weights`` and ``expected`` have the same names and shapes."""
    faults = {
        "are missing": [name for name in expected if name not in weights],
        "are unknown": [name for name in weights if name not in expected],
        "have another shape": [
            f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        parts = (f"{len(x)} {how} ({printable(shorten(x))})" for how, x in faults.items() if x)
        raise UserError(f"of the {len(expected)} weights of {what}, {'; '.join(parts)}.")


def check_values(weights: Mapping[str, Tensor]) -> None:
    """Raises a UserError for weights that are not floating-point, not finite, or variances < 0."""
    for name, values in weights.items():
        if name.endswith(".num_batches_tracked"):
            continue
        if not values.is_floating_point():
            raise UserError(f"{name}: {values.dtype} found; weights must be floating-point.")
        is_variance = name.endswith(".running_var")
        if not bool(values.isfinite().all()) or (is_variance and bool((values < 0).any())):
            raise UserError(
                f"{name}: NaN, infinite numbers or negative variances; the file is damaged or its "
                "training diverged."
            )
