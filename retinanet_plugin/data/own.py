"""A person's own COCO JSON and image folder as detectron2 data sets, by the DATASETS.OWN keys.

:func:`register_own_datasets` checks them and makes them ``own_train`` and ``own_test``;
:func:`check_datasets` looks at whichever data sets a config then names, own, built in or other.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..errors import UserError, did_you_mean
from .coco_entries import shortened, show
from .coco_json import BAD_BOXES, CocoJson, read_coco
from .images import check_pictures, names_in

OWN_TRAIN = "own_train"
OWN_TEST = "own_test"
FROM_DATA = -1  # MODEL.RETINANET.NUM_CLASSES: as many as the data set declares
_OTHER_FORMATS = {".xml": "Pascal VOC", ".csv": "CSV"} | dict.fromkeys(
    (".yaml", ".yml", ".txt"), "YOLO"
)
_CONVERT = "python -m retinanet_plugin.tools.convert_dataset.command"
_PATHS = ("json_file", "image_root", "dirname", "image_dir")  # in metadata of detectron2's sets

logger = logging.getLogger(__name__)


def register_own_datasets(cfg: CfgNode, *, training: bool = True) -> None:
    """Checks and registers what DATASETS.OWN names, and enters it in ``cfg``.

    DATASETS.TRAIN and DATASETS.TEST become ``own_train`` and ``own_test`` where their JSON is
    given. With or without own data, a MODEL.RETINANET.NUM_CLASSES of -1 becomes the data set's
    number. ``cfg`` may be frozen, and stays so. Calling again registers anew, as paths may differ.
    Where a JSON lacks what can be filled in, a copy in OUTPUT_DIR/datasets is used in its stead.

    Args:
        training: whether the training set will be used; else it is neither read nor registered.

    Raises:
        UserError: for each fault in keys, files and pictures; nothing is registered then.
    """
    own = cfg.DATASETS.OWN
    if own.TRAIN_JSON or own.TEST_JSON or own.TRAIN_IMAGES or own.TEST_IMAGES:
        _register(cfg, list(find_own_sets(cfg, training)), training)
    if cfg.MODEL.RETINANET.NUM_CLASSES == FROM_DATA:
        _resolve_num_classes(cfg, *_num_classes_of_first(cfg, training))


def check_datasets(cfg: CfgNode, *, training: bool = True) -> None:
    """Checks that the data sets a config names are registered, on disk, and of NUM_CLASSES classes.

    Args:
        training: whether DATASETS.TRAIN will be used; else only DATASETS.TEST is looked at.

    Raises:
        UserError: for the first that is not.
    """
    if training and not cfg.DATASETS.TRAIN:
        raise UserError(
            "DATASETS.TRAIN names no data set; name a registered one, or a COCO JSON of your own "
            "in DATASETS.OWN.TRAIN_JSON and its pictures in DATASETS.OWN.TRAIN_IMAGES"
        )
    if not training and not cfg.DATASETS.TEST:
        raise UserError(
            "DATASETS.TEST names no data set to evaluate on; name a registered one, or a COCO JSON "
            "of your own in DATASETS.OWN.TEST_JSON and its pictures in DATASETS.OWN.TEST_IMAGES"
        )
    for key, name in named_sets(cfg, training):
        classes = _classes_of(key, name)
        if classes is not None:
            _compare_num_classes(cfg, f'{key}: "{name}"', classes)


# ---------------------------------------------------------------- a person's own sets


@dataclass(frozen=True)
class OwnSet:
    """Where one own data set is, and the keys that said so."""

    name: str
    json_key: str
    json_file: Path
    images: Path
    copy: Path  # what is mended goes here


def find_own_sets(cfg: CfgNode, training: bool = True) -> Iterator[OwnSet]:
    """The training and the test set that DATASETS.OWN names; UserError where a key is wrong."""
    own = cfg.DATASETS.OWN
    if own.BAD_BOXES not in BAD_BOXES:
        raise UserError(
            f'DATASETS.OWN.BAD_BOXES: unknown value "{own.BAD_BOXES}"; '
            f"known: {', '.join(BAD_BOXES)}{did_you_mean(str(own.BAD_BOXES), BAD_BOXES)}"
        )
    if not (own.TRAIN_JSON or own.TEST_JSON):
        raise UserError(
            "DATASETS.OWN names an image folder but no JSON; set DATASETS.OWN.TRAIN_JSON, "
            "DATASETS.OWN.TEST_JSON or both"
        )
    for name, split in ((OWN_TRAIN, "TRAIN"), (OWN_TEST, "TEST")):
        json_key, images_key = f"{split}_JSON", f"{split}_IMAGES"
        if not own[json_key] or (split == "TRAIN" and not training):
            continue
        other = _OTHER_FORMATS.get(os.path.splitext(own[json_key])[1].lower())
        if other:
            raise UserError(
                f'DATASETS.OWN.{json_key} "{own[json_key]}": looks like {other}, but must be a '
                f"COCO JSON; {_CONVERT} INPUT OUT makes it from that, and a config"
            )
        if not own[images_key] and not own.TRAIN_IMAGES:
            raise UserError(
                f"DATASETS.OWN.{json_key} is set but DATASETS.OWN.{images_key} is not; name the "
                f'folder of the pictures, "." for DATASETS.OWN.ROOT itself'
            )
        images_key = images_key if own[images_key] else "TRAIN_IMAGES"
        yield OwnSet(
            name,
            f"DATASETS.OWN.{json_key}",
            _existing(own, json_key, folder=False),
            _existing(own, images_key, folder=True),
            Path(os.path.abspath(cfg.OUTPUT_DIR)) / "datasets" / f"{name}.json",
        )


def _existing(own: CfgNode, key: str, *, folder: bool) -> Path:
    """What a key names as an absolute path, which must be a folder or a file."""
    root, given = os.path.expanduser(own.ROOT), own[key]
    path = Path(os.path.abspath(os.path.join(root, os.path.expanduser(given))))
    if os.path.isdir(path) if folder else os.path.isfile(path):
        return path
    raise UserError(
        f'DATASETS.OWN.{key} "{given}": no {"folder" if folder else "file"} {path}'
        f"{did_you_mean(path.name, names_in(path.parent))}; correct it, or DATASETS.OWN.ROOT "
        f'("{own.ROOT}"), which it is relative to'
        f"{'' if folder else f' (VOC, YOLO and CSV become a COCO JSON by {_CONVERT})'}"
    )


def _register(cfg: CfgNode, own_sets: list[OwnSet], training: bool) -> None:
    names = {own.name for own in own_sets}
    if OWN_TEST not in names and not training:
        raise UserError(
            "DATASETS.OWN.TEST_JSON is not set, so there is nothing to evaluate on; set it to a "
            "COCO JSON"
        )
    with _hint_at_check_dataset():
        read = [
            read_coco(
                own.json_file,
                for_training=own.name == OWN_TRAIN,
                bad_boxes=cfg.DATASETS.OWN.BAD_BOXES,
            )
            for own in own_sets
        ]
        _require_same_classes(read)
    if read:
        source = f"{own_sets[0].json_key} {own_sets[0].json_file}"
        _compare_num_classes(cfg, source, list(read[0].classes.values()))
    with _hint_at_check_dataset():
        for own, coco in zip(own_sets, read, strict=True):
            check_pictures(coco.images, own.images)
    used = [_file_to_use(own, coco, own_sets) for own, coco in zip(own_sets, read, strict=True)]
    for own, coco, json_file in zip(own_sets, read, used, strict=True):
        _enter_in_catalogs(own, coco, json_file)
    with _thawed(cfg):
        if OWN_TRAIN in names:
            cfg.DATASETS.TRAIN = (OWN_TRAIN,)
        cfg.DATASETS.TEST = (OWN_TEST,) if OWN_TEST in names else ()
    if read:
        _resolve_num_classes(cfg, own_sets[0].name, len(read[0].classes))
    if OWN_TEST not in names:
        logger.warning("DATASETS.OWN.TEST_JSON is not set: nothing will be evaluated")


@contextmanager
def _hint_at_check_dataset() -> Iterator[None]:
    """Adds to the one fault that stops a run how all of them are found."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error}; python -m retinanet_plugin.tools.check_dataset.command lists all faults, and --fix "
            "mends a copy"
        ) from None


