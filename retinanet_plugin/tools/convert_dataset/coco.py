"""Reads COCO JSON: one file, or one per split, and finds the folder of the images."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...data.coco_fields import Row, show
from ...data.coco_json import raise_first_error, read_coco
from ...data.coco_rules import CocoDataset
from ...data.images import names_in
from ...errors import UserError
from ...utils import shorten
from .files import absolute, files_below, folder_of, split_of
from .labeled import Collector, LabeledDataset, common_folder, ids_by_split

_KEYS = (b'"annotations"', b'"categories"', b'"images"')
_SAMPLE = 20  # images that are looked for to find their folder


def read_coco_dataset(path: Path, collector: Collector) -> LabeledDataset:
    """Reads a JSON, or all those in a folder; category ids are kept."""
    if collector.class_file is not None:
        raise UserError("--classes: not for COCO JSON, which declares its classes; leave it out.")
    folder = folder_of(path)
    bad_boxes = "fix" if collector.fix else "error"
    read = [
        read_coco(file, for_training=False, bad_boxes=bad_boxes, remedy="give --fix")
        for file in _find_files(path)
    ]
    collector.notes += [f"{coco.file}: {', '.join(coco.changes)}" for coco in read if coco.changes]
    rows: list[Row] = []
    annotations: list[Row] = []
    splits: list[tuple[int, str | None]] = []
    ids: dict[Path, int] = {}
    for coco in read:
        raise_first_error(coco.compare_classes(read[0]))
        split = split_of(coco.file.relative_to(folder))
        image_folder = collector.image_folder or _find_images(coco, split)
        new_ids: dict[int, int] = {}
        for row in tqdm(coco.content["images"], desc="reading", leave=False, disable=None):
            where = f"{coco.file}: image {show(row['file_name'])}"
            file = absolute(image_folder / row["file_name"].replace("\\", "/"))
            if collector.image(file, where, (row["width"], row["height"])) is None:
                continue
            if file in ids:
                raise UserError(f"{where}: listed twice; remove one of the entries.")
            new_ids[row["id"]] = ids[file] = row["id"] if len(read) == 1 else len(rows) + 1
            rows.append(row | {"id": ids[file]})
            splits.append((ids[file], split))
        kept = (row for row in coco.content["annotations"] if row["image_id"] in new_ids)
        annotations += [row | {"image_id": new_ids[row["image_id"]]} for row in kept]
    if len(read) > 1:
        annotations = [row | {"id": i} for i, row in enumerate(annotations, start=1)]
    root = common_folder(list(ids))
    for row, file in zip(rows, ids, strict=True):
        row["file_name"] = file.relative_to(root).as_posix()
    content = {**read[0].content, "images": rows, "annotations": annotations}
    return LabeledDataset(root, content, ids_by_split(splits), collector.all_notes())


def is_coco(file: Path) -> bool:
    """Whether a JSON has the keys of a detection dataset; it is not parsed."""
    raw = file.read_bytes()
    return all(key in raw for key in _KEYS)


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for file in files_below(path, {".json"}) if is_coco(file)]
    # COCO's own folder also has keypoints of the same images
    files = [file for file in files if "instances" in file.name] or files
    splits = [split_of(file.relative_to(path)) for file in files]
    if not files:
        raise UserError(f"{path}: no JSON with images, annotations, categories; correct the path.")
    if len(files) > 1 and (None in splits or len(set(splits)) < len(splits)):
        raise UserError(
            f"{path}: several COCO JSONs ({shorten(files)}) whose names do not tell train, val and "
            "test; give one of them."
        )
    return files


def _find_images(coco: CocoDataset, split: str | None) -> Path:
    """Returns the folder near a JSON that has most of a sample of its images."""
    rows = coco.content["images"]
    sample = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(int).tolist()
    names = [rows[i]["file_name"].replace("\\", "/") for i in sample]

    def num_present(folder: Path) -> int:
        return sum(os.path.isfile(folder / name) for name in names)

    best = max(_folders_near(coco.file, split), key=num_present)
    if not num_present(best):
        raise UserError(
            f"{coco.file}: no folder near it has its images, such as {show(names[0])}; name their "
            "folder by --images."
        )
    return best


def _folders_near(json_file: Path, split: str | None) -> Iterator[Path]:
    for base in (json_file.parent, json_file.parent.parent):
        yield base
        for name in names_in(base):
            below = base / name
            if below.is_dir() and split_of(Path(name)) in {None, split}:
                yield below
                yield from (below / x for x in names_in(below) if split_of(Path(x)) == split)
