"""A model on its way from one framework to another: weights, config, and where each key went."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import UserError, printable

COUNTER = "a batch norm's count of training steps, which detection does not need"
BOTTOM_UP = "backbone.bottom_up."
_BLOCKS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_NUM_ANCHORS = 9  # three sizes times three ratios, all that the frameworks' RetinaNets have


@dataclass
class Options:
    """What no file of weights tells.

    Args:
        classes: names of the classes in the order of the outputs; None: as the file tells.
        has_background: whether torchvision's output 0 is the background, and not a class.
        norm_eps: epsilon of torchvision's frozen batch norms; None: by the file.
        caffe_style: whether mmdetection's ResNet is Caffe's (BGR, stride in the first convolution
            of a block); None: by the file.
    """

    classes: list[str] | None = None
    has_background: bool = True
    norm_eps: float | None = None
    caffe_style: bool | None = None


@dataclass
class Keys:
    """Where weights went.

    Args:
        used: of each weight that was written, the key of the file it came from.
        unused: of each other key of the file, why it was left out.
        made: of each weight that the file has nothing for, what it is.
        initialised: weights of the model that training has to begin itself.
    """

    used: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    initialised: list[str] = field(default_factory=list)

    def then(self, after: "Keys") -> "Keys":
        """Of two steps, of which the second was given what the first wrote."""
        back = {new: self.used[old] for new, old in after.used.items() if old in self.used}
        made = {new: self.made[old] for new, old in after.used.items() if old in self.made}
        left_out = {self.used[key]: why for key, why in after.unused.items() if key in self.used}
        return Keys(back, self.unused | left_out, made | after.made, self.initialised)


@dataclass
class Model:
    """Weights under this plugin's names.

    Args:
        kind: what the file was found to be, in words.
        weights: by name.
        keys: where they came from.
        settings: config keys over ``Base-RetinaNet.yaml``.
        classes: their names, where known.
        notes: sentences that a person should read.
        is_detector: False for a backbone alone.
    """

    kind: str
    weights: dict[str, Tensor]
    keys: Keys
    settings: dict[str, Any]
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    is_detector: bool = True


def renamed(
    tensors: Mapping[str, Tensor], name_of: Callable[[str], str | None], kind: str
) -> tuple[dict[str, Tensor], Keys]:
    """The tensors under our names.

    Raises:
        UserError: where some have none, which makes it another kind of model.
    """
    keys, weights, unknown = Keys(), {}, []
    for key, tensor in tensors.items():
        name = name_of(key)
        if key.endswith(".num_batches_tracked"):
            keys.unused[key] = COUNTER
        elif name is None or name in weights:
            unknown.append(key)
        else:
            weights[name] = tensor.float() if tensor.is_floating_point() else tensor
            keys.used[name] = key
    if unknown:
        raise UserError(
            f"{len(unknown)} of the {len(tensors)} keys have no place in a RetinaNet "
            f"({listed(unknown)}), so this is no {kind} that is known here."
        )
    return weights, keys


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few."""
    names = [printable(name, 80) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def num_classes_of(weights: Mapping[str, Tensor]) -> int:
    """K, of heads with nine anchors a place.

    Raises:
        UserError: for others.
    """
    boxes, scores = weights.get("head.bbox_pred.weight"), weights.get("head.cls_score.weight")
    if boxes is None or scores is None:
        raise UserError("the last convolution of the class or of the box subnet is absent.")
    if len(boxes) != 4 * _NUM_ANCHORS or len(scores) % _NUM_ANCHORS:
        raise UserError(
            f"the head gives {len(boxes)} box and {len(scores)} class outputs a place; only "
            f"{_NUM_ANCHORS} anchors of 4 box outputs each, three sizes times three ratios, can be "
            "converted."
        )
    return len(scores) // _NUM_ANCHORS


def resnet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config keys of the ResNet whose weights these are.

    Raises:
        UserError: for one of a depth that detectron2 has not.
    """
    names = {tuple(name.removeprefix(BOTTOM_UP).split(".")[:2]) for name in weights}
    blocks = tuple(sum(stage == f"res{i}" for stage, _ in names) for i in range(2, 6))
    second = weights.get(f"{BOTTOM_UP}res2.0.conv2.weight")
    stem = weights.get(f"{BOTTOM_UP}stem.conv1.weight")
    if blocks not in _BLOCKS:
        raise UserError(
            f"the backbone is no ResNet of 18, 34, 50, 101 or 152 layers: its stages have "
            f"{', '.join(map(str, blocks))} blocks."
        )
    if second is None or stem is None:
        raise UserError("the first convolution of the backbone or of its first block is absent.")
    is_deep = f"{BOTTOM_UP}res2.0.conv3.weight" in weights
    depth = _BLOCKS[blocks]
    depth = 34 if depth == 50 and not is_deep else depth
    last = weights[f"{BOTTOM_UP}res2.0.conv{3 if is_deep else 2}.weight"]
    groups = len(second) // second.shape[1]
    has_statistics = f"{BOTTOM_UP}stem.conv1.norm.running_var" in weights
    settings = {
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NORM": "FrozenBN" if has_statistics else "GN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": len(stem),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": len(last),
    }
    if is_deep:
        settings["MODEL.RESNETS.NUM_GROUPS"] = groups
        settings["MODEL.RESNETS.WIDTH_PER_GROUP"] = len(second) // groups
    return settings


def detector_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config keys of the RetinaNet whose weights these are, as far as shapes tell.

    Raises:
        UserError: for one that is none.
    """
    settings = resnet_settings(weights)
    num_classes = num_classes_of(weights)
    p6, p5 = weights.get("backbone.top_block.p6.weight"), weights.get("backbone.fpn_output5.weight")
    if p6 is None or p5 is None:
        raise UserError("the pyramid has no P5 or P6, which RetinaNet needs.")
    layers = [
        name for name, tensor in weights.items() if "head.cls_subnet." in name and tensor.ndim == 4
    ]
    return {
        **settings,
        "MODEL.FPN.OUT_CHANNELS": len(p5),
        "MODEL.FPN.NORM": _norm_of(weights, "backbone.fpn_output5.norm"),
        "MODEL.RETINANET.NUM_CLASSES": num_classes,
        "MODEL.RETINANET.NUM_CONVS": len(layers),
        "MODEL.RETINANET.NORM": _norm_of(weights, "head.cls_subnet.1"),
    }


def _norm_of(weights: Mapping[str, Tensor], name: str) -> str:
    if f"{name}.weight" not in weights:
        return ""
    return "FrozenBN" if f"{name}.running_var" in weights else "GN"


def check_fit(weights: Mapping[str, Tensor], shapes: Mapping[str, Any], what: str) -> None:
    """Refuses half a match.

    Args:
        weights: that were made.
        shapes: a tensor of the right shape for each weight that there must be.
        what: they are for.

    Raises:
        UserError: naming what is missing, too many, or of another shape.
    """
    missing = [name for name in shapes if name not in weights]
    surplus = [name for name in weights if name not in shapes]
    reshaped = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(shapes[name].shape)}"
        for name in shapes
        if name in weights and weights[name].shape != shapes[name].shape
    ]
    parts = [
        f"{len(names)} {said} ({listed(names)})"
        for names, said in (
            (missing, "are missing"),
            (surplus, "have no place in it"),
            (reshaped, "have another shape"),
        )
        if names
    ]
    if parts:
        raise UserError(
            f"of the {len(shapes)} weights of {what} {'; '.join(parts)}; half a model would "
            "detect nothing, so nothing was written."
        )