def _require_same_classes(read: list[CocoJson]) -> None:
    for coco in read[1:]:
        if coco.classes != read[0].classes:
            mine, others = coco.classes.items(), read[0].classes.items()
            raise UserError(
                f"{coco.path}: its categories differ from those of {read[0].path} (only here: "
                f"{_named(mine - others)}; only there: {_named(others - mine)}); declare the same "
                f"ids and names in both"
            )


def _named(categories: set[tuple[int, str]]) -> str:
    return shortened(f"{number} {show(name)}" for number, name in sorted(categories)) or "none"


def _file_to_use(own: OwnSet, coco: CocoJson, own_sets: list[OwnSet]) -> Path:
    """The JSON itself if nothing in it was mended, else the copy, which is written now."""
    if not coco.mended:
        return own.json_file
    if any(own.copy.resolve() == given.json_file.resolve() for given in own_sets):
        raise UserError(
            f"{own.copy}: is one of the files given, and the place for a mended copy of "
            f"{own.json_file}; set OUTPUT_DIR to another folder"
        )
    coco.write(own.copy)
    logger.info("%s: %s; used from the copy %s", own.json_file, ", ".join(coco.mended), own.copy)
    return own.copy


def _enter_in_catalogs(own: OwnSet, coco: CocoJson, json_file: Path) -> None:
    classes = list(coco.classes.values())
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(own.name, None)  # metadata once set refuse another value
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
        "%s: %d pictures, %d boxes, %d classes (%s) from %s",
        *(own.name, len(coco.images.rows), coco.num_boxes, len(classes)),
        *(shortened(map(show, classes)), own.json_file),
    )


