"""Which datasets are checked: those of a config, or COCO JSONs given on the command line."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data.images import names_in
from ...data.own_datasets import (
    CocoFiles,
    find_own_datasets,
    named_datasets,
    names_own_datasets,
    require_registered,
)
from ...errors import UserError, did_you_mean


def sources_of_config(cfg: CfgNode) -> list[CocoFiles]:
    """The datasets of DATASETS.OWN, or else of DATASETS.TRAIN and DATASETS.TEST.

    Raises:
        UserError: if the config names none, or one that does not exist or has no COCO JSON.
    """
    if names_own_datasets(cfg):
        return list(find_own_datasets(cfg))
    sources = [_registered(key, name) for key, name in named_datasets(cfg)]
    if not sources:
        raise UserError(
            "DATASETS: no dataset given; set DATASETS.OWN.TRAIN_JSON and TRAIN_IMAGES or "
            "DATASETS.TRAIN, or use --json and --images."
        )
    return sources


def sources_of_files(files: Sequence[Path], folders: Sequence[Path]) -> list[CocoFiles]:
    """The first JSON as the training set, others as test sets; one folder may serve all.

    Raises:
        UserError: if a file or folder does not exist.
    """
    if len(folders) not in (1, len(files)):
        raise UserError(
            f"--images: given {len(folders)} times for {len(files)} --json; give one for each "
            "--json, or one for all."
        )
    for option, paths in (("--json", files), ("--images", folders)):
        for path in paths:
            if not (path.is_file() if option == "--json" else path.is_dir()):
                near = did_you_mean(path.name, names_in(path.parent))
                raise UserError(f"{option}: {path} does not exist{near}; correct the path.")
    names = ["train", "val", *(f"val_{i}" for i in range(2, len(files)))]
    return [
        CocoFiles(names[i], file, folders[i % len(folders)], i == 0) for i, file in enumerate(files)
    ]


def _registered(key: str, name: str) -> CocoFiles:
    require_registered(key, name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("drawn_on_demand"):
        DatasetCatalog.get(name)
    file, folder = metadata.get("json_file"), metadata.get("image_root")
    if metadata.get("evaluator_type") != "coco" or not file or not folder:
        raise UserError(
            f'{key}: "{name}" has no COCO JSON to check; `retinanet convert-dataset` makes one.'
        )
    return CocoFiles(name, Path(file), Path(folder), key == "DATASETS.TRAIN")
