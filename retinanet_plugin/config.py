"""Every configuration key of the plugin, and how a configuration is loaded."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .config_file import load_yaml, shipped_configs, shipped_names
from .errors import UserError, did_you_mean, printable

_ABSENT = object()  # some of detectron2's keys are None


def add_retinanet_config(cfg: CfgNode) -> None:
    """Adds the plugin's keys to a configuration of detectron2; those already there stay.

    All of detectron2's ``MODEL.RETINANET.*`` and ``MODEL.ANCHOR_GENERATOR.*`` keys keep their
    meaning, but for ``MODEL.ANCHOR_GENERATOR.SIZES``, which ``RetinaNetAnchorGenerator`` replaces.
    """
    new = CfgNode()
    new.MODEL = CfgNode()
    new.MODEL.RETINANET = CfgNode()
    # Registered dense head.
    new.MODEL.RETINANET.HEAD_NAME = "FocalLossHead"
    # Classification loss: focal, focal_star, cross_entropy (plain), balanced_cross_entropy (by
    # FOCAL_LOSS_ALPHA: the same as focal with FOCAL_LOSS_GAMMA 0), ohem, or one registered by
    # others. A negative FOCAL_LOSS_ALPHA weighs positives and negatives alike.
    new.MODEL.RETINANET.CLS_LOSS = "focal"
    # Shift of focal_star; FOCAL_LOSS_GAMMA is its steepness.
    new.MODEL.RETINANET.FOCAL_STAR_BETA = 1.0
    # CLS_LOSS ohem: plain cross entropy of a picture's hardest anchors, its mean over all chosen.
    new.MODEL.RETINANET.OHEM = CfgNode()
    # Anchors a picture, at least 1.
    new.MODEL.RETINANET.OHEM.BATCH_SIZE = 128
    # Of two anchors whose IoU is above it, the one of lower loss is left out; above 0, 1: none is.
    new.MODEL.RETINANET.OHEM.NMS_THRESH = 0.5
    # 0: the hardest, positive or negative. Else this fraction of a batch are positives, where there
    # are enough, and negatives are taken in proportion to the positives; 0.25 is the paper's 1:3.
    new.MODEL.RETINANET.OHEM.POSITIVE_FRACTION = 0.0
    # Whether torch.compile makes one kernel of the classification loss and its gradient: twice to
    # three times as fast, for some seconds of compilation at the first step. Needs a C++ compiler
    # on a CPU and Triton on a GPU; without, a warning says so and the loss runs uncompiled. It does
    # nothing for ohem.
    new.MODEL.RETINANET.COMPILE_LOSS = False
    # Whether training writes to metrics.json and TensorBoard, every 20 steps, how many anchors of a
    # picture are positive, ignored and negative (anchors/...), and which share of the
    # classification loss positive and negative ones hold (loss_cls_share/...).
    new.MODEL.RETINANET.LOG_LOSS_SHARES = False
    # What the losses are divided by. positives: anchors assigned in the whole batch, over all
    # workers (the paper); ema: a moving average of them (detectron2).
    new.MODEL.RETINANET.LOSS_NORMALIZER = "positives"
    # Whether each box also takes its best anchors where they are below the IoU threshold.
    new.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES = True
    # False: a box for each class, 4 * A * NUM_CLASSES outputs instead of 4 * A.
    new.MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG = True
    # Whether boxes are clipped to the picture before NMS, as torchvision and mmdetection do it.
    new.MODEL.RETINANET.CLIP_BEFORE_NMS = False
    new.MODEL.FPN = CfgNode()
    # This and the next are heeded where MODEL.BACKBONE.NAME is build_resnet_fpn_p6p7_backbone. The
    # level that P6 is made from: res5 (the paper) or p5.
    new.MODEL.FPN.P6_INPUT = "res5"
    # Whether a ReLU stands between P6 and P7.
    new.MODEL.FPN.P7_RELU = True
    # What makes training and evaluation faster; all except KEEP_FREED_MEMORY sum in another order,
    # and so change the last bits.
    new.MODEL.ACCELERATION = CfgNode()
    # Memory format of weights and features: channels last is what convolutions on a CPU, and on a
    # GPU in half precision, are fastest in.
    new.MODEL.ACCELERATION.CHANNELS_LAST = True
    # Frozen batch norms are applied to the weights before them, not to the features; in --eval-only
    # so are all batch norms of backbone and FPN.
    new.MODEL.ACCELERATION.FOLD_NORMS = True
    # 3x3 convolutions on a CPU, in float32 and bfloat16, by Winograd's algorithms where faster.
    new.MODEL.ACCELERATION.WINOGRAD = True
    # On a CPU: memory that a step has freed stays with train_net.py's process for the next one.
    # GNU C library only.
    new.MODEL.ACCELERATION.KEEP_FREED_MEMORY = True
    # Compile backbone and head by torch.compile: some ten seconds a shape of picture on a CPU.
    new.MODEL.COMPILE = False
    new.MODEL.ANCHOR_GENERATOR = CfgNode()
    # Anchor sizes of a level are ANCHOR_SCALE * stride * 2^(i / SCALES_PER_OCTAVE).
    new.MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE = 3
    # Smallest anchor in strides: 4 is 32 pixels at stride 8.
    new.MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE = 4.0
    new.DATASETS = CfgNode()
    # A data set of one's own, in COCO's JSON format. Naming a JSON here makes it the training set
    # "own_train" or the test set "own_test", in place of DATASETS.TRAIN and DATASETS.TEST.
    # NUM_CLASSES comes from the JSON then, unless it is given too: then the two must agree.
    new.DATASETS.OWN = CfgNode()
    # Folder that the paths below are relative to; empty: the working directory.
    new.DATASETS.OWN.ROOT = ""
    # Annotations to train on.
    new.DATASETS.OWN.TRAIN_JSON = ""
    # Folder of their pictures.
    new.DATASETS.OWN.TRAIN_IMAGES = ""
    # Annotations to evaluate on.
    new.DATASETS.OWN.TEST_JSON = ""
    # Folder of their pictures; empty: TRAIN_IMAGES.
    new.DATASETS.OWN.TEST_IMAGES = ""
    # Boxes that are empty or reach outside their picture: error (stop and name them) or fix (clip
    # them, drop what is left empty, and count them in the log).
    new.DATASETS.OWN.BAD_BOXES = "error"
    new.SOLVER = CfgNode()
    new.SOLVER.AMP = CfgNode()
    # What SOLVER.AMP.ENABLED trains in, on any device: bfloat16, or float16 with a loss scaler.
    new.SOLVER.AMP.DTYPE = "bfloat16"
    # Whether rate and steps follow the batch: BASE_LR, BASE_LR_END, MAX_ITER, STEPS, WARMUP_ITERS,
    # CHECKPOINT_PERIOD and TEST.EVAL_PERIOD are meant for the SOLVER.IMS_PER_BATCH that holds where
    # they are set (a _BASE_, the file on it, the command line), and are scaled for another.
    new.SOLVER.SCALE_TO_BATCH = True
    new.SOLVER.EARLY_STOPPING = CfgNode()
    # Training ends after as many evaluations without a better TEST.BEST_METRIC; 0: it does not.
    # Needs TEST.EVAL_PERIOD.
    new.SOLVER.EARLY_STOPPING.PATIENCE = 0
    # How many of the checkpoints written every SOLVER.CHECKPOINT_PERIOD steps stay; 0: all.
    new.SOLVER.KEEP_CHECKPOINTS = 0
    # How many steps whose loss or gradients are not finite are left out; one more ends training.
    new.SOLVER.SKIP_NOT_FINITE = 0
    new.DATALOADER = CfgNode()
    # How many pictures that cannot be read are replaced by others, in each process and from each
    # start on; one more ends training.
    new.DATALOADER.SKIP_UNREADABLE = 0
    new.TEST = CfgNode()
    # What train_net.py evaluates in: float32, bfloat16 or float16.
    new.TEST.DTYPE = "float32"
    # Test pictures drawn after an evaluation, predictions beside ground truth; 0: none.
    new.TEST.DRAW_PICTURES = 8
    # Whether an evaluation also gives the losses on the test pictures: validation/total_loss, ...
    new.TEST.LOSS = True
    # Of the evaluations every TEST.EVAL_PERIOD steps, the one in which this is best is kept as
    # model_best.pth; a name in metrics.json, of which a loss is best when least.
    new.TEST.BEST_METRIC = "bbox/AP"
    # Whether training ends by writing OUTPUT_DIR/report.html.
    new.TEST.REPORT = True
    _add_missing(new, cfg)


def _add_missing(source: CfgNode, target: CfgNode) -> None:
    for key, value in source.items():
        if key not in target:
            target[key] = value
        elif isinstance(value, CfgNode):
            _add_missing(value, target[key])


def get_config(name: str | Path = "Base-RetinaNet.yaml", overrides: Sequence[str] = ()) -> CfgNode:
    """A complete configuration: detectron2's defaults, the plugin's, a YAML file, and overrides.

    YAML is read by the safe loader alone: a file that asks for Python objects is refused.

    Args:
        name: a file, or the name of one that the plugin ships, such as
            "retinanet_R50_FPN_1x.yaml" (a file of that name goes before a shipped one).
        overrides: key, value, key, value ..., as at the end of a command line.

    Raises:
        UserError: for a file, key or value that cannot be used, in one sentence.
    """
    path = find_config(name)
    cfg = get_cfg()
    add_retinanet_config(cfg)
    given = load_yaml(path)
    _merge(cfg, list(_leaves(given, cfg)), str(path))
    if len(overrides) % 2:
        raise UserError(
            f"overrides: {len(overrides)} words at the end of the command line; give pairs of key "
            f'and value, such as SOLVER.MAX_ITER 100 (the last word is "{overrides[-1]}").'
        )
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    _merge(cfg, pairs, "command line")
    named = {key for key, _ in _leaves(given, cfg)} | {key for key, _ in pairs}
    own = cfg.DATASETS.OWN
    if (own.TRAIN_JSON or own.TEST_JSON) and "MODEL.RETINANET.NUM_CLASSES" not in named:
        cfg.MODEL.RETINANET.NUM_CLASSES = -1  # as many as the JSON declares
    return cfg


def find_config(name: str | Path) -> Path:
    """The path of a configuration file, or of the shipped one of that name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = shipped_configs()
    shipped = folder / name
    if shipped.is_file() and shipped.resolve().is_relative_to(folder.resolve()):
        return shipped
    known = shipped_names()
    raise UserError(
        f"config file: no file {name}{did_you_mean(str(name), known)}; shipped with the plugin: "
        f"{', '.join(known)}."
    )