def check_values(weights: Mapping[str, Tensor]) -> None:
    """Refuses what no training leaves behind, and what would detect nothing or anything.

    Raises:
        UserError: for weights that are no floating-point numbers, NaN or infinite, or variances
            below 0.
    """
    for name, values in weights.items():
        if name.endswith(".num_batches_tracked"):
            continue
        if not values.is_floating_point():
            fault = f"holds {str(values.dtype).removeprefix('torch.')} numbers"
        elif not bool(values.isfinite().all()):
            fault = "holds NaN or infinite numbers"
        elif name.endswith(".running_var") and bool((values < 0).any()):
            fault = "holds variances below 0"
        else:
            continue
        raise UserError(f"{name} {fault}, so the file is damaged or its training went astray.")


def add_zero_biases(weights: dict[str, Tensor], keys: Keys) -> None:
    """For the convolutions of subnets, which have biases here before norms too."""
    for name in [name for name in weights if "_subnet." in name and weights[name].ndim == 4]:
        bias = name.replace(".weight", ".bias")
        if bias not in weights:
            weights[bias] = weights[name].new_zeros(len(weights[name]))
            keys.made[bias] = "zeros: the convolution has no bias there"


class NoRandomValues(TorchFunctionMode):
    """Models are built without drawing initial weights, which take longer than all else."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return function(*args, **(kwargs or {}))


def settings_yaml(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"A.B": 1}`` as ``{"A": {"B": 1}}``."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return nested


def flat(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """``{"A.B": 1}`` of a configuration."""
    values: dict[str, Any] = {}
    for key, value in cfg.items():
        inner = isinstance(value, CfgNode)
        values |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return values
