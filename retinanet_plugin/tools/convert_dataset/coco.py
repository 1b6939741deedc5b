"""COCO JSON: one file, or one a split; pictures are looked for where people put them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...data.coco_entries import Row, shortened, show
from ...data.coco_json import CocoJson, read_coco
from ...data.images import names_in
from ...errors import UserError
from .files import files_below, split_of
from .labelled import Faults, LabelledSet, Options, Picture, common_folder, found_picture, in_order

_WORDS = (b'"annotations"', b'"categories"', b'"images"')
_SAMPLE = 20  # pictures by which a folder is found
_CHUNK = 1 << 22


def read_coco_set(path: Path, options: Options) -> LabelledSet:
    """Reads a JSON, or those of a folder that hold boxes; ids of categories stay as they are.

    Raises:
        UserError: for the first fault, with file and entry.
    """
    if options.classes_file is not None:
        raise UserError("--classes (classes=): a COCO JSON declares its own; leave it out")
    folder = path if path.is_dir() else path.parent
    files = _files(path)
    read = [_read(file, options.fix) for file in files]
    for coco in read[1:]:
        if coco.classes != read[0].classes:
            raise UserError(
                f"{coco.path}: its categories differ from those of {read[0].path}; declare the "
                "same ids and names in both"
            )
    faults = Faults(options.fix)
    notes = [f"{coco.path}: {', '.join(coco.mended)}" for coco in read if coco.mended]
    rows: list[Row] = []
    annotations: list[Row] = []
    files_of_rows: list[Path] = []
    splits: dict[str, list[int]] = {}
    ids_of_files: dict[Path, int] = {}
    for coco in read:
        split = split_of(coco.path.relative_to(folder))
        images = options.images_folder or _folder_of(coco, split)
        new_ids: dict[int, int] = {}
        for row in options.track(coco.images.rows):
            where = f"{coco.path}: picture {show(row['file_name'])}: "
            file = Path(os.path.abspath(images / row["file_name"].replace("\\", "/")))
            picture = found_picture(file, where, faults)
            if picture is None:
                continue
            _compare(row, picture, where)
            if file in ids_of_files:
                raise UserError(f"{where}listed twice (of all JSONs read); leave one of the two")
            new_ids[row["id"]] = ids_of_files[file] = row["id"] if len(read) == 1 else len(rows) + 1
            rows.append(row | {"id": ids_of_files[file]})
            files_of_rows.append(file)
            if split:
                splits.setdefault(split, []).append(ids_of_files[file])
        kept = (row for row in coco.content["annotations"] if row["image_id"] in new_ids)
        annotations += [row | {"image_id": new_ids[row["image_id"]]} for row in kept]
    notes += faults.settle()
    if not rows:
        raise UserError(f"{path}: no picture is left; name their folder by --images (images=)")
    if len(read) > 1:
        annotations = [row | {"id": i} for i, row in enumerate(annotations, start=1)]
    root = common_folder(files_of_rows)
    for row, file in zip(rows, files_of_rows, strict=True):
        row["file_name"] = file.relative_to(root).as_posix()
    content: dict[str, Any] = {**read[0].content, "images": rows, "annotations": annotations}
    return LabelledSet("coco", root, content, in_order(splits), tuple(notes))


def _read(file: Path, fix: bool) -> CocoJson:
    try:
        return read_coco(file, for_training=False, bad_boxes="fix" if fix else "error")
    except UserError as error:
        key = 'set DATASETS.OWN.BAD_BOXES to "fix"'
        raise UserError(str(error).replace(key, "give --fix (fix=True in Python)")) from None


def is_coco(file: Path) -> bool:
    """Whether a JSON names the three lists of a detection set; it is not parsed for that."""
    missing = set(_WORDS)
    try:
        with open(file, "rb") as stream:
            tail = b""
            while missing and (chunk := stream.read(_CHUNK)):
                missing = {word for word in missing if word not in tail + chunk}
                tail = chunk[-16:]
    except OSError:
        return False
    return not missing


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [file for file in files_below(path, {".json"}) if is_coco(file)]
    # COCO's own folder has its keypoints beside, the same pictures once more
    found = [file for file in found if "instances" in file.name] or found
    splits = [split_of(file.relative_to(path)) for file in found]
    if not found:
        raise UserError(f"{path}: holds no COCO JSON (images, annotations, categories); name it")
    if len(found) > 1 and (None in splits or len(set(splits)) < len(splits)):
        raise UserError(
            f"{path}: holds several COCO JSONs ({shortened(found)}) whose names do not tell train, "
            "val and test apart; give one of them"
        )
    return found


def _folder_of(coco: CocoJson, split: str | None) -> Path:
    """The folder near a JSON that holds most of a sample of its pictures."""
    count = len(coco.images.rows)
    sample = np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int).tolist()
    names = [coco.images.rows[i]["file_name"].replace("\\", "/") for i in sample]

    def present(folder: Path) -> int:
        return sum(os.path.isfile(folder / name) for name in names)

    candidates = list(_candidates(coco.path, split))
    best = max(candidates, key=present)
    if not present(best):
        raise UserError(
            f"{coco.path}: its pictures, such as {show(names[0])}, are in none of the folders near "
            "by; name their folder by --images (images=)"
        )
    return best


def _candidates(json_file: Path, split: str | None) -> Iterator[Path]:
    for base in (json_file.parent, json_file.parent.parent):
        yield base
        for name in names_in(base):
            below = base / name
            if below.is_dir() and split_of(Path(name)) in {None, split}:
                yield below
                yield from (below / x for x in names_in(below) if split_of(Path(x)) == split)


def _compare(row: dict[str, Any], picture: Picture, where: str) -> None:
    if (row["width"], row["height"]) != picture.size:
        raise UserError(
            f"{where}width and height are {row['width']} x {row['height']}, but {picture.file} is "
            f"{picture.size[0]} x {picture.size[1]}, after its EXIF rotation if it has one; "
            "correct them, or the picture"
        )
