"""Where the files of a data set are: walking its folder, sizes of pictures, class lists, splits."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from ...config_file import load_yaml
from ...data.coco_entries import CLASS_NAME, show
from ...data.images import SIDEWAYS, names_in, open_picture, orientation_of, reason_of
from ...errors import UserError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
SPLITS = ("train", "val", "test")
MAX_TEXT = 64 * 1024**2  # bytes of one label file: far beyond any picture's labels
_MAX_DEPTH = 6
_SPLIT_WORDS = {"training": "train", "trainval": "train", "valid": "val", "validation": "val"} | {
    split: split for split in SPLITS
}


def files_below(folder: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Files of these suffixes, in whatever case, sorted by path; hidden ones are left out."""
    wanted = frozenset(suffixes)
    for place, folders, names in os.walk(folder, followlinks=True):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(
            x for x in folders if x[0] != "." and x != "__MACOSX" and depth < _MAX_DEPTH
        )
        for name in sorted(names):
            if name[0] != "." and os.path.splitext(name)[1].lower() in wanted:
                yield Path(place, name)


def absolute(path: str | os.PathLike[str]) -> Path:
    """From the working directory, ``~`` the home; links stay as they are."""
    return Path(os.path.abspath(Path(path).expanduser()))


@cache
def _by_stem(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names_in(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PICTURES:
            found.setdefault(stem, []).append(name)
    return found


def pictures_of_stem(folder: Path, stem: str) -> list[Path]:
    """Pictures called ``stem`` in ``folder``, whatever their suffix. Folders are listed once."""
    return [folder / name for name in _by_stem(folder).get(stem, ())]


def forget_listings() -> None:
    """Has folders listed anew, as they may have changed since another set was read."""
    _by_stem.cache_clear()


def split_of(path: PurePath) -> str | None:
    """The split that a path's last telling part names: ``valid/a.json``, ``val2017`` -> "val"."""
    for part in reversed(path.parts):
        words = re.findall("[a-z]+", part.lower())
        named = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
        if len(named) == 1:
            return named.pop()
    return None


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height in pixels as detectron2 will read it, after EXIF's rotation.

    Raises:
        UserError: where it is absent or no picture; without remedy, which callers add.
    """
    try:
        with open_picture(picture) as image:
            width, height = image.size
            turned = orientation_of(image) in SIDEWAYS
    except FileNotFoundError:
        raise UserError(
            f"no picture {picture} (--images, or images= in Python, names another folder)"
        ) from None
    except Exception as error:  # PIL raises nearly everything on damaged files
        raise UserError(f"{picture} cannot be read as a picture ({reason_of(error)})") from None
    return (height, width) if turned else (width, height)


def read_text(file: Path) -> str:
    """A UTF-8 text; UserError where it is none, cannot be read, or is absurdly large."""
    try:
        if (size := file.stat().st_size) > MAX_TEXT:
            raise UserError(f"{file}: {size} bytes are more than labels need ({MAX_TEXT} allowed)")
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: byte {error.start} is not UTF-8 text; save the file in UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); mend that") from None


def read_classes(file: Path) -> list[str]:
    """Class names in the order of their indices.

    Args:
        file: a name a line; or rows ``name,index`` (.csv); or YAML with ``names``.

    Raises:
        UserError: for what is none of these, and for a name that comes twice.
    """
    if file.suffix.lower() in {".yaml", ".yml"}:
        return names_of_yaml(file, load_yaml(file))
    if file.suffix.lower() == ".csv":
        return _names_of_rows(file)
    return unique_names(file, [line.strip() for line in read_text(file).rstrip().splitlines()])


def names_of_yaml(file: Path, content: dict[str, Any]) -> list[str]:
    """``names`` of a YOLO data.yaml: a list, or indices 0, 1, 2 ... to names."""
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise UserError(f'{file}: the keys of "names" must be 0 to {len(names) - 1}, each once')
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names:
        raise UserError(f'{file}: "names" must list the classes, as in names: [cat, dog]')
    if any(isinstance(name, (list, dict)) for name in names):
        raise UserError(f'{file}: "names" holds more than texts; write names: [cat, dog]')
    return unique_names(file, [str(name).strip() for name in names])


def _names_of_rows(file: Path) -> list[str]:
    names: dict[int, str] = {}
    for line, row in rows_of(file):
        if len(row) != 2 or not re.fullmatch(r"\s*\d{1,6}\s*", row[1]):
            raise UserError(
                f"{file}, line {line}: {show(','.join(row))} given; give a class and its index, "
                "as in cat,0"
            )
        if int(row[1]) in names:
            raise UserError(f"{file}, line {line}: index {int(row[1])} is taken; give each its own")
        names[int(row[1])] = row[0].strip()
    return unique_names(file, [name for _, name in sorted(names.items())])


def unique_names(file: Path, names: list[str]) -> list[str]:
    """``names``, which must be some, such as COCO JSON may have, and each its own."""
    for i, name in enumerate(names):
        if not CLASS_NAME.fits(row := {"name": name}):
            raise UserError(f"{file}: class {i}: {CLASS_NAME.fault(row)}")
        if name in names[:i]:
            raise UserError(
                f"{file}: class {show(name)} comes twice; give each class a name of its own"
            )
    if not names:
        raise UserError(f"{file}: names no class; write one a line")
    return names


def rows_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV that are not blank, with the number of their last line.

    Cells are parted by commas; by semicolons or tabs, as spreadsheets write in many countries,
    where the first row has more of these.
    """
    text = read_text(file)
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"{file}, line {reader.line_num}: not valid CSV ({error}); mend it there"
        ) from None
