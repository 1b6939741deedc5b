"""The datasets of a run, and what was detected on its test sets."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data import check_datasets, register_own_datasets
from ...data.own_datasets import OWN_TEST, OWN_TRAIN
from ...engine.trainer import inference_folder
from ...errors import UserError
from ...evaluation.matching import Matches, match


@dataclass(frozen=True)
class Dataset:
    """A dataset of a run.

    Args:
        missing: why it cannot be read (any more), or None. The rest is empty then.
        files: paths of the images by id.
        boxes_by_class: without crowds, by class name.
    """

    name: str
    missing: str | None
    files: dict[Any, str]
    boxes_by_class: dict[str, int]


def load_datasets(cfg: CfgNode) -> tuple[list[Dataset], list[Dataset]]:
    """The training sets and the test sets of a config; own datasets are registered."""
    names = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    failed = _register_own(cfg)
    train, test = ([_load(cfg, name, failed) for name in part] for part in names)
    return train, test


def _register_own(cfg: CfgNode) -> dict[str, str]:
    """Registers own datasets, if need be the test set alone; says why not, by name."""
    try:
        register_own_datasets(cfg)
        return {}
    except (UserError, OSError) as error:
        reason = str(error)
    try:
        register_own_datasets(cfg, training=False)
        return {OWN_TRAIN: reason}
    except (UserError, OSError):
        return {OWN_TRAIN: reason, OWN_TEST: reason}


def _load(cfg: CfgNode, name: str, failed: dict[str, str]) -> Dataset:
    if name in failed:
        return Dataset(name, failed[name], {}, {})
    only = cfg.clone()
    only.defrost()
    only.DATASETS.TEST = (name,)
    try:
        check_datasets(only, training=False)
        metadata = MetadataCatalog.get(name)
        if metadata.get("drawn_on_demand") and not Path(metadata.json_file).is_file():
            raise UserError(f"{metadata.json_file}: no such file, so no dataset {name}.")
        entries = DatasetCatalog.get(name)
    except (UserError, OSError, ValueError, KeyError) as error:
        return Dataset(name, str(error), {}, {})
    classes = list(metadata.get("thing_classes") or ())
    labels = [
        annotation["category_id"]
        for entry in entries
        for annotation in entry.get("annotations", ())
        if not annotation.get("iscrowd")
    ]
    counts = np.bincount(np.array(labels, int), minlength=len(classes)).tolist()
    files = {entry["image_id"]: str(entry["file_name"]) for entry in entries}
    return Dataset(name, None, files, dict(zip(classes, counts, strict=False)))


def match_detections(cfg: CfgNode, dataset: Dataset) -> Matches:
    """Matches the detections of the last evaluation on a test set with its ground truth.

    Raises:
        UserError: if either cannot be read, or they do not belong together.
    """
    if dataset.missing:
        raise UserError(dataset.missing)
    folder, metadata = inference_folder(cfg, dataset.name), MetadataCatalog.get(dataset.name)
    path = folder / "coco_instances_results.json"
    evaluator = metadata.get("evaluator_type", "coco")
    if not path.is_file():
        if evaluator in ("coco", "coco_panoptic_seg"):
            raise UserError(f"{path}: no such file; evaluate with --eval-only to write it.")
        raise UserError(f"{dataset.name}: its evaluator ({evaluator}) writes no detections.")
    # detectron2 writes a COCO JSON for datasets that have none.
    written = folder / f"{dataset.name}_coco_format.json"
    truth = Path(metadata.get("json_file") or written)
    try:
        results = json.loads(path.read_text("utf-8"))
        if not isinstance(results, list):
            raise ValueError("not a list")
        return match(json.loads(truth.read_text("utf-8")), results)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"{path}: cannot be read as detections on {truth} ({type(error).__name__}: {error}); "
            "evaluate again with --eval-only."
        ) from None
