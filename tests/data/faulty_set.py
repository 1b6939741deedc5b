"""A training and a test set on disk without a fault, and what plants one of each kind in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from coco_sets import box, write_json
from PIL import Image

WIDTH, HEIGHT = 96, 72
NUM_CLEAN = 5  # pictures of each split without a fault
CLASSES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_clean_set(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes pictures, ``train.json`` and ``val.json``; returns the content of both."""
    (folder / "pictures").mkdir(parents=True)
    contents = []
    for split, seed in (("train", 0), ("val", 100)):
        content: dict[str, Any] = {"info": {}, "categories": [dict(row) for row in CLASSES]}
        content["images"], content["annotations"] = [], []
        for i in range(1, NUM_CLEAN + 1):
            add_picture(folder, content, f"{split}_{i}.png", picture(seed + i))
            add_box(content, i, 1, [4, 5, 40, 30])
            add_box(content, i, 2, [50, 20, 36, 45])
        write_json(folder, content, f"{split}.json")
        contents.append(content)
    return contents[0], contents[1]


def add_picture(
    folder: Path, content: dict[str, Any], name: str, pixels: Image.Image | None, **options: Any
) -> int:
    """Adds an entry, and saves the picture where there is one; returns the id."""
    number = len(content["images"]) + 1
    size = pixels.size if pixels else (WIDTH, HEIGHT)
    content["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
    if pixels:
        pixels.save(folder / "pictures" / name, **options)
    return number


def add_box(
    content: dict[str, Any], image_id: int, category_id: int, bbox: list[Any], **keys: Any
) -> None:
    number = len(content["annotations"]) + 1
    content["annotations"].append(
        {**box(number, image_id, category_id, [1, 1, 1, 1]), "bbox": bbox, "area": None} | keys
    )


Content = dict[str, Any]
Planted = tuple[str, str]  # severity, and what the finding's sentence must hold

GOOD = [20, 20, 40, 40]


def sound(
    folder: Path, content: Content, name: str, pixels: Image.Image, **options: Any
) -> Content:
    """Adds a picture with a box; returns its entry."""
    add_box(content, add_picture(folder, content, name, pixels, **options), 1, GOOD)
    entry: Content = content["images"][-1]
    return entry


def malformed_entry(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 1, 1, [1, 2, "3", 4])
    train["annotations"].append([[1, 2], 3])
    train["images"].append({"id": "7", "file_name": "x.png", "width": 1, "height": 1})
    sound(folder, train, "unsized.png", picture(31))["width"] = "96"
    add_box(train, 1, 1, [30, 30, 40, 40], area="large")
    add_box(train, 2, 1, [30, 30, 40, 40], ignore=1)
    return [
        ("error", 'bbox is [1, 2, "3", 4]'),
        ("error", "[[1, 2], 3] is not an object"),
        ("error", 'id is "7"'),
        ("error", 'width is "96"'),
        ("error", 'area is "large"'),
        ("error", "ignore is 1"),
    ]


def id_taken_twice(folder: Path, train: Content, val: Content) -> list[Planted]:
    train["images"].append({**train["images"][0], "file_name": "nowhere.png"})
    add_box(val, 1, 1, [30, 30, 40, 40], id=1)
    return [("error", '"nowhere.png"'), ("warning", "annotations[")]


def classes_of_one_name(folder: Path, train: Content, val: Content) -> list[Planted]:
    for content in (train, val):
        content["categories"] += [{"id": 11, "name": "dog"}, {"id": 12, "name": "CAT "}]
        for i in range(1, NUM_CLEAN + 1):
            for category_id in (11, 12):
                add_box(content, i, category_id, [10, 30, 40, 40])
                add_box(content, i, category_id, [30, 12, 45, 40])
    return [("error", 'id 11 "dog" and id 2 "dog"'), ("warning", 'id 12 "CAT " and id 1 "cat"')] * 2


def classes_differ(folder: Path, train: Content, val: Content) -> list[Planted]:
    val["categories"].append({"id": 21, "name": "cow"})
    return [("error", 'id 21 "cow" is not declared in')]


def undeclared_class(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 1, 99, [10, 20, 40, 40])
    return [("error", "category_id 99 is not declared")]


def unused_class(folder: Path, train: Content, val: Content) -> list[Planted]:
    for content in (train, val):
        content["categories"].append({"id": 31, "name": "emu"})
    return [("warning", '"emu" (id 31) has no box')]


def rare_class(folder: Path, train: Content, val: Content) -> list[Planted]:
    for content in (train, val):
        content["categories"].append({"id": 41, "name": "fox"})
    add_box(train, 1, 41, [12, 20, 40, 40])
    return [("warning", '"fox" (id 41) has 1 box,')]


def unknown_picture(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 999, 1, GOOD)
    return [("error", "image_id 999 is the id of no picture")]


def absent_picture(folder: Path, train: Content, val: Content) -> list[Planted]:
    entry = sound(folder, train, "absent.png", picture(32))
    (folder / "pictures" / entry["file_name"]).unlink()
    return [("error", '"absent.png"')]


def unreadable_picture(folder: Path, train: Content, val: Content) -> list[Planted]:
    entry = sound(folder, train, "text.png", picture(33))
    (folder / "pictures" / entry["file_name"]).write_text("not a picture")
    return [("error", '"text.png"')]


def truncated_picture(folder: Path, train: Content, val: Content) -> list[Planted]:
    names = "cut.jpg", "cut.png"
    for seed, name in enumerate(names):
        sound(folder, train, name, picture(34 + seed))
        file = folder / "pictures" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return [("error", f'"{name}"') for name in names]


def picture_size(folder: Path, train: Content, val: Content) -> list[Planted]:
    sound(folder, train, "size.png", picture(36))["width"] = 90
    return [("error", "is 96 x 72, but the JSON says 90 x 72")]


def exif_rotation(folder: Path, train: Content, val: Content) -> list[Planted]:
    for orientation, name in ((6, "unturned.jpg"), (6, "turned.jpg"), (3, "upside_down.jpg")):
        exif = Image.Exif()
        exif[274] = orientation
        sound(folder, train, name, picture(len(name)), exif=exif)
    entry = next(row for row in train["images"] if row["file_name"] == "turned.jpg")
    entry.update(width=HEIGHT, height=WIDTH)
    return [("error", "unturned.jpg"), ("info", '"turned.jpg"'), ("warning", "upside_down.jpg")]


def picture_twice(folder: Path, train: Content, val: Content) -> list[Planted]:
    for seed, content in ((40, train), (41, val)):
        sound(folder, content, f"first_{seed}.png", picture(seed))
        sound(folder, content, f"again_{seed}.png", picture(seed))
    return [("warning", "again_40.png"), ("warning", "again_41.png")]


def picture_in_both_splits(folder: Path, train: Content, val: Content) -> list[Planted]:
    sound(folder, train, "leak_train.png", picture(42))
    sound(folder, val, "leak_val.png", picture(42))
    sound(folder, train, "leak_train.bmp", picture(43))  # only the pixels are the same
    sound(folder, val, "leak_val.tif", picture(43))
    return [("error", '"leak_train.png"'), ("error", '"leak_train.bmp"')]


def box_not_finite(folder: Path, train: Content, val: Content) -> list[Planted]:
    for value in (float("nan"), float("inf"), 1e308, 10**400):
        add_box(train, 1, 1, [1, 2, value, 4])
    return [("error", f"bbox is [1, 2, {x}") for x in ("NaN", "Infinity", "1e+308", "1000")]


def empty_box(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 2, 1, [10, 10, 0, 20])
    add_box(val, 2, 1, [10, 10, 20, -5])
    return [("error", "[10, 10, 0, 20]"), ("error", "[10, 10, 20, -5]")]


def box_outside(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 3, 1, [60, 40, 60, 20])
    add_box(train, 3, 1, [500, 500, 20, 20])
    return [("error", "[60, 40, 60, 20] reaches outside"), ("error", "[500, 500, 20, 20] reaches")]


def duplicate_box(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 4, 1, [4, 5, 40, 30])
    add_box(train, 4, 2, [50, 20.4, 36, 45.5])
    return [("warning", "[4, 5, 40, 30]"), ("warning", "[50, 20.4, 36, 45.5]")]


def large_box(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 5, 1, [0, 0, WIDTH, HEIGHT])
    return [("warning", "covers 100% of its picture")]


def unmatched_box(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 5, 1, [40, 40, 2, 2])
    add_box(train, 5, 2, [3, 3, 90, 2])
    return [("warning", "[40, 40, 2, 2]"), ("warning", "[3, 3, 90, 2]")]


def no_boxes(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_picture(folder, train, "bare.png", picture(44))
    return [("info", '"bare.png"')]


PLANT: dict[str, Callable[[Path, Content, Content], list[Planted]]] = {
    function.__name__.replace("_", " ").replace("exif", "EXIF"): function
    for function in (
        *(malformed_entry, id_taken_twice, classes_of_one_name, classes_differ, undeclared_class),
        *(unused_class, rare_class, unknown_picture, absent_picture, unreadable_picture),
        *(truncated_picture, picture_size, exif_rotation, picture_twice, picture_in_both_splits),
        *(box_not_finite, empty_box, box_outside, duplicate_box, large_box, unmatched_box),
        no_boxes,
    )
}


def plant(folder: Path, *kinds: str) -> dict[str, list[Planted]]:
    """Writes both sets into ``folder`` with faults of these kinds; returns what is to be found."""
    train, val = write_clean_set(folder)
    planted = {kind: PLANT[kind](folder, train, val) for kind in kinds}
    for name, content in (("train.json", train), ("val.json", val)):
        (folder / name).write_text(json.dumps(content))
    return planted
