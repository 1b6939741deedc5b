"""The YAML config that trains on a converted set."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

_BATCH = 8
_PASSES = 30  # through the training pictures
_LEAST_STEPS = 1000
_SHORT_SIDES = (160, 800)  # that pictures are trained at
_SCRATCH_RATE = 0.02  # for a batch of 8, with norms in FPN and head: docs/own-data.md


def ready_config(
    parts: Mapping[str, Mapping[str, Any]], out: Path, images: Path, name: str, base: CfgNode
) -> str:
    """The text of a YAML config: the data, and what depends on their number and size.

    Args:
        parts: COCO dicts by split; each lies in ``out`` as SPLIT.json.
        images: folder of the pictures.
        name: of the config to build on, which is ``base``.
    """
    train = parts["train"]
    test = next((split for split in ("val", "test") if split in parts), None)
    batch = min(_BATCH, len(train["images"]))
    scratch = not base.MODEL.WEIGHTS
    most = base.SOLVER.MAX_ITER * base.SOLVER.IMS_PER_BATCH // batch  # as many pictures as there
    steps = round(min(max(_PASSES * len(train["images"]) / batch, _LEAST_STEPS), most), -2)
    steps = max(int(steps), 1)
    rate = _SCRATCH_RATE * batch / _BATCH
    if not scratch:
        rate = base.SOLVER.BASE_LR * batch / base.SOLVER.IMS_PER_BATCH
    sides = [min(row["width"], row["height"]) for row in train["images"]]
    side = int(np.clip(np.median(sides), *_SHORT_SIDES))
    where = images.relative_to(out).as_posix() if images.is_relative_to(out) else str(images)
    numbers = ", ".join(f"{len(content['images'])} {split}" for split, content in parts.items())
    lines = [
        f"# {numbers} pictures; made by python -m retinanet_plugin.tools.convert_dataset.command.",
        f"_BASE_: {_text(name)}",
    ]
    lines += [
        "MODEL:",
        "  RETINANET:",
        "    NUM_CLASSES: -1  # as many as the JSON declares",
    ]
    if scratch:  # which needs norms that train
        lines += ['    NORM: "GN"', "  FPN:", '    NORM: "GN"']
    lines += [
        "DATASETS:",
        "  OWN:",
        f"    ROOT: {_text(str(out))}",
        '    TRAIN_JSON: "train.json"',
        f"    TRAIN_IMAGES: {_text(where)}",
        *([f'    TEST_JSON: "{test}.json"'] if test else []),
        "INPUT:  # the short side in pixels: as most training pictures have it, up to 800",
        f"  MIN_SIZE_TRAIN: ({side},)",
        f"  MIN_SIZE_TEST: {side}",
        "SOLVER:",
        f"  IMS_PER_BATCH: {batch}",
        f"  BASE_LR: {rate:g}",
        f"  WARMUP_ITERS: {min(steps // 10, 1000)}",
        f"  MAX_ITER: {steps}  # {steps * batch / len(train['images']):.0f} passes",
        f"  STEPS: ({steps * 7 // 10}, {steps * 9 // 10})",
        f"  CHECKPOINT_PERIOD: {max(steps // 10, 1)}",
        *(["TEST:", f"  EVAL_PERIOD: {max(steps // 10, 1)}"] if test else []),
        f"OUTPUT_DIR: {_text(str(out / 'output'))}",
    ]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """As YAML, in which each JSON text is one."""
    return json.dumps(value, ensure_ascii=False)
