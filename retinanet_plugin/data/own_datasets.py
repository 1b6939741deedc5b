"""A user's own COCO JSON and image folder as detectron2 datasets, by the DATASETS.OWN keys.

:func:`register_own_datasets` checks them and registers ``own_train`` and ``own_test``;
:func:`check_registered_datasets` checks that the datasets that a config then names, own,
built-in or other, are registered, on disk, and have as many classes as the model.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..errors import UserError, did_you_mean
from ..utils import shorten, write_text
from .coco_fields import show
from .coco_json import raise_first_error, read_coco
from .coco_rules import CocoDataset
from .image_rules import check_image_files
from .images import names_in

OWN_TRAIN = "own_train"
OWN_TEST = "own_test"
FROM_DATA = -1  # MODEL.RETINANET.NUM_CLASSES: as many as the dataset declares
_PATHS = ("json_file", "image_root", "dirname", "image_dir")  # metadata of detectron2's datasets

logger = logging.getLogger(__name__)


def register_own_datasets(cfg: CfgNode, *, training: bool = True) -> None:
    """Checks and registers the datasets that DATASETS.OWN names, and enters them in ``cfg``.

    DATASETS.TRAIN and DATASETS.TEST become ``own_train`` and ``own_test`` where their JSON is
    given. With or without own data, a MODEL.RETINANET.NUM_CLASSES of -1 becomes the number of
    classes of the dataset. ``cfg`` may be frozen, and stays so. A second call registers anew. If
    a JSON lacks what can be derived, a completed copy in OUTPUT_DIR/datasets is used instead.

    Args:
        training: whether the training set will be used; otherwise it is not even read.

    Raises:
        UserError: for the first error in keys, files and images; nothing is registered then.
    """
    if names_own_datasets(cfg):
        _register(cfg, list(find_own_datasets(cfg, training)), training)
    if cfg.MODEL.RETINANET.NUM_CLASSES == FROM_DATA:
        for key, name in named_datasets(cfg, training):
            classes = _classes_of(key, name)
            if classes:
                return _set(cfg.MODEL.RETINANET, NUM_CLASSES=len(classes))
        raise UserError(
            "MODEL.RETINANET.NUM_CLASSES: -1 takes the number from the data, but no dataset in "
            "DATASETS declares classes; give the number."
        )


def check_registered_datasets(
    cfg: CfgNode, *, training: bool = True, num_classes: bool = True
) -> None:
    """Checks that the datasets of a config are registered, on disk, and have NUM_CLASSES classes.

    Args:
        training: whether DATASETS.TRAIN will be used; otherwise only DATASETS.TEST is checked.
        num_classes: whether MODEL.RETINANET.NUM_CLASSES must agree with the datasets.

    Raises:
        UserError: for the first dataset that is not.
    """
    split = "TRAIN" if training else "TEST"
    if not cfg.DATASETS[split]:
        raise UserError(
            f"DATASETS.{split}: no dataset given; give the name of a registered one, or your own "
            f"in DATASETS.OWN.{split}_JSON and DATASETS.OWN.{split}_IMAGES."
        )
    for key, name in named_datasets(cfg, training):
        classes = _classes_of(key, name)
        if num_classes and classes is not None:
            _compare_num_classes(cfg, f'{key} "{name}"', classes)


# ---------------------------------------------------------------- own datasets


@dataclass(frozen=True)
class CocoFiles:
    """Where a dataset is: its COCO JSON and the folder of its images."""

    name: str  # in detectron2's catalogs
    json_file: Path
    images: Path
    training: bool  # whether it is trained on, otherwise tested on


def names_own_datasets(cfg: CfgNode) -> bool:
    """Whether any of the DATASETS.OWN keys for files and folders is set."""
    own = cfg.DATASETS.OWN
    return bool(own.TRAIN_JSON or own.TEST_JSON or own.TRAIN_IMAGES or own.TEST_IMAGES)


def find_own_datasets(cfg: CfgNode, training: bool = True) -> Iterator[CocoFiles]:
    """Yields the training and the test set that DATASETS.OWN names.

    Raises:
        UserError: if a key is wrong or its file does not exist.
    """
    own = cfg.DATASETS.OWN
    if not (own.TRAIN_JSON or own.TEST_JSON):
        raise UserError(
            "DATASETS.OWN: an image folder is given but no JSON; set DATASETS.OWN.TRAIN_JSON, "
            "DATASETS.OWN.TEST_JSON or both."
        )
    for name, split in ((OWN_TRAIN, "TRAIN"), (OWN_TEST, "TEST")):
        json_key, images_key = f"{split}_JSON", f"{split}_IMAGES"
        if not own[json_key] or (split == "TRAIN" and not training):
            continue
        images_key = images_key if own[images_key] else "TRAIN_IMAGES"
        if not own[images_key]:
            raise UserError(
                f"DATASETS.OWN.{split}_IMAGES: not set, but DATASETS.OWN.{json_key} is; give the "
                'image folder, "." for DATASETS.OWN.ROOT itself.'
            )
        json_file, images = _existing(own, json_key, "file"), _existing(own, images_key, "folder")
        yield CocoFiles(name, json_file, images, name == OWN_TRAIN)


def _existing(own: CfgNode, key: str, kind: str) -> Path:
    """The absolute path of an existing file or folder that a key gives relative to ROOT."""
    root, given = os.path.expanduser(own.ROOT), own[key]
    path = Path(os.path.abspath(os.path.join(root, os.path.expanduser(given))))
    if path.is_dir() if kind == "folder" else path.is_file():
        return path
    raise UserError(
        f'DATASETS.OWN.{key}: "{given}" is no {kind} in {path.parent}'
        f"{did_you_mean(path.name, names_in(path.parent))}; correct it, or DATASETS.OWN.ROOT "
        f'("{own.ROOT}").'
    )


def _register(cfg: CfgNode, own_datasets: list[CocoFiles], training: bool) -> None:
    names = {own.name for own in own_datasets}
    if OWN_TEST not in names and not training:
        raise UserError(
            "DATASETS.OWN.TEST_JSON: not set, so there is nothing to evaluate on; give a COCO JSON."
        )
    try:
        bad_boxes = cfg.DATASETS.OWN.BAD_BOXES
        read = [
            read_coco(own.json_file, for_training=own.training, bad_boxes=bad_boxes)
            for own in own_datasets
        ]
        for own, coco in zip(own_datasets, read, strict=True):
            raise_first_error(coco.compare_classes(read[0]))
            check_image_files(coco, own.images)
    except UserError as error:
        raise UserError(
            f"{error} `retinanet check-dataset` lists all errors, and --fix writes fixed copies."
        ) from None
    _compare_num_classes(cfg, str(read[0].file), list(read[0].classes.values()))
    used = [_file_to_use(cfg, own, coco) for own, coco in zip(own_datasets, read, strict=True)]
    for own, coco, json_file in zip(own_datasets, read, used, strict=True):
        _enter_in_catalogs(own, coco, json_file)
    if cfg.MODEL.RETINANET.NUM_CLASSES == FROM_DATA:
        _set(cfg.MODEL.RETINANET, NUM_CLASSES=len(read[0].classes))
    if OWN_TRAIN in names:
        _set(cfg.DATASETS, TRAIN=(OWN_TRAIN,))
    _set(cfg.DATASETS, TEST=(OWN_TEST,) if OWN_TEST in names else ())
    if OWN_TEST not in names:
        logger.warning("DATASETS.OWN.TEST_JSON is not set: nothing will be evaluated")


def _file_to_use(cfg: CfgNode, own: CocoFiles, coco: CocoDataset) -> Path:
    """The JSON itself if it is complete, otherwise a copy, which is written now."""
    if not coco.changes:
        return own.json_file
    copy = Path(cfg.OUTPUT_DIR).absolute() / "datasets" / f"{own.name}.json"
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_text(copy, json.dumps(coco.content))
    logger.info("%s: %s; using the copy %s", own.json_file, ", ".join(coco.changes), copy)
    return copy


def _enter_in_catalogs(own: CocoFiles, coco: CocoDataset, json_file: Path) -> None:
    classes = list(coco.classes.values())
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(own.name, None)  # metadata cannot be set to another value
    load = partial(load_coco_json, str(json_file), str(own.images), own.name)
    DatasetCatalog.register(own.name, load)
    MetadataCatalog.get(own.name).set(
        json_file=str(json_file),
        image_root=str(own.images),
        evaluator_type="coco",
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id={number: i for i, number in enumerate(coco.classes)},
    )
    logger.info(
        "%s: %d images, %d boxes, %d classes (%s) from %s",
        *(own.name, len(coco.images), len(coco.annotations), len(classes)),
        *(shorten(map(show, classes), 10), own.json_file),
    )


# ---------------------------------------------------------------- any datasets


def named_datasets(cfg: CfgNode, training: bool = True) -> Iterator[tuple[str, str]]:
    """Yields key and name of each dataset in DATASETS.TRAIN, if ``training``, and TEST."""
    for split in ("TRAIN", "TEST") if training else ("TEST",):
        names = cfg.DATASETS[split]
        for name in (names,) if isinstance(names, str) else names:
            yield f"DATASETS.{split}", name


def _classes_of(key: str, name: str) -> list[str] | None:
    """Class names of a registered dataset; None if it declares none."""
    require_registered(key, name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # loaders of COCO JSONs set the classes
    classes: list[str] | None = metadata.get("thing_classes")
    return classes


def require_registered(key: str, name: str) -> None:
    """Raises UserError if no dataset of that name is registered, or its files do not exist."""
    if name not in DatasetCatalog:
        raise UserError(
            f'{key}: no dataset "{name}" is registered{did_you_mean(name, DatasetCatalog)}; '
            "your own data goes into DATASETS.OWN.TRAIN_JSON and TEST_JSON instead."
        )
    metadata = MetadataCatalog.get(name)
    for path in filter(None, map(metadata.get, _PATHS)):
        made_later = "://" in str(path) or metadata.get("drawn_on_demand")
        if not made_later and not os.path.exists(path):
            raise UserError(
                f'{key}: "{name}" needs {os.path.abspath(path)}, which does not exist; put it '
                "there, or set the environment variable DETECTRON2_DATASETS (now "
                f'"{os.getenv("DETECTRON2_DATASETS", "datasets")}") to the folder of detectron2\'s '
                "datasets."
            )


def _compare_num_classes(cfg: CfgNode, source: str, classes: list[str]) -> None:
    given = cfg.MODEL.RETINANET.NUM_CLASSES
    if given not in (FROM_DATA, len(classes)):
        raise UserError(
            f"MODEL.RETINANET.NUM_CLASSES: {given} given, but {source} has {len(classes)} classes "
            f"({shorten(map(show, classes), 10)}); set it to {len(classes)}, or to {FROM_DATA} to "
            "take the number from the data."
        )


def _set(node: CfgNode, **values: Any) -> None:
    """Sets keys of a config node, which may be frozen, and logs them."""
    frozen = node.is_frozen()
    node.defrost()
    for key, value in values.items():
        node[key] = value
        logger.info("%s is %s, from the data", key, value)
    if frozen:
        node.freeze()