# ---------------------------------------------------------------- any data sets


def named_sets(cfg: CfgNode, training: bool = True) -> Iterator[tuple[str, str]]:
    """The key and name of each data set that ``cfg`` names."""
    splits = {"DATASETS.TRAIN": cfg.DATASETS.TRAIN} if training else {}
    for key, names in {**splits, "DATASETS.TEST": cfg.DATASETS.TEST}.items():
        for name in (names,) if isinstance(names, str) else names:
            yield key, name


def _classes_of(key: str, name: str) -> list[str] | None:
    """Class names of a registered data set that is on disk; None where it has none."""
    require_registered(key, name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # loaders of COCO JSONs set them
    classes: list[str] | None = metadata.get("thing_classes")
    return classes


def require_registered(key: str, name: str) -> None:
    """Raises UserError where no data set of that name is registered, or its files are absent."""
    if name not in DatasetCatalog:
        raise UserError(
            f'{key}: no data set "{name}" is registered{did_you_mean(name, DatasetCatalog)}; '
            f"data of your own needs no name here but DATASETS.OWN.TRAIN_JSON and TEST_JSON"
        )
    metadata = MetadataCatalog.get(name)
    for attribute in _PATHS:
        path = metadata.get(attribute)
        made_later = "://" in str(path) or metadata.get("drawn_on_demand")
        if path and not made_later and not os.path.exists(path):
            raise UserError(
                f'{key}: "{name}" needs {os.path.abspath(path)}, which does not exist; '
                f"{_where_from(path)}"
            )


def _where_from(path: str) -> str:
    """What to do about a data set's absent file."""
    variable = os.getenv("DETECTRON2_DATASETS")
    root = os.path.expanduser(variable or "datasets")
    if not path.startswith(os.path.join(root, "")):
        return "put it there or register the set with the right path"
    value = f'is "{variable}"' if variable else 'is not set, which means "datasets"'
    return (
        f"put it there, or set the environment variable DETECTRON2_DATASETS, which {value}, "
        f"to the folder that holds detectron2's data sets"
    )


def _num_classes_of_first(cfg: CfgNode, training: bool) -> tuple[str, int]:
    """The first named data set that declares classes, and how many they are."""
    for key, name in named_sets(cfg, training):
        classes = _classes_of(key, name)
        if classes:
            return name, len(classes)
    raise UserError(
        "MODEL.RETINANET.NUM_CLASSES is -1, as many as the data set declares, but no data set in "
        "DATASETS declares classes; give the number"
    )


def _resolve_num_classes(cfg: CfgNode, name: str, num_classes: int) -> None:
    if cfg.MODEL.RETINANET.NUM_CLASSES == FROM_DATA:
        with _thawed(cfg):
            cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
        logger.info('MODEL.RETINANET.NUM_CLASSES is %d, as in "%s"', num_classes, name)


def _compare_num_classes(cfg: CfgNode, source: str, classes: list[str]) -> None:
    given = cfg.MODEL.RETINANET.NUM_CLASSES
    if given not in (FROM_DATA, len(classes)):
        raise UserError(
            f"MODEL.RETINANET.NUM_CLASSES is {given}, but {source} has {len(classes)} classes "
            f"({shortened(map(show, classes))}); set it to {len(classes)}, or to {FROM_DATA} to "
            f"take the number from the data"
        )


@contextmanager
def _thawed(cfg: CfgNode) -> Iterator[None]:
    """Makes a config writable for the block; frozen before, it is frozen after."""
    frozen = cfg.is_frozen()
    cfg.defrost()
    try:
        yield
    finally:
        if frozen:
            cfg.freeze()
