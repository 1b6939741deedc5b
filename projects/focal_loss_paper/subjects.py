"""How long models take for a picture, and how accurate they are: figure 2 of the paper.

A model is timed as ``--eval-only`` runs it, one picture at a time: from the resized picture in the
CPU's memory to its detections. Reading and resizing pictures is no part of it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from torch import nn

from retinanet_plugin.acceleration.accelerate import speed_up_inference
from retinanet_plugin.config import get_config
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.checkpoint import local_file
from retinanet_plugin.errors import UserError
from retinanet_plugin.evaluation.metrics import METRICS, last_metrics, read_lines, short_names
from retinanet_plugin.runtimes.network import is_exported, load_network
from retinanet_plugin.tools.benchmark.models import imitate_training

from .tables import TABLES, Row, find_config

# Random weights are adapted to so many pictures, to the middle of so many pixels of each.
_CALIBRATE, _CROP = 8, 320
_PRETRAINED = "ImageNetPretrained"  # in the names of weights of a backbone alone

Picture = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model that is to be measured.

    Args:
        given: what a person called it.
        name: shorter.
        cfg: of the model; ``MODEL.WEIGHTS`` is empty for random weights.
        metrics: in percent, of its last evaluation; None where that is not known.
        row: of the paper that the config repeats.
    """

    given: str
    name: str
    cfg: CfgNode
    metrics: Mapping[str, float] | None = None
    row: Row | None = None

    @property
    def dataset(self) -> str:
        """What it is evaluated and timed on."""
        return str(self.cfg.DATASETS.TEST[0]) if self.cfg.DATASETS.TEST else ""

    @property
    def backbone(self) -> str:
        """For people."""
        resnets, name = self.cfg.MODEL.RESNETS, self.cfg.MODEL.BACKBONE.NAME
        if "resnet" not in name:
            return str(name)
        if resnets.NUM_GROUPS > 1:
            return f"ResNeXt-{resnets.DEPTH}-{resnets.NUM_GROUPS}x{resnets.WIDTH_PER_GROUP}d"
        return f"ResNet-{resnets.DEPTH}"


def read_subject(word: str, overrides: Sequence[str] = ()) -> Subject:
    """The model that a person names: a config, ``CONFIG=WEIGHTS``, or the folder of a run.

    WEIGHTS may be an exported file. Of a config, ``MODEL.WEIGHTS`` are taken unless they are a
    backbone's; of a run ``model_final.pth`` or its newest checkpoint, and the AP in
    ``metrics.json`` unless overrides change what is evaluated.

    Raises:
        UserError: where there is no such thing.
    """
    folder = Path(word).expanduser()
    if folder.is_dir():
        return _read_run(folder, overrides)
    config, _, weights = (word, "", "") if folder.is_file() else word.partition("=")
    path = find_config(config)
    cfg = get_config(path, overrides)
    if weights:
        cfg.MODEL.WEIGHTS = weights
    elif _PRETRAINED in cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = ""
    if cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = local_file(cfg.MODEL.WEIGHTS)
        if is_exported(cfg.MODEL.WEIGHTS):
            cfg.TEST.DTYPE = "float32"  # its own is in the file
    name = f"{path.stem}={Path(weights).name}" if weights else path.stem
    return Subject(word, name, cfg, row=_row_of(path))


def _read_run(folder: Path, overrides: Sequence[str]) -> Subject:
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(
            f"{folder}: has no config.yaml, so no run has left it; give the OUTPUT_DIR of a run, a "
            "config, or CONFIG=WEIGHTS."
        )
    cfg = get_config(config, overrides)
    weights = folder / "model_final.pth"
    if not weights.is_file():
        (name,) = read_lines(folder / "last_checkpoint")[:1] or [weights.name]
        weights = folder / name.strip()
    if not weights.is_file():
        raise UserError(
            f"{folder}: has no {weights.name}; wait for the run's first checkpoint, or give "
            f"{config} to time it with random weights."
        )
    if "MODEL.WEIGHTS" in overrides:
        raise UserError(
            f"MODEL.WEIGHTS: given beside {folder}, whose own weights are timed; give "
            f"{config}=WEIGHTS for others."
        )
    cfg.MODEL.WEIGHTS = str(weights)
    metrics = None
    if _what_is_evaluated(cfg) == _what_is_evaluated(get_config(config)):
        number = weights.stem.removeprefix("model_")
        steps = int(number) + 1 if number.isdecimal() else cfg.SOLVER.MAX_ITER
        known = last_metrics(folder / "metrics.json", cfg.DATASETS.TEST, steps)
        metrics = {key: known[key] for key in METRICS if key in known} if known else None
    return Subject(str(folder), folder.resolve().name, cfg, metrics)


