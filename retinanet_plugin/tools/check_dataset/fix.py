"""A mended copy of data sets: what can be known is put right, the rest is left out and counted."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ...data.coco_entries import EXTRA_FIELDS, Entries, Row, box_faults, fill_in
from ...data.images import SIDEWAYS
from ...errors import UserError
from ...utils import output_files, write_text
from .boxes import is_crowd, same_boxes
from .check import Checked
from .entries import CheckedSet, Source
from .pictures import PictureFile, is_unturned


@dataclass(frozen=True)
class Mended:
    """What becomes of a set: the content of its JSON, and in words each change with its count."""

    source: Source
    content: Row
    changes: list[str]


def mend(checked: Checked) -> list[Mended]:
    """The content of mended copies of all sets.

    Raises:
        UserError: where nothing would be left of one.
    """
    classes = _shared_classes(checked.sets)
    return [_mend_set(one, checked, classes) for one in checked.sets]


def copies_of(sources: Sequence[Source], folder: Path, *, overwrite: bool) -> list[Path]:
    """Where the mended copies go: into ``folder``, which is made, under their own names.

    Raises:
        UserError: where a file is there already, unless it is to be replaced and no original.
    """
    names: list[str] = []
    for source in sources:
        stem = source.file.name.removesuffix(".json")
        names.append(next(n for n in _numbered(stem) if n not in names))
    for path in (folder / name for name in names):
        for source in sources:
            if path.exists() and source.file.exists() and path.samefile(source.file):
                raise UserError(
                    f"--fix: {path} is one of the files to be checked, and originals are never "
                    "replaced; give another folder."
                )
    return output_files(folder, names, overwrite=overwrite, option="--fix")


def _numbered(stem: str) -> Iterator[str]:
    yield f"{stem}.json"
    yield from (f"{stem}_{i}.json" for i in count(2))


def write_mended(mended: Sequence[Mended], copies: Sequence[Path]) -> str:
    """Writes the copies; returns what was changed and how to use them, for people."""
    lines, keys = [], []
    for one, path in zip(mended, copies, strict=True):
        write_text(path, json.dumps(one.content))
        lines.append(f"\n{path}, from {one.source.file}:")
        lines += [f"  {change}" for change in one.changes or ["nothing to mend: a plain copy"]]
        split = "TRAIN" if one.source.training else "TEST"
        paths = {"JSON": path, "IMAGES": one.source.folder}
        keys += [
            f"DATASETS.OWN.{split}_{key} {shlex.quote(str(value.absolute()))}"
            for key, value in paths.items()
        ]
    return "\n".join([*lines, "", "to train with it, add", *(f"  {key}" for key in keys)])


def _shared_classes(sets: Sequence[CheckedSet]) -> dict[str, Row]:
    """By name the categories of all sets, those of the first with their ids."""
    shared: dict[str, Row] = {}
    taken: set[int] = set()
    for one in sets:
        for number, name in one.categories.items():
            if name in shared:
                continue
            new = number if number not in taken else max(taken) + 1
            taken.add(new)
            rows = one.objects("categories")
            row = next(r for r in rows if (r.get("id"), r.get("name")) == (number, name))
            shared[name] = {**row, "id": new}
    return shared


def _mend_set(one: CheckedSet, checked: Checked, classes: dict[str, Row]) -> Mended:
    if one.content is None:
        raise UserError(f"--fix: {one.findings[0].file}: {one.findings[0].text}.")
    changes = Counter[str]()
    images = _mend_images(one, checked, changes)
    rows = _mend_annotations(one, checked, images, classes, changes)
    rows = _mend_boxes(rows, images, changes)
    lacking = [
        what
        for what, there in (
            ("picture", images),
            ("class", classes),
            ("box", not one.source.training or not all(map(is_crowd, rows))),
        )
        if not there
    ]
    if lacking:
        raise UserError(
            f"--fix: no usable {lacking[0]} would be left in a copy of {one.source.file} "
            f"({', '.join(_counted(changes)) or 'it has none'}); mend or replace the file."
        )
    changed = {number for number, name in one.categories.items() if classes[name]["id"] != number}
    changes["classes renumbered or joined"] = len(changed)
    changes["classes added from the other set"] = len(classes.keys() - {*one.categories.values()})
    changes["entries of categories dropped"] = _length(one, "categories") - len(one.categories)
    told = fill_in(Entries(one.source.file, "annotations", rows))
    content = {
        **one.content,
        "info": one.content["info"] if isinstance(one.content.get("info"), dict) else {},
        "images": list(images.values()),
        "annotations": rows,
        "categories": list(classes.values()),
    }
    return Mended(one.source, content, _counted(changes) + told)


def _mend_images(one: CheckedSet, checked: Checked, changes: Counter[str]) -> dict[int, Row]:
    """The entries that stay, with the sizes of their files."""
    changes["entries of images dropped, malformed or with an id that is taken"] = _length(
        one, "images"
    ) - len(one.images)
    leaked = {number for other, number in checked.leaked if other is one}
    images = {}
    for number, row in one.images.items():
        file = checked.files[one.source.folder, row["file_name"]]
        if file.kind:
            changes[f"entries dropped: {file.kind}"] += 1
        elif number in leaked:
            changes["pictures dropped from training, as they are tested on"] += 1
        else:
            width, height = file.size
            changes["sizes taken from the picture"] += one.size_of(row) != file.size
            images[number] = {**row, "width": width, "height": height}
    return images


def _mend_annotations(
    one: CheckedSet,
    checked: Checked,
    images: dict[int, Row],
    classes: dict[str, Row],
    changes: Counter[str],
) -> list[Row]:
    """Copies of the annotations that can be used, of the images that stay, in their classes."""
    told = Counter(finding.kind for finding in one.findings)
    dropped = _length(one, "annotations") - len(one.annotations)
    for kind in ("box not finite", "undeclared class", "unknown picture"):
        changes[f"boxes dropped: {kind}"] = told[kind]
        dropped -= told[kind]
    changes["boxes dropped: malformed, or of an entry that is"] = dropped
    rows = []
    for row in one.annotations.values():
        if row["image_id"] not in images:
            changes["boxes dropped with their pictures"] += 1
            continue
        row = {**row, "category_id": classes[one.categories[row["category_id"]]]["id"]}
        for rule in EXTRA_FIELDS:
            if not rule.fits(row):
                del row[rule.key]  # filled in later
        if row.get("ignore", 0) != 0:
            changes["ignore flags turned into iscrowd"] += 1
            row["iscrowd"] = 1
        row.pop("ignore", None)
        image = one.images[row["image_id"]]
        file = checked.files[one.source.folder, image["file_name"]]
        if is_unturned(file, one.size_of(image)):
            changes["boxes turned as EXIF turns their pictures"] += 1
            row["bbox"] = turned(row["bbox"], file)
            for key in ("segmentation", "keypoints"):
                row.pop(key, None)
        rows.append(row)
    return rows


def turned(box: Sequence[float], file: PictureFile) -> list[float]:
    """A box of the picture as stored, XYWH, as one of the picture that EXIF's orientation makes."""
    x, y, width, height = box
    right, below = file.stored[0] - x - width, file.stored[1] - y - height
    assert file.orientation in SIDEWAYS
    left, top = {5: (y, x), 6: (below, x), 7: (below, right), 8: (y, right)}[file.orientation]
    return [left, top, height, width]


