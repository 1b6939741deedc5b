"""A COCO JSON of any content, read as far as it goes: what can be used of it, and what cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...data.coco_entries import (
    BOX_FIELDS,
    CATEGORY_FIELDS,
    EXTRA_FIELDS,
    PICTURE_FIELDS,
    SIZE_FIELDS,
    Field,
    Row,
    fault_of_ignore,
    is_id,
    is_numbers,
    shortened,
    show,
)
from ...data.coco_json import parse
from ...data.images import names_in
from ...data.own import OWN_TRAIN, find_own_sets, named_sets, require_registered
from ...errors import UserError, did_you_mean
from .findings import Finding


@dataclass(frozen=True)
class Source:
    """Where a data set is.

    Args:
        name: for people.
        file: the COCO JSON.
        folder: what the pictures' names are relative to.
        training: whether it is trained on, else evaluated on.
        content: of the JSON, where the set is registered without one.
    """

    name: str
    file: Path
    folder: Path
    training: bool
    content: Row | None = None


@dataclass
class CheckedSet:
    """A data set with what was found in it.

    Attributes:
        content: as read, None where that failed.
        declared: ids of all categories; categories: names of those that can be used, by id.
        images: entries by id, where size may be malformed.
        annotations: of these pictures and categories, with four finite numbers, by their index.
        sound: of annotations those whose box is neither empty nor outside, and no crowd.
    """

    source: Source
    content: Row | None = None
    findings: list[Finding] = field(default_factory=list)
    declared: set[int] = field(default_factory=set)
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int, Row] = field(default_factory=dict)
    annotations: dict[int, Row] = field(default_factory=dict)
    sound: set[int] = field(default_factory=set)

    def tell(self, severity: str, kind: str, text: str, **more: Any) -> None:
        """Adds a finding; ``more`` are further attributes of one."""
        self.findings.append(Finding(severity, kind, str(self.source.file), text, **more))

    def tell_of_image(self, severity: str, kind: str, row: Row, text: str, **more: Any) -> None:
        name = row["file_name"]
        text = f"{show(name)} (id {row['id']}): {text}"
        self.tell(severity, kind, text, picture=str(self.source.folder / name), **more)

    def tell_of_annotation(
        self, severity: str, kind: str, index: int, row: Row, text: str, **more: Any
    ) -> None:
        number = row.get("id")
        image = self.images.get(row["image_id"]) if is_id(row.get("image_id")) else None
        within = f" in {show(image['file_name'])}" if image else ""
        self.tell(
            severity,
            kind,
            f"{_entry('annotations', index, row)}{within}: {text}",
            picture=str(self.source.folder / image["file_name"]) if image else None,
            annotation=number if is_id(number) else None,
            **more,
        )

    def size_of(self, row: Row) -> tuple[int, int] | None:
        """Width and height as the JSON has them, if it does."""
        if all(side.fits(row) for side in SIZE_FIELDS):
            return row["width"], row["height"]
        return None

    def objects(self, name: str) -> list[Row]:
        """The entries of a list of the JSON that are objects, however faulty."""
        rows = (self.content or {}).get(name)
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _entry(name: str, index: int, row: object) -> str:
    known_as = f" (id {show(row['id'])})" if isinstance(row, dict) and "id" in row else ""
    return f"{name}[{index}]{known_as}"


# ---------------------------------------------------------------- which sets


def sources_of(cfg: CfgNode) -> list[Source]:
    """The data sets that a config names: DATASETS.OWN, else DATASETS.TRAIN and TEST.

    Raises:
        UserError: where it names none, or one that is not there.
    """
    own = cfg.DATASETS.OWN
    if own.TRAIN_JSON or own.TEST_JSON or own.TRAIN_IMAGES or own.TEST_IMAGES:
        return [
            Source(o.name, o.json_file, o.images, o.name == OWN_TRAIN) for o in find_own_sets(cfg)
        ]
    sources = [_registered(key, name) for key, name in named_sets(cfg)]
    if not sources:
        raise UserError(
            "the config names no data set; give one in DATASETS.OWN.TRAIN_JSON and TRAIN_IMAGES or "
            "in DATASETS.TRAIN, or a file by --json and its pictures by --images."
        )
    return sources


def sources_of_files(files: Sequence[str], folders: Sequence[str]) -> list[Source]:
    """The first JSON as the training set, others as test sets; one folder may serve for all.

    Raises:
        UserError: where one is not there.
    """
    if len(folders) not in (1, len(files)):
        raise UserError(
            f"--images: given {len(folders)} times for {len(files)} --json; give one for each, or "
            "one for all."
        )
    paths = [Path(name).expanduser() for name in files]
    places = [Path(name).expanduser() for name in folders]
    for option, named, there in (
        ("--json", paths, Path.is_file),
        ("--images", places, Path.is_dir),
    ):
        for path in named:
            if not there(path):
                near = did_you_mean(path.name, names_in(path.parent))
                raise UserError(f"{option}: {path} is not there{near}; correct the path.")
    places = places if len(places) == len(paths) else places * len(paths)
    names = ["train", "val", *(f"val {i}" for i in range(2, len(paths)))]
    return [
        Source(name, path, place, i == 0)
        for i, (name, path, place) in enumerate(zip(names, paths, places, strict=False))
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
    """What a loader of detectron2 gives, as the content of a JSON and the pictures' folder."""
    files = [Path(entry["file_name"]).absolute() for entry in entries]
    folder = Path(*_common([file.parent.parts for file in files]))
    images: list[Row] = []
    annotations: list[Row] = []
    for number, (entry, file) in enumerate(zip(entries, files, strict=True), start=1):
        sides: Row = {side: entry[side] for side in ("width", "height") if side in entry}
        name = file.relative_to(folder).as_posix()
        images.append({"id": number, "file_name": name, **sides})
        for annotation in entry.get("annotations", ()):
            box = BoxMode.convert(
                [float(x) for x in annotation["bbox"]], annotation["bbox_mode"], BoxMode.XYWH_ABS
            )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(annotation["category_id"]),
                    "bbox": list(box),
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
    known = classes or sorted({row["category_id"] for row in annotations})
    categories = [{"id": i, "name": str(name)} for i, name in enumerate(known)]
    return {"images": images, "annotations": annotations, "categories": categories}, folder


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """The parts that all begin with."""
    same = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        same.append(parts[0])
    return same or ["."]


