"""Reads CSV: one row per object, keras-retinanet's ``path,x1,y1,x2,y2,class``.

Coordinates are pixels from the upper left corner, counted from 0; paths are relative to the CSV.
``path,,,,,`` is an image without objects. A header (path or filename, x1 or xmin, ..., class or
label) may change the order of the columns.
"""

import re
from pathlib import Path

from tqdm import tqdm

from ...data.coco_fields import show
from ...errors import UserError
from ...utils import shorten
from .files import absolute, csv_rows, files_below, folder_of, is_class_row, read_classes, split_of
from .labeled import Box, Collector, LabeledDataset, number

COLUMNS = ("path", "x1", "y1", "x2", "y2", "class")
_SYNONYMS = {
    **dict.fromkeys(("filename", "file_name", "file", "image", "image_path", "image_id"), "path"),
    **dict.fromkeys(("label", "class_name", "name"), "class"),
    **{f"{axis}{end}": f"{axis}1" for axis in "xy" for end in ("min", "_min")},
    **{f"{axis}{end}": f"{axis}2" for axis in "xy" for end in ("max", "_max")},
}


def read_csv(path: Path, collector: Collector) -> LabeledDataset:
    """Reads a CSV, or those in a folder; a ``name,index`` CSV fixes the order of the classes."""
    folder = folder_of(path)
    near = list(files_below(folder, {".csv"}))
    mappings = [file for file in near if file != path and is_class_row(_first_row(file))]
    files = [file for file in near if file not in mappings] if path.is_dir() else [path]
    boxes = [file for file in files if has_columns(file)] or files
    collector.notes += [f"skipped, not in this format: {x}" for x in files if x not in boxes]
    if not boxes:
        raise UserError(f"{path}: no CSV with {','.join(COLUMNS)}; correct the path.")
    if len(mappings) > 1 and collector.class_file is None:
        raise UserError(f"{path}: several lists of classes ({shorten(mappings)}); give --classes.")
    source = collector.class_file or next(iter(mappings), None)
    classes = None if source is None else read_classes(source)
    for file in boxes:
        _read_boxes(file, split_of(file.relative_to(folder)), collector)
    if source:
        collector.notes.append(f"classes and their order from {source}")
    return collector.dataset(classes)


def _read_boxes(file: Path, split: str | None, collector: Collector) -> None:
    rows = csv_rows(file)
    if not rows:
        raise UserError(f"{file}: the file is empty; write rows {','.join(COLUMNS)}.")
    columns: list[str] = list(COLUMNS)
    if set(COLUMNS) <= set(header := _standard_names(rows[0][1])):
        columns, rows = header, rows[1:]
    folder = collector.image_folder or file.parent
    for line, row in tqdm(rows, desc="reading", leave=False, disable=None):
        where = f"{file}, line {line}"
        if len(row) != len(columns):
            raise UserError(
                f"{where}: {len(row)} cells in {show(','.join(row))}; expected {len(columns)}: "
                f"{','.join(columns)}."
            )
        cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
        has_box = any(cells[name] for name in COLUMNS[1:])
        for name in ("path", "class") if has_box else ("path",):
            if not cells[name]:
                raise UserError(f"{where}: no {name}; fill in the cell.")
        image = collector.image(absolute(folder / cells["path"].replace("\\", "/")), where)
        if image is None:
            continue
        if split:
            image.splits.add(split)
        if has_box:
            x1, y1, x2, y2 = (number(cells[name], name, where) for name in COLUMNS[1:5])
            image.boxes.append(Box(cells["class"], (x1, y1, x2, y2), where))


def has_columns(file: Path) -> bool:
    """Whether the first row of a CSV is a box, or names the columns of boxes."""
    row = _first_row(file)
    return set(COLUMNS) <= set(_standard_names(row)) or (
        len(row) == len(COLUMNS) and all(re.fullmatch(r"[-+.\deE\s]*", x) for x in row[1:5])
    )


def _first_row(file: Path) -> list[str]:
    try:
        return next((row for _, row in csv_rows(file)), [])
    except UserError:
        return []


def _standard_names(row: list[str]) -> list[str]:
    names = [cell.strip().lower() for cell in row]
    return [_SYNONYMS.get(name, name) for name in names]
