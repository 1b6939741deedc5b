"""The YAML config that trains on a converted dataset."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode

_BATCH = 8
_EPOCHS = 30
_MIN_STEPS = 1000
_SHORT_SIDES = (160, 800)  # range of the short side of training images
_SCRATCH_LR = 0.02  # for a batch of 8 and norms in FPN and head, see docs/own-data.md


def training_config(
    parts: Mapping[str, Mapping[str, Any]],
    folder: Path,
    images: Path,
    name: str,
    base: CfgNode,
    overrides: Mapping[str, Any],
) -> str:
    """Returns a config with the datasets, and image size and schedule to suit them.

    Args:
        parts: COCO dicts by split; each is in ``folder`` as SPLIT.json.
        images: folder of the images.
        name: of the config to build on, which is ``base``.
        overrides: values by key that replace those of the returned config.
    """
    train = parts["train"]
    test = next((split for split in ("val", "test") if split in parts), None)
    batch = min(_BATCH, len(train["images"]))
    from_scratch = not base.MODEL.WEIGHTS
    most = base.SOLVER.MAX_ITER * base.SOLVER.IMS_PER_BATCH // batch  # as many images as the base
    steps = round(min(max(_EPOCHS * len(train["images"]) / batch, _MIN_STEPS), most), -2)
    steps = max(int(steps), 1)
    lr = _SCRATCH_LR * batch / _BATCH
    if not from_scratch:
        lr = base.SOLVER.BASE_LR * batch / base.SOLVER.IMS_PER_BATCH
    sides = [min(row["width"], row["height"]) for row in train["images"]]
    side = int(np.clip(np.median(sides), *_SHORT_SIDES))
    location = images.relative_to(folder).as_posix() if images.is_relative_to(folder) else images
    norm = {"NORM": "GN"} if from_scratch else {}  # random weights need norms that train
    content: dict[str, Any] = {
        "_BASE_": name,
        "MODEL": {
            "RETINANET": {"NUM_CLASSES": -1, **norm},
            **({"FPN": norm} if norm else {}),
        },
        "DATASETS": {
            "OWN": {
                "ROOT": str(folder),
                "TRAIN_JSON": "train.json",
                "TRAIN_IMAGES": str(location),
                **({"TEST_JSON": f"{test}.json"} if test else {}),
            }
        },
        "INPUT": {"MIN_SIZE_TRAIN": [side], "MIN_SIZE_TEST": side},
        "SOLVER": {
            "IMS_PER_BATCH": batch,
            "BASE_BATCH_SIZE": batch,
            "BASE_LR": float(f"{lr:g}"),
            "WARMUP_ITERS": min(steps // 10, 1000),
            "MAX_ITER": steps,
            "STEPS": [steps * 7 // 10, steps * 9 // 10],
            "CHECKPOINT_PERIOD": max(steps // 10, 1),
        },
        **({"TEST": {"EVAL_PERIOD": max(steps // 10, 1)}} if test else {}),
        "OUTPUT_DIR": str(folder / "output"),
    }
    for key, value in overrides.items():
        *groups, last = key.split(".")
        reduce(lambda node, group: node.setdefault(group, {}), groups, content)[last] = value
    counts = ", ".join(f"{len(content['images'])} {split}" for split, content in parts.items())
    solver = content["SOLVER"]
    epochs = solver["MAX_ITER"] * solver["IMS_PER_BATCH"] / len(train["images"])
    header = f"# Written by retinanet convert-dataset: {counts} images; {epochs:.0f} epochs.\n"
    return header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def overridden(cfg: CfgNode, opts: Sequence[str]) -> dict[str, Any]:
    """Returns the values that ``cfg`` has for the keys of ``opts`` (KEY VALUE ...), for YAML."""
    values = {key: reduce(getattr, key.split("."), cfg) for key in opts[::2]}
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    """Returns a value with lists for tuples and dicts for config nodes, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    return value