# ---------------------------------------------------------------- what is in one


def read_set(source: Source) -> CheckedSet:
    """Reads a set, and goes past each fault in the form of its entries."""
    checked = CheckedSet(source)
    try:
        checked.content = source.content if source.content is not None else parse(source.file)[0]
    except UserError as error:
        checked.tell("error", "unusable file", str(error).removeprefix(f"{source.file}: "))
        return checked
    for name in ("categories", "images"):
        if checked.content.get(name) == []:
            checked.tell("error", "unusable file", f'"{name}" is empty; it must name at least one')
    _read_categories(checked)
    pictured = _read_images(checked)
    _read_annotations(checked, pictured)
    return checked


def _rows(checked: CheckedSet, name: str) -> Iterator[tuple[int, Row]]:
    """The entries of a list that are objects."""
    assert checked.content is not None
    rows = checked.content.get(name)
    if not isinstance(rows, list):
        found = f"is {show(rows)}" if name in checked.content else "is missing"
        checked.tell("error", "unusable file", f'"{name}" {found}; it must be a list of objects')
        return
    for index, row in enumerate(rows):
        if isinstance(row, dict):
            yield index, row
        else:
            text = f"{name}[{index}]: {show(row)} is not an object; write it as {{...}}"
            checked.tell("error", "malformed entry", text)


def _fault(row: Row, fields: Sequence[Field]) -> str | None:
    """The first field that does not fit: later ones of the same key build on it."""
    return next((rule.fault(row) for rule in fields if not rule.fits(row)), None)


def _read_categories(checked: CheckedSet) -> None:
    declared = checked.declared
    named: dict[str, tuple[int, str]] = {}
    for index, row in _rows(checked, "categories"):
        fault = _fault(row, CATEGORY_FIELDS)
        number: Any = row.get("id")
        twice = is_id(number) and number in declared
        if is_id(number):
            declared.add(number)
        if fault:
            checked.tell("error", "malformed entry", f"{_entry('categories', index, row)}: {fault}")
            continue
        name = row["name"]
        if twice:
            text = f"categories[{index}] {show(name)}: id {number} is taken already"
            checked.tell("error", "id taken twice", text)
            continue
        other = named.setdefault(_plain(name), (number, name))
        if other[0] != number:
            exactly = other[1] == name
            checked.tell(
                "error" if exactly else "warning",
                "classes of one name",
                f"id {number} {show(name)} and id {other[0]} {show(other[1])} "
                f"{'have one name' if exactly else 'differ in case, spaces or underscores alone'}",
            )
        checked.categories[number] = name


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _read_images(checked: CheckedSet) -> set[int]:
    """Enters the usable images, with or without a size; returns all ids that some entry has."""
    pictured: set[int] = set()
    for index, row in _rows(checked, "images"):
        fault = _fault(row, PICTURE_FIELDS)
        number: Any = row.get("id")
        twice = is_id(number) and number in pictured
        if is_id(number):
            pictured.add(number)
        if fault or twice:
            kind = "malformed entry" if fault else "id taken twice"
            text = fault or f"{show(row['file_name'])} has an id that is taken already"
            checked.tell("error", kind, f"{_entry('images', index, row)}: {text}")
            continue
        checked.images[number] = row
        sides = _fault(row, SIZE_FIELDS)
        if sides:
            checked.tell_of_image("error", "malformed entry", row, sides)
    return pictured


def _read_annotations(checked: CheckedSet, pictured: set[int]) -> None:
    ids: set[int] = set()
    known = shortened(sorted(checked.declared))
    for index, row in _rows(checked, "annotations"):
        fault = _fault(row, BOX_FIELDS)
        if fault:
            bbox: Any = row.get("bbox")
            numbers = is_numbers(bbox) and len(bbox) == 4 and _fault(row, BOX_FIELDS[:-1]) is None
            kind = "box not finite" if numbers else "malformed entry"
            checked.tell_of_annotation("error", kind, index, row, fault)
            continue
        faults = [_fault(row, EXTRA_FIELDS)]
        if row.get("ignore", 0) != 0:
            faults.append(fault_of_ignore(row))
        for text in filter(None, faults):
            checked.tell_of_annotation("error", "malformed entry", index, row, text)
        number: Any = row.get("id")
        if is_id(number) and number in ids:
            text = "its id is taken already"
            checked.tell_of_annotation("warning", "id taken twice", index, row, text)
        if is_id(number):
            ids.add(number)
        if row["image_id"] not in pictured:
            text = f'image_id {row["image_id"]} is the id of no picture in "images"'
            checked.tell_of_annotation("error", "unknown picture", index, row, text)
        elif row["category_id"] not in checked.declared:
            checked.tell_of_annotation(
                "error",
                "undeclared class",
                index,
                row,
                f'category_id {row["category_id"]} is not declared in "categories" (known: '
                f"{known or 'none'})",
                box=_corners(row["bbox"]),
            )
        elif row["image_id"] in checked.images and row["category_id"] in checked.categories:
            checked.annotations[index] = row


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height
