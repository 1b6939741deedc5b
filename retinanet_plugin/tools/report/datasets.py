"""The datasets of a run, and what was detected on its test sets."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data import register_own_datasets
from ...data.own_datasets import OWN_TEST, OWN_TRAIN
from ...engine.trainer import inference_folder
from ...errors import UserError
from ...evaluation.matching import Matches, match


@dataclass(frozen=True)
class Dataset:
    """A dataset of a run.

    Args:
        missing: why it cannot be read, or None. The rest is empty then.
        files: paths of the images by id.
        boxes_by_class: without crowds, by class name.
    """

    name: str
    missing: str | None = None
    files: dict[Any, str] = field(default_factory=dict)
    boxes_by_class: dict[str, int] = field(default_factory=dict)


def load_datasets(cfg: CfgNode) -> tuple[list[Dataset], list[Dataset]]:
    """Loads the training sets and the test sets of a config; own datasets are registered."""
    names = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    failed = {}
    # The test set alone first: it is enough for most of the report.
    for training, own in ((False, OWN_TEST), (True, OWN_TRAIN)):
        try:
            register_own_datasets(cfg, training=training)
        except (UserError, OSError) as error:
            failed[own] = str(error)
    train, test = ([_load(name, failed.get(name)) for name in part] for part in names)
    return train, test


def _load(name: str, missing: str | None) -> Dataset:
    if missing:
        return Dataset(name, missing)
    try:
        entries = DatasetCatalog.get(name)
    except (UserError, OSError, ValueError, KeyError) as error:
        return Dataset(name, f"{name}: cannot be read ({error}).")
    classes = MetadataCatalog.get(name).get("thing_classes", [])
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
    folder = inference_folder(cfg, dataset.name)
    path = folder / "coco_instances_results.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; COCO's evaluator writes it with --eval-only.")
    # detectron2 writes a COCO JSON for datasets that have none.
    written = folder / f"{dataset.name}_coco_format.json"
    truth = Path(MetadataCatalog.get(dataset.name).get("json_file") or written)
    try:
        results = json.loads(path.read_text("utf-8"))
        return match(json.loads(truth.read_text("utf-8")), results)
    except (OSError, AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as detections on {truth} ({type(error).__name__}: {error}); "
            "evaluate again with --eval-only."
        ) from None