def _leaves(
    content: Mapping[str, Any], cfg: CfgNode, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The full name and value of each key of nested mappings."""
    for key, value in content.items():
        inner = cfg.get(key) if isinstance(cfg, CfgNode) else None
        if isinstance(value, Mapping) and (isinstance(inner, CfgNode) or inner is None):
            yield from _leaves(value, inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: CfgNode, pairs: Sequence[tuple[str, Any]], source: str) -> None:
    """Sets keys one by one, so that each mistake can be named."""
    known = None
    for key, value in pairs:
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, CfgNode) else _ABSENT
        if node is _ABSENT:
            known = known or [name for name, _ in _leaves(cfg, cfg)]
            raise UserError(
                f"{source}: unknown key {key}{did_you_mean(key, known)}; "
                "retinanet_plugin/config.py lists our keys, detectron2's manual the others."
            )
        if isinstance(node, CfgNode):
            raise UserError(
                f"{source}: {key} is a group of keys; name one of them: {', '.join(node)}."
            )
        try:
            cfg.merge_from_list([key, value])
        except (
            *(ValueError, AssertionError, KeyError, TypeError, SyntaxError),
            *(MemoryError, RecursionError),  # Python's parser, of texts such as "-------...1"
        ) as error:
            said, given = printable(str(error), 300), printable(repr(value), 80)
            found = re.search(r"\(<class '(.*?)'> vs. <class '(.*?)'>\)", said)
            if not found:
                raise UserError(f"{source}: {key} is {given}: {said or 'too complex'}.") from None
            raise UserError(
                f"{source}: {key} is {given}, {_a(found[2])}, but needs {_a(found[1])} "
                f"such as its default, {node!r}."
            ) from None


def _a(type_name: str) -> str:
    return f"{'an' if type_name[0] in 'aeiou' else 'a'} {type_name}"
