"""Which datasets are checked: those of a config, or COCO JSONs given on the command line."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...data.coco_fields import Row
from ...data.images import names_in
from ...data.own_datasets import (
    OWN_TRAIN,
    find_own_datasets,
    named_datasets,
    names_own_datasets,
    require_registered,
)
from ...errors import UserError, did_you_mean


@dataclass(frozen=True)
class Source:
    """Where a dataset is.

    Args:
        name: shown to the user.
        file: the COCO JSON.
        folder: the image folder, which file names are relative to.
        training: whether it is trained on, otherwise tested on.
        content: the COCO dict of a dataset that is registered without a JSON.
    """

    name: str
    file: Path
    folder: Path
    training: bool
    content: Row | None = None


def sources_of_config(cfg: CfgNode) -> list[Source]:
    """The datasets of DATASETS.OWN, or else of DATASETS.TRAIN and DATASETS.TEST.

    Raises:
        UserError: if the config names none, or one that does not exist.
    """
    if names_own_datasets(cfg):
        return [
            Source(own.name, own.json_file, own.images, own.name == OWN_TRAIN)
            for own in find_own_datasets(cfg)
        ]
    sources = [_registered(key, name) for key, name in named_datasets(cfg)]
    if not sources:
        raise UserError(
            "DATASETS: no dataset given; set DATASETS.OWN.TRAIN_JSON and TRAIN_IMAGES or "
            "DATASETS.TRAIN, or use --json and --images."
        )
    return sources


def sources_of_files(files: Sequence[Path], folders: Sequence[Path]) -> list[Source]:
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
    folders = folders if len(folders) == len(files) else [folders[0]] * len(files)
    names: Iterator[str] = iter(["train", "val", *(f"val {i}" for i in range(2, len(files)))])
    return [
        Source(next(names), file, folder, i == 0)
        for i, (file, folder) in enumerate(zip(files, folders, strict=True))
    ]


def _registered(key: str, name: str) -> Source:
    require_registered(key, name)
    metadata, training = MetadataCatalog.get(name), key == "DATASETS.TRAIN"
    if metadata.get("drawn_on_demand"):
        DatasetCatalog.get(name)
    file, folder = metadata.get("json_file"), metadata.get("image_root")
    if metadata.get("evaluator_type") == "coco" and file and folder:
        return Source(name, Path(file), Path(folder), training)
    content, folder = _as_coco(DatasetCatalog.get(name), metadata.get("thing_classes"))
    return Source(name, Path(name), folder, training, content)


def _as_coco(entries: list[dict[str, Any]], classes: Sequence[str] | None) -> tuple[Row, Path]:
    """Converts detectron2's dataset dicts to a COCO dict and the image folder."""
    files = [Path(entry["file_name"]).absolute() for entry in entries]
    folder = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    images: list[Row] = []
    annotations: list[Row] = []
    for number, (entry, file) in enumerate(zip(entries, files, strict=True), start=1):
        size: Row = {side: entry[side] for side in ("width", "height") if side in entry}
        name = file.relative_to(folder).as_posix()
        images.append({"id": number, "file_name": name, **size})
        for annotation in entry.get("annotations", ()):
            box = [float(x) for x in annotation["bbox"]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(annotation["category_id"]),
                    "bbox": list(BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYWH_ABS)),
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
    known = classes or sorted({row["category_id"] for row in annotations})
    categories = [{"id": i, "name": str(name)} for i, name in enumerate(known)]
    return {"images": images, "annotations": annotations, "categories": categories}, folder
