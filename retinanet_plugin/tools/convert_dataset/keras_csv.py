"""CSV: a row an object, keras-retinanet's ``path,x1,y1,x2,y2,class``; ``path,,,,,`` has none.

Coordinates are pixels from the upper left corner, 0 first; paths are relative to the CSV. A first
row of names (path or filename, x1 or xmin ..., class or label) tells another order of columns.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ...data.coco_entries import shortened, show
from ...data.images import names_in
from ...errors import UserError
from .files import files_below, read_classes, rows_of, split_of
from .labelled import Box, Faults, LabelledSet, Options, Picture, assemble, found_picture, number

COLUMNS = ("path", "x1", "y1", "x2", "y2", "class")
_SYNONYMS = {
    **dict.fromkeys(("filename", "file_name", "file", "image", "image_path", "image_id"), "path"),
    **dict.fromkeys(("label", "class_name", "name"), "class"),
    "xmin": "x1",
    "ymin": "y1",
    "xmax": "x2",
    "ymax": "y2",
    "x_min": "x1",
    "y_min": "y1",
    "x_max": "x2",
    "y_max": "y2",
}


def read_csv(path: Path, options: Options) -> LabelledSet:
    """Reads a CSV, or those in a folder; class mappings among them are found by their two columns.

    Raises:
        UserError: for the first fault, with file and line.
    """
    files = list(files_below(path, {".csv"})) if path.is_dir() else [path]
    mappings = [file for file in files if path.is_dir() and is_mapping(file)]
    beside = [file.parent / name for file in files[:1] for name in names_in(file.parent)]
    mappings += [
        x for x in beside if x.suffix.lower() == ".csv" and x not in files and is_mapping(x)
    ]
    files = [file for file in files if file not in mappings]
    fitting = [file for file in files if has_columns(file)] or files
    notes = [f"passed over: {file}" for file in files if file not in fitting]
    if not fitting:
        raise UserError(f"{path}: holds no CSV of {','.join(COLUMNS)}; name the file")
    if len(mappings) > 1 and options.classes_file is None:
        raise UserError(
            f"{path}: several class mappings ({shortened(mappings)}); give one by --classes "
            "(classes=)"
        )
    source = options.classes_file or (mappings[0] if mappings else None)
    classes = None if source is None else read_classes(source)
    faults, pictures = Faults(options.fix), dict[Path, Picture]()
    left_out = set[Path]()
    folder = path if path.is_dir() else path.parent
    for file in fitting:
        split = split_of(file.relative_to(folder))
        rows = list(rows_of(file))
        columns, rows = _columns(file, rows)
        for line, row in options.track(rows):
            where = f"{file}, line {line}"
            cells = _cells(row, columns, where)
            picture_file = _find(cells["path"], options.images_folder or file.parent)
            if picture_file in left_out:
                continue
            picture = pictures.get(picture_file) or found_picture(
                picture_file, f"{where}: ", faults
            )
            if picture is None:
                left_out.add(picture_file)
                continue
            pictures[picture_file] = picture
            if split:
                picture.splits.add(split)
            picture.boxes += _box(cells, file, line)
    if source:
        notes.append(f"classes and their order from {source}")
    return assemble("csv", list(pictures.values()), classes, faults, notes)


def is_mapping(file: Path) -> bool:
    """Whether a CSV holds classes and their indices."""
    try:
        rows = [row for _, row in rows_of(file)]
    except UserError:
        return False
    return bool(rows) and all(len(row) == 2 and row[1].strip().isdecimal() for row in rows)


def has_columns(file: Path) -> bool:
    """Whether the first row of a CSV is one of boxes, or names their columns."""
    try:
        first = next((row for _, row in rows_of(file)), [])
    except UserError:
        return False
    return set(COLUMNS) <= set(_named(first)) or (
        len(first) == len(COLUMNS) and all(re.fullmatch(r"[-+.\deE\s]*", x) for x in first[1:5])
    )


def _named(row: Iterable[str]) -> list[str]:
    words = (cell.strip().lower() for cell in row)
    return [_SYNONYMS.get(word, word) for word in words]


def _columns(
    file: Path, rows: list[tuple[int, list[str]]]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the rows below them."""
    if not rows:
        raise UserError(f"{file}: the file is empty; write a row {','.join(COLUMNS)} an object")
    names = _named(rows[0][1])
    return (names, rows[1:]) if set(COLUMNS) <= set(names) else (list(COLUMNS), rows)


def _cells(row: list[str], columns: list[str], where: str) -> dict[str, str]:
    if len(row) != len(columns):
        raise UserError(
            f"{where}: {len(row)} cells in {show(','.join(row))}; give {len(columns)}, separated "
            f"by commas: {','.join(columns)}, or path,,,,, for a picture without objects"
        )
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    if not cells["path"]:
        raise UserError(f"{where}: no path of a picture; write it into the first cell")
    return cells


def _find(name: str, folder: Path) -> Path:
    path = Path(os.path.abspath(folder / name))
    return path if os.path.exists(path) else Path(os.path.abspath(folder / name.replace("\\", "/")))


def _box(cells: dict[str, str], file: Path, line: int) -> list[Box]:
    """The row's box, or none for a picture without objects."""
    given = [cells[name] for name in COLUMNS[1:]]
    if not any(given):
        return []
    where = f"{file}, line {line}"
    if not cells["class"]:
        raise UserError(f"{where}: a box without a class; name it in the last cell")
    x1, y1, x2, y2 = (number(cells[name], name, where) for name in COLUMNS[1:5])
    return [Box(cells["class"], (x1, y1, x2, y2), file, line)]