def _mend_boxes(rows: list[Row], images: dict[int, Row], changes: Counter[str]) -> list[Row]:
    """Those that are neither empty nor repeated, clipped to their pictures."""
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    sizes = [[images[row["image_id"]][side] for side in ("width", "height")] for row in rows]
    limit = np.array(sizes, dtype=np.float64).reshape(-1, 2)
    empty, outside, gone, inner = box_faults(boxes, limit)
    changes["boxes dropped: empty"] = int(empty.sum())
    changes["boxes dropped: outside their picture"] = int((gone & ~empty).sum())
    changes["boxes clipped to their picture"] = int((outside & ~gone).sum())
    for i in np.flatnonzero(outside & ~gone):
        rows[i].update(bbox=inner[i].tolist(), area=None)  # filled in later
    single = [i for i in np.flatnonzero(~gone) if not is_crowd(rows[i])]
    repeats = {single[i] for i, *_ in same_boxes([rows[i] for i in single], inner[single])}
    changes["boxes dropped: there twice"] = len(repeats)
    return [row for i, row in enumerate(rows) if not gone[i] and i not in repeats]


def _length(one: CheckedSet, name: str) -> int:
    rows: Any = (one.content or {}).get(name)
    return len(rows) if isinstance(rows, list) else 0


def _counted(changes: Counter[str]) -> list[str]:
    return [f"{what}: {count}" for what, count in changes.items() if count]
