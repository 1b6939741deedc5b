"""One small dataset, written in each of the four formats."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.convert_dataset import read_dataset

CLASSES = ["cat", "dög"]
SIZES = {"a.jpg": (40, 30), "b.png": (30, 40), "c.JPG": (32, 32), "d e.png": (64, 48)}
# Class, x1, y1, x2, y2: edges in pixels. The third image has no objects.
BOXES: dict[str, list[tuple[str, int, int, int, int]]] = {
    "a.jpg": [("dög", 0, 0, 40, 30), ("cat", 5, 4, 15, 12)],
    "b.png": [("cat", 29, 39, 30, 40)],
    "c.JPG": [],
    "d e.png": [("cat", 1, 2, 3, 5), ("cat", 10, 11, 50, 40), ("dög", 0, 7, 64, 48)],
}
TRAIN = ["a.jpg", "c.JPG", "d e.png"]

Boxes = dict[str, list[tuple[str, list[float]]]]  # class and XYWH by image


def expected() -> Boxes:
    """The boxes of the dataset."""
    return {
        name: [(label, [x1, y1, x2 - x1, y2 - y1]) for label, x1, y1, x2, y2 in boxes]
        for name, boxes in BOXES.items()
    }


def boxes_of(content: dict[str, Any], digits: int = 2) -> Boxes:
    """The boxes of a COCO dict, rounded."""
    names = {row["id"]: Path(row["file_name"]).name for row in content["images"]}
    labels = {row["id"]: row["name"] for row in content["categories"]}
    boxes: Boxes = {name: [] for name in names.values()}
    for row in content["annotations"]:
        bbox = [round(x, digits) for x in row["bbox"]]
        boxes[names[row["image_id"]]].append((labels[row["category_id"]], bbox))
    return boxes


def read(path: Path, format: str | None = None, **options: Any) -> dict[str, Any]:
    """The COCO dict of all images."""
    return read_dataset(path, format, **options).content


def splits_of(path: Path) -> dict[str, list[str]]:
    """The names of the images in each split."""
    dataset = read_dataset(path)
    names = {row["id"]: Path(row["file_name"]).name for row in dataset.content["images"]}
    return {split: sorted(names[i] for i in ids) for split, ids in dataset.splits.items()}


def error_of(path: Path, format: str | None = None, **options: Any) -> str:
    """The error of reading a bad dataset, one line."""
    with pytest.raises(UserError) as raised:
        read(path, format, **options)
    assert str(raised.value).isprintable()
    return str(raised.value)


def write_images(folder: Path, names: Sequence[str] = tuple(SIZES)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZES[name], "grey").save(folder / name)


def voc_xml(name: str, objects: str) -> str:
    width, height = SIZES[name]
    return (
        f"<annotation>\n<filename>{name}</filename>\n<size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>\n{objects}</annotation>\n"
    )


def voc_object(label: str, *corners: object, extra: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{label}</name>{extra}\n<bndbox>{inner}</bndbox></object>\n"


def write_voc(folder: Path) -> Path:
    write_images(folder / "JPEGImages")
    lists = folder / "ImageSets" / "Main"
    for subfolder in (folder / "Annotations", lists):
        subfolder.mkdir(parents=True)
    for name, boxes in BOXES.items():
        # The first and the last pixel within the box, counted from 1
        objects = "".join(voc_object(c, x1 + 1, y1 + 1, x2, y2) for c, x1, y1, x2, y2 in boxes)
        file = folder / "Annotations" / f"{Path(name).stem}.xml"
        file.write_text(voc_xml(name, objects), encoding="utf-8")
    (lists / "train.txt").write_text("".join(f"{Path(name).stem}\n" for name in TRAIN))
    (lists / "val.txt").write_text("b\n")
    (lists / "trainval.txt").write_text("a\nb\nc\nd e\n")
    (lists / "cat_train.txt").write_text("a  1\nc -1\nd e  1\n")
    return folder


def yolo_row(label: str, x1: int, y1: int, x2: int, y2: int, size: tuple[int, int]) -> str:
    width, height = size
    values = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
    return f"{CLASSES.index(label)} {' '.join(f'{value:.6f}' for value in values)}\n"


def write_yolo(folder: Path) -> Path:
    for split, names in (("train", TRAIN), ("val", ["b.png"])):
        write_images(folder / "images" / split, names)
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        for name in filter(BOXES.get, names):  # no objects, no file
            rows = "".join(yolo_row(*box, SIZES[name]) for box in BOXES[name])
            (labels / f"{Path(name).stem}.txt").write_text(rows)
    (folder / "data.yaml").write_text(
        f"path: {folder.name}\ntrain: images/train\nval: images/val\nnames: {json.dumps(CLASSES)}\n"
    )
    return folder


def csv_rows(names: list[str]) -> str:
    rows = []
    for name in names:
        rows += [f"images/{name},{x1},{y1},{x2},{y2},{c}" for c, x1, y1, x2, y2 in BOXES[name]]
        rows += [] if BOXES[name] else [f"images/{name},,,,,"]
    return "\n".join(rows) + "\n"


def write_csv(folder: Path) -> Path:
    write_images(folder / "images")
    (folder / "train.csv").write_text(csv_rows(TRAIN), encoding="utf-8")
    (folder / "val.csv").write_text(csv_rows(["b.png"]), encoding="utf-8")
    (folder / "classes.csv").write_text("cat,0\ndög,1\n", encoding="utf-8")
    return folder


def write_coco(folder: Path) -> Path:
    write_images(folder / "images")
    (folder / "annotations").mkdir()
    for split, names in (("train", TRAIN), ("val", ["b.png"])):
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        }
        for i, name in enumerate(names, start=10):
            size = dict(zip(("width", "height"), SIZES[name], strict=True))
            content["images"].append({"id": i, "file_name": name, **size})
            content["annotations"] += [
                {"image_id": i, "category_id": CLASSES.index(label) + 1, "bbox": bbox}
                for label, bbox in expected()[name]
            ]
        file = folder / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(content), encoding="utf-8")
    return folder


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "csv": write_csv}
