"""Reads a dataset in any format."""

from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from .coco import is_coco, read_coco_dataset
from .files import YAML_SUFFIXES, absolute, files_below, folder_of
from .keras_csv import has_columns, read_csv
from .labeled import Collector, LabeledDataset
from .voc import is_voc, read_voc
from .yolo import CLASS_FILES, is_yolo_yaml, read_yolo

FORMATS: dict[str, Callable[[Path, Collector], LabeledDataset]] = {
    "coco": read_coco_dataset,
    "voc": read_voc,
    "yolo": read_yolo,
    "csv": read_csv,
}
_BY_SUFFIX: dict[str, tuple[str, Callable[[Path], bool]]] = {
    ".json": ("coco", is_coco),
    ".xml": ("voc", is_voc),
    ".csv": ("csv", has_columns),
    **dict.fromkeys(YAML_SUFFIXES, ("yolo", is_yolo_yaml)),
}
_EXPECTED = (
    "COCO: a .json with images, annotations and categories; Pascal VOC: one .xml per image; "
    "YOLO: a data.yaml with names and train, or labels/*.txt and classes.txt; "
    "CSV: rows path,x1,y1,x2,y2,class"
)


def read_dataset(
    path: str | Path,
    format: str | None = None,
    *,
    images: str | Path | None = None,
    classes: str | Path | None = None,
    fix: bool = False,
    zero_based: bool = False,
) -> LabeledDataset:
    """Reads and checks a dataset.

    Args:
        path: a folder, a COCO JSON, a data.yaml, a CSV or an XML.
        format: "coco", "voc", "yolo" or "csv"; None: recognized from the files.
        images, classes, fix, zero_based: see :class:`~.labeled.Collector`.

    Raises:
        UserError: for the first fault, with file and line (VOC: object).
    """
    path = absolute(path)
    folder, file = (None if x is None else absolute(x) for x in (images, classes))
    return FORMATS[format or format_of(path)](path, Collector(folder, file, fix, zero_based))


def format_of(path: Path) -> str:
    """Recognizes the format of a file or folder; raises UserError for none or several."""
    if path.is_file() and path.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[path.suffix.lower()][0]
    root = folder_of(path).parent

    def is_label_file(file: Path) -> bool:
        return "labels" in file.relative_to(root).parent.parts

    examples, has_classes = dict[str, Path](), False
    for file in files_below(path, {*_BY_SUFFIX, ".txt", ".names"}):
        if file.name in CLASS_FILES:
            has_classes = True  # other formats may have such a file, too
            continue
        format, matches = _BY_SUFFIX.get(file.suffix.lower(), ("yolo", is_label_file))
        if format not in examples and matches(file):
            examples[format] = file
    if not (examples or has_classes):
        raise UserError(f"{path}: unknown format; expected one of these: {_EXPECTED}.")
    if len(examples) > 1:
        found = ", ".join(f"{format} ({file})" for format, file in sorted(examples.items()))
        raise UserError(f"{path}: several formats: {found}; choose one by --format.")
    return next(iter(examples), "yolo")
