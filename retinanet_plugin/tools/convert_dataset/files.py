"""Files of a dataset: folders, texts, CSV rows, and class lists."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from ...config_file import load_yaml
from ...data.coco_fields import CLASS_NAME, show
from ...data.images import names_in
from ...errors import UserError, did_you_mean

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
YAML_SUFFIXES = (".yaml", ".yml")
SPLITS = ("train", "val", "test")
_MAX_TEXT = 64 * 1024**2  # bytes of an annotation file
_MAX_DEPTH = 6  # of folders
_SPLIT_WORDS = {
    **{split: split for split in SPLITS},
    "training": "train",
    "trainval": "train",
    "valid": "val",
    "validation": "val",
}


def files_below(folder: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Yields the files with one of the suffixes in any case, sorted, except hidden ones."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        depth = len(Path(parent).relative_to(folder).parts)
        folders[:] = sorted(
            x for x in folders if x[0] != "." and x != "__MACOSX" and depth < _MAX_DEPTH
        )
        for name in sorted(names):
            if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(parent, name)


def absolute(path: str | Path) -> Path:
    """Returns the absolute path without ``..``; links are not resolved."""
    return Path(os.path.abspath(path))


def folder_of(path: Path) -> Path:
    """Returns a folder, or that of a file; raises UserError if ``path`` does not exist."""
    if not path.exists():
        near = did_you_mean(path.name, names_in(path.parent))
        raise UserError(f"{path}: no such file or folder{near}; correct the path.")
    return path if path.is_dir() else path.parent


def split_of(path: PurePath) -> str | None:
    """Returns the split that a path names: ``valid/a.json`` and ``val2017`` are "val"."""
    for part in reversed(path.parts):
        words = re.findall("[a-z]+", part.lower())
        splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
        if len(splits) == 1:
            return splits.pop()
    return None


def read_text(file: Path) -> str:
    """Reads UTF-8 text; raises UserError if it is not UTF-8 or too large."""
    try:
        if file.stat().st_size > _MAX_TEXT:
            raise UserError(f"{file}: larger than {_MAX_TEXT} bytes; give an annotation file.")
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None


def csv_rows(file: Path) -> list[tuple[int, list[str]]]:
    """Reads the line number and the cells of each row that is not blank.

    The delimiter is a comma, semicolon or tab, whichever is the most frequent in the first row.
    """
    text = read_text(file)
    delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not valid CSV ({error}).") from None


def read_classes(file: Path) -> list[str]:
    """Reads class names in the order of their indices.

    Args:
        file: one name per line, a .csv with rows ``name,index``, or a .yaml with ``names``.
    """
    if file.suffix.lower() in YAML_SUFFIXES:
        names = _yaml_names(file, load_yaml(file).get("names"))
    elif file.suffix.lower() == ".csv":
        names = _csv_names(file)
    else:
        names = read_text(file).rstrip().splitlines()
    names = [str(name).strip() for name in names]
    if not names:
        raise UserError(f"{file}: no class names; write one per line.")
    for i, name in enumerate(names):
        if not CLASS_NAME.fits(row := {"name": name}):
            raise UserError(f"{file}: class {i}: {CLASS_NAME.fault(row)}.")
        if name in names[:i]:
            raise UserError(f"{file}: class {show(name)} is listed twice; names must be unique.")
    return names


def _yaml_names(file: Path, names: Any) -> list[Any]:
    if isinstance(names, dict):
        by_index = {str(index): name for index, name in names.items()}
        names = [by_index.get(str(i)) for i in range(len(by_index))]
        if None in names:
            raise UserError(f'{file}: the keys of "names" must be 0 to {len(names) - 1}.')
    if not isinstance(names, list) or any(isinstance(name, (list, dict)) for name in names):
        raise UserError(f'{file}: "names" must list the classes, as in names: [cat, dog].')
    return names


def _csv_names(file: Path) -> list[str]:
    names: dict[int, str] = {}
    for line, row in csv_rows(file):
        if not is_class_row(row) or int(row[1]) in names:
            raise UserError(
                f"{file}, line {line}: {show(','.join(row))}; give a name and an index of its own, "
                "as in cat,0."
            )
        names[int(row[1])] = row[0]
    return [name for _, name in sorted(names.items())]


def is_class_row(row: list[str]) -> bool:
    """Whether a CSV row is ``name,index``."""
    return len(row) == 2 and re.fullmatch(r"\s*\d{1,6}\s*", row[1]) is not None