def _what_is_evaluated(cfg: CfgNode) -> tuple[Any, ...]:
    return cfg.INPUT, cfg.TEST, cfg.MODEL.RETINANET, cfg.MODEL.ANCHOR_GENERATOR, cfg.DATASETS.TEST


def _in_percent(metrics: Mapping[str, float | None]) -> dict[str, float]:
    known = {key: value for key, value in metrics.items() if value is not None}
    return {key: 0.0 if math.isnan(value) else value for key, value in known.items()}


def _row_of(path: Path) -> Row | None:
    """The paper's row whose shipped config this is, in the table that has times."""
    for row in TABLES["e_speed"].rows:
        if find_config(row.config).resolve() == path.resolve():
            return row
    return None


def with_unique_names(subjects: Sequence[Subject]) -> list[Subject]:
    """Where some have the same name, more of their paths is added, and if need be a number."""
    names = [subject.name for subject in subjects]
    longer = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [i for i, other in enumerate(names) if other == name]
        paths = [Path(subjects[i].given) for i in alike]
        for i, short in zip(alike, short_names(paths), strict=True):
            longer[i] = short
    for i in range(len(subjects)):
        again = f" ({longer[:i].count(longer[i]) + 1})" if longer[i] in longer[:i] else ""
        names[i] = longer[i] + again
    return [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]


# ---------------------------------------------------------------- models


def build_subject(subject: Subject, pictures: Sequence[Picture]) -> Any:
    """The model as ``--eval-only`` runs it, in eval mode, or the exported file that is its weights.

    Random weights are made to behave as trained ones, where the head is as detectron2's, so that
    as many scores are above the threshold, and NMS has its usual work.
    """
    cfg = subject.cfg
    if cfg.MODEL.WEIGHTS:
        return load_network(cfg)[0]
    model: nn.Module = Trainer.build_model(cfg)
    crops = [_middle(picture) for picture in pictures[:_CALIBRATE]]
    model.load_state_dict(_weights_like_trained(cfg, crops))
    speed_up_inference(model, cfg)
    return model.eval()


def _middle(picture: Picture) -> Picture:
    """At most so large that 8 of them cost no more than a picture."""
    height, width = picture["image"].shape[-2:]
    top, left = max(height - _CROP, 0) // 2, max(width - _CROP, 0) // 2
    image = picture["image"][:, top : top + _CROP, left : left + _CROP]
    return {"image": image, "height": image.shape[1], "width": image.shape[2]}


def _weights_like_trained(cfg: CfgNode, pictures: Sequence[Picture]) -> dict[str, Any]:
    torch.manual_seed(0)
    model: Any = build_model(cfg)

    def predict() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        levels = model.backbone(model.preprocess_image(pictures).tensor)
        logits, deltas = model.head([levels[name] for name in model.head_in_features])
        return logits, deltas

    if hasattr(model, "head") and hasattr(model.head, "cls_score"):
        imitate_training(model, model.head.cls_score, model.head.bbox_pred, predict, cfg)
    state: dict[str, Any] = model.state_dict()
    return state


def evaluate(subject: Subject, model: Any, folder: Path) -> dict[str, float]:
    """AP, AP50 and AP75 in percent; files of the evaluation go into ``folder``."""
    cfg = subject.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST = (subject.dataset,)
    results = flatten_results_dict(Trainer.test(cfg, model))
    return _in_percent({key: results.get(f"bbox/{key}") for key in METRICS})


# ---------------------------------------------------------------- time


@dataclass(frozen=True)
class Measured:
    """What is known of a model.

    Args:
        pictures: what it was timed on, a data set's name or "noise".
        shape: height and width of the pictures that the network got, the median of each.
        times: seconds of each run.
        metrics_from: "metrics.json", "evaluation", or "" where there are none.
    """

    subject: Subject
    pictures: str
    shape: tuple[int, int]
    times: Sequence[float]
    metrics: Mapping[str, float] | None
    metrics_from: str

    def quantile(self, fraction: float) -> float:
        """Of the times, in milliseconds."""
        return float(np.quantile(self.times, fraction)) * 1000


def parse_size(word: str) -> tuple[int, int]:
    """Height and width of ``HxW``."""
    found = re.fullmatch(r"(\d+)x(\d+)", word)
    if found is None or min(map(int, found.groups())) < 32:
        raise UserError(
            f'--size: "{word}" given; give height x width in pixels, each at least 32, such as '
            "480x640."
        )
    return int(found[1]), int(found[2])
