"""Every config key of the plugin, declared once: default, meaning, range, and whether it may
change when a run is resumed.

Range checks, resume checks and the table in docs/config.md all read these declarations. Keys of
detectron2 that it does not check itself have their ranges here too.
"""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from detectron2.config import CfgNode

from .errors import UserError, did_you_mean
from .utils import flatten, markdown_table


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; ``open_low`` and ``open_high`` exclude the ends."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, int | float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high}"


@dataclass(frozen=True)
class OneOf:
    """One of the given values."""

    values: tuple[str, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return f"one of {', '.join(self.values)}"


@dataclass(frozen=True)
class Key:
    """A config key.

    Args:
        name: dotted, such as "SOLVER.KEEP_CHECKPOINTS".
        default: as in a YAML file.
        help: its meaning, for docs/config.md.
        allowed: the values it may have; None: any of the default's type.
        on_resume: whether a run may be resumed with another value without being another run.
    """

    name: str
    default: Any
    help: str
    allowed: Range | OneOf | None = None
    on_resume: bool = False


POSITIVE = Range(0, open_low=True)
COUNT = Range(0)  # of anything; 0 mostly means off
NATURAL = Range(1)
DTYPES = OneOf(("float32", "bfloat16", "float16"))

KEYS = (
    Key("MODEL.RETINANET.HEAD_NAME", "FocalLossHead", "A head in DENSE_HEAD_REGISTRY."),
    Key(
        "MODEL.RETINANET.CLS_LOSS",
        "focal",
        "Classification loss: focal, focal_star, cross_entropy (unweighted), "
        "balanced_cross_entropy (weighted by FOCAL_LOSS_ALPHA; focal with FOCAL_LOSS_GAMMA 0), "
        "ohem, or another name in CLS_LOSS_REGISTRY. A negative FOCAL_LOSS_ALPHA turns off the "
        "weights.",
    ),
    Key(
        "MODEL.RETINANET.FOCAL_STAR_BETA",
        1.0,
        "Shift of focal_star; its steepness is FOCAL_LOSS_GAMMA.",
    ),
    Key(
        "MODEL.RETINANET.OHEM.BATCH_SIZE",
        128,
        "CLS_LOSS ohem: how many of the hardest anchors of an image train.",
        NATURAL,
    ),
    Key(
        "MODEL.RETINANET.OHEM.NMS_THRESH",
        0.5,
        "CLS_LOSS ohem: of two anchors with a higher IoU, the one with the lower loss is dropped; "
        "1 drops none.",
        Range(0, 1, open_low=True),
    ),
    Key(
        "MODEL.RETINANET.OHEM.POSITIVE_FRACTION",
        0.0,
        "CLS_LOSS ohem: 0 takes the hardest anchors, positive or negative. Otherwise this fraction "
        "of a batch are positives, if there are enough, with negatives in proportion; 0.25 is "
        "the paper's 1:3.",
        Range(0, 1, open_high=True),
    ),
    Key(
        "MODEL.RETINANET.COMPILE_LOSS",
        False,
        "Compile the classification loss with torch.compile: two to three times faster, after some "
        "seconds of compilation in the first step. Needs a C++ compiler on a CPU and Triton on a "
        "GPU; without them a warning is logged and the loss runs uncompiled. No effect on ohem.",
    ),
    Key(
        "MODEL.RETINANET.LOG_LOSS_SHARES",
        False,
        "Log every 20 steps how many anchors per image are positive, ignored and negative "
        "(anchors/...), and which share of the classification loss positives and negatives hold "
        "(loss_cls_share/...).",
        on_resume=True,
    ),
    Key(
        "MODEL.RETINANET.LOSS_NORMALIZER",
        "positives",
        "What the losses are divided by: positives, the number of positive anchors in the batch "
        "over all workers (the paper), or ema, a moving average of it (detectron2).",
        OneOf(("positives", "ema")),
    ),
    Key(
        "MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES",
        True,
        "Whether each box also gets the anchors of its highest IoU if that is below the threshold.",
    ),
    Key(
        "MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG",
        True,
        "One box per anchor (4 * A outputs), or one per anchor and class (4 * A * NUM_CLASSES).",
    ),
    Key(
        "MODEL.RETINANET.CLIP_BEFORE_NMS",
        False,
        "Whether boxes are clipped to the image before NMS, as in torchvision and mmdetection.",
    ),
    Key(
        "MODEL.FPN.P6_INPUT",
        "res5",
        "Level that P6 is computed from: res5 (the paper) or p5. Used by MODEL.BACKBONE.NAME "
        "build_resnet_fpn_p6p7_backbone.",
        OneOf(("res5", "p5")),
    ),
    Key(
        "MODEL.FPN.P7_RELU",
        True,
        "Whether a ReLU stands between P6 and P7. Used by MODEL.BACKBONE.NAME "
        "build_resnet_fpn_p6p7_backbone.",
    ),
    Key(
        "MODEL.ACCELERATION.CHANNELS_LAST",
        True,
        "Memory format of weights and features: channels-last convolutions are fastest on a CPU, "
        "and on a GPU in half precision. Like the next two, it changes the order of sums and so "
        "the last bits.",
    ),
    Key(
        "MODEL.ACCELERATION.FOLD_NORMS",
        True,
        "Fold frozen batch norms into the weights of the convolutions before them; with "
        "--eval-only, all batch norms of backbone and FPN.",
    ),
    Key(
        "MODEL.ACCELERATION.WINOGRAD",
        True,
        "Compute 3x3 convolutions on a CPU, in float32 and bfloat16, by Winograd's algorithms "
        "where they are faster.",
    ),
    Key(
        "MODEL.ACCELERATION.KEEP_FREED_MEMORY",
        True,
        "Keep the memory that a step frees for the next one (CPU, GNU C library only).",
        on_resume=True,
    ),
    Key(
        "MODEL.COMPILE",
        False,
        "Compile backbone and head with torch.compile: about ten seconds per image shape on a CPU.",
    ),
    Key(
        "MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE",
        3,
        "Anchor sizes per level: ANCHOR_SCALE * stride * 2^(i / SCALES_PER_OCTAVE).",
        NATURAL,
    ),
    Key(
        "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE",
        4.0,
        "Smallest anchor size in strides: 4 is 32 pixels at stride 8.",
        POSITIVE,
    ),
    Key(
        "DATASETS.OWN.ROOT",
        "",
        "Your own dataset in COCO format: the folder that the paths below are relative to; empty: "
        "the working directory.",
        on_resume=True,
    ),
    Key(
        "DATASETS.OWN.TRAIN_JSON",
        "",
        "Annotations to train on. They become the dataset own_train in place of DATASETS.TRAIN. "
        "NUM_CLASSES then follows from the JSON, unless the config sets it; the two must agree.",
        on_resume=True,
    ),
    Key("DATASETS.OWN.TRAIN_IMAGES", "", "Folder of the training images.", on_resume=True),
    Key(
        "DATASETS.OWN.TEST_JSON",
        "",
        "Annotations to evaluate on: the dataset own_test in place of DATASETS.TEST.",
        on_resume=True,
    ),
    Key(
        "DATASETS.OWN.TEST_IMAGES",
        "",
        "Folder of the test images; empty: TRAIN_IMAGES.",
        on_resume=True,
    ),
    Key(
        "DATASETS.OWN.BAD_BOXES",
        "error",
        "What to do with boxes that are empty or reach outside their image: error (stop and name "
        "them) or fix (clip them, drop empty ones, and log how many).",
        OneOf(("error", "fix")),
        on_resume=True,
    ),
    Key(
        "SOLVER.AMP.DTYPE",
        "bfloat16",
        "Precision of SOLVER.AMP.ENABLED on any device: bfloat16, or float16 with a loss scaler.",
        OneOf(("bfloat16", "float16")),
    ),
    Key(
        "SOLVER.BASE_BATCH_SIZE",
        0,
        "Batch size that the schedule was written for. If SOLVER.IMS_PER_BATCH differs, BASE_LR, "
        "BASE_LR_END, MAX_ITER, STEPS, WARMUP_ITERS, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD are "
        "scaled linearly; 0: never.",
        COUNT,
    ),
    Key(
        "SOLVER.EARLY_STOPPING.PATIENCE",
        0,
        "End training after this many evaluations without a better TEST.BEST_METRIC; 0: never. "
        "Needs TEST.EVAL_PERIOD.",
        COUNT,
        on_resume=True,
    ),
    Key(
        "SOLVER.KEEP_CHECKPOINTS",
        0,
        "How many of the checkpoints written every CHECKPOINT_PERIOD steps are kept; 0: all.",
        COUNT,
        on_resume=True,
    ),
    Key(
        "SOLVER.SKIP_NOT_FINITE",
        0,
        "How many steps with a loss or gradients that are not finite are skipped; one more ends "
        "training.",
        COUNT,
        on_resume=True,
    ),
    Key(
        "DATALOADER.SKIP_UNREADABLE",
        0,
        "How many unreadable images are replaced by others, per process and start; one more ends "
        "training.",
        COUNT,
        on_resume=True,
    ),
    Key("TEST.DTYPE", "float32", "Precision of evaluation.", DTYPES),
    Key(
        "TEST.DRAW_IMAGES",
        8,
        "Test images drawn after an evaluation, detections beside ground truth; 0: none.",
        COUNT,
    ),
    Key(
        "TEST.LOSS",
        True,
        "Whether an evaluation also computes the losses on the test images: validation/total_loss, "
        "...",
    ),
    Key(
        "TEST.BEST_METRIC",
        "bbox/AP",
        "Of the evaluations every TEST.EVAL_PERIOD steps, the one with the best value of this "
        "metric (a name in metrics.json; lowest, if a loss) is kept as model_best.pth.",
    ),
    Key("TEST.REPORT", True, "Whether training ends by writing OUTPUT_DIR/report.html."),
)

# Ranges of detectron2's own keys, which it does not check; most matter for training only.
HOST_RANGES: dict[str, Range | OneOf] = {
    "DATALOADER.NUM_WORKERS": Range(0, 1000),
    "MODEL.FPN.OUT_CHANNELS": Range(1, 2**16),
    "MODEL.RETINANET.PRIOR_PROB": Range(0, 1, open_low=True, open_high=True),
    "MODEL.RETINANET.NUM_CONVS": NATURAL,
    "SEED": Range(-1, 2**32 - 1),
    "SOLVER.BASE_LR": Range(0, 1e30),
    "SOLVER.CHECKPOINT_PERIOD": NATURAL,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": OneOf(("value", "norm")),
    "SOLVER.IMS_PER_BATCH": Range(1, 2**20),
    "SOLVER.LR_SCHEDULER_NAME": OneOf(
        ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
    ),
    "SOLVER.MAX_ITER": NATURAL,
    "SOLVER.WARMUP_ITERS": COUNT,
}

# Keys of detectron2 that may change on resume: they do not affect the weights. Of the other
# groups (TEST, VIS_PERIOD, ...) all keys may.
_HOST_ON_RESUME = (
    *("DATALOADER.NUM_WORKERS", "DATASETS.TEST*", "DATASETS.TRAIN", "INPUT.*_TEST"),
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.RETINANET.*_TEST", "SOLVER.CHECKPOINT_PERIOD"),
)
_DECIDING_GROUPS = ("DATALOADER.", "DATASETS.", "INPUT.", "MODEL.", "SOLVER.")


def may_change_on_resume(name: str) -> bool:
    """Returns whether a run may be resumed with another value of the key."""
    own = next((key for key in KEYS if key.name == name), None)
    if own is not None:
        return own.on_resume or not name.startswith(_DECIDING_GROUPS)
    patterns = any(fnmatchcase(name, pattern) for pattern in _HOST_ON_RESUME)
    return patterns or not name.startswith(_DECIDING_GROUPS)


def check_ranges(cfg: CfgNode, *, training: bool = True, prefix: str = "") -> None:
    """Checks every key that has a range.

    Args:
        training: False leaves out SOLVER, which evaluation does not read.
        prefix: checks only keys that begin with it, such as "MODEL.".

    Raises:
        UserError: naming the key, its value and the allowed values.
    """
    values = dict(flatten(cfg))
    ranges = {key.name: key.allowed for key in KEYS if key.allowed is not None} | HOST_RANGES
    for name, allowed in ranges.items():
        if not name.startswith(prefix) or (name.startswith("SOLVER.") and not training):
            continue
        value = values[name]
        if value not in allowed:
            hint = did_you_mean(str(value), allowed.values) if isinstance(allowed, OneOf) else ""
            raise UserError(f"{name}: must be {allowed}, got {value!r}{hint}.")


def docs_table() -> str:
    """Returns the table of KEYS for docs/config.md."""
    return markdown_table(
        ("key", "default", "meaning"),
        [(f"`{key.name}`", f"`{key.default!r}`", _meaning(key)) for key in KEYS],
    )


def _meaning(key: Key) -> str:
    if isinstance(key.allowed, Range) and key.allowed is not COUNT:
        return f"{key.help} Must be {key.allowed}."
    return key.help
