"""Sound training and test sets on disk, and functions that plant faults in them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from coco_sets import box, write_json
from PIL import Image

WIDTH, HEIGHT = 96, 72
NUM_SOUND = 5  # images of each split without a fault
CLASSES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
GOOD = [20, 20, 40, 40]

Content = dict[str, Any]
SOUND: Content = {
    "info": {},
    "categories": CLASSES,
    "images": [
        {"id": i, "file_name": f"train_{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(1, NUM_SOUND + 1)
    ],
    "annotations": [
        box(2 * i + j, i + 1, j, bbox) | {"area": None}
        for i in range(NUM_SOUND)
        for j, bbox in ((1, [4, 5, 40, 30]), (2, [50, 20, 36, 45]))
    ],
}
Planted = tuple[str, str]  # severity, and a part of the message that identifies the entry


def noise(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_sound_sets(folder: Path) -> tuple[Content, Content]:
    """Writes images, ``train.json`` and ``val.json``; returns the content of both."""
    (folder / "images").mkdir(parents=True)
    contents = copy.deepcopy(SOUND), copy.deepcopy(SOUND)
    for split, seed, content in zip(("train", "val"), (0, 100), contents, strict=True):
        for i, row in enumerate(content["images"], start=1):
            row["file_name"] = f"{split}_{i}.png"
            noise(seed + i).save(folder / "images" / row["file_name"])
        write_json(folder, content, f"{split}.json")
    return contents


def add_image(folder: Path, content: Content, name: str, image: Image.Image, **options: Any) -> int:
    """Saves an image and adds its entry; returns the id."""
    number = len(content["images"]) + 1
    width, height = image.size
    content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
    image.save(folder / "images" / name, **options)
    return number


def add_box(
    content: Content, image_id: int, category_id: int, bbox: list[Any], **keys: Any
) -> None:
    number = len(content["annotations"]) + 1
    content["annotations"].append(
        {**box(number, image_id, category_id, [1, 1, 1, 1]), "bbox": bbox, "area": None} | keys
    )


def add_sound(folder: Path, content: Content, name: str, seed: int, **options: Any) -> Content:
    """Adds an image of noise with a box; returns its entry."""
    add_box(content, add_image(folder, content, name, noise(seed), **options), 1, GOOD)
    entry: Content = content["images"][-1]
    return entry


def malformed_entry(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_box(train, 1, 1, [1, 2, "3", 4])
    train["annotations"].append([[1, 2], 3])
    train["images"].append({"id": "7", "file_name": "x.png", "width": 1, "height": 1})
    add_sound(folder, train, "unsized.png", 31)["width"] = "96"
    add_box(train, 1, 1, [30, 30, 40, 40], area="large")
    add_box(train, 2, 1, [30, 30, 40, 40], ignore=1)
    parts = '[1, 2, "3", 4]', "[[1, 2], 3]", 'id is "7"', 'width is "96"', '"large"', "ignore is 1"
    return [("error", part) for part in parts]


def duplicate_id(folder: Path, train: Content, val: Content) -> list[Planted]:
    train["images"].append({**train["images"][0], "file_name": "nowhere.png"})
    return [("error", "images[")]


def duplicate_class_name(folder: Path, train: Content, val: Content) -> list[Planted]:
    for content in (train, val):
        content["categories"].append({"id": 11, "name": "dog"})
        add_box(content, 1, 11, [10, 30, 40, 40])
    return [("error", "categories[2] (id 11)")] * 2


def classes_differ(folder: Path, train: Content, val: Content) -> list[Planted]:
    val["categories"].append({"id": 21, "name": "cow"})
    return [("error", '21 "cow"')]


def unused_class(folder: Path, train: Content, val: Content) -> list[Planted]:
    for content in (train, val):
        content["categories"].append({"id": 31, "name": "emu"})
    return [("warning", '"emu" (id 31)')]


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def image_size(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_sound(folder, train, "size.png", 36)["width"] = 90
    return [("error", '"size.png"')]


def exif_rotation(folder: Path, train: Content, val: Content) -> list[Planted]:
    for orientation, name in ((6, "unrotated.jpg"), (6, "rotated.jpg"), (3, "upside_down.jpg")):
        exif = Image.Exif()
        exif[274] = orientation
        entry = add_sound(folder, train, name, len(name), exif=exif)
        if name == "rotated.jpg":
            entry.update(width=HEIGHT, height=WIDTH)
    return [("error", '"unrotated.jpg"')]


def duplicate_image(folder: Path, train: Content, val: Content) -> list[Planted]:
    for seed, content in ((40, train), (41, val)):
        add_sound(folder, content, f"first_{seed}.png", seed)
        add_sound(folder, content, f"again_{seed}.png", seed)
    return [("warning", "again_40.png"), ("warning", "again_41.png")]


def image_in_both_splits(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_sound(folder, train, "leak_train.png", 42)
    add_sound(folder, val, "leak_val.png", 42)
    add_sound(folder, train, "leak_train.bmp", 43)  # the same pixels in another format
    add_sound(folder, val, "leak_val.tif", 43)
    return [("error", '"leak_train.png"'), ("error", '"leak_train.bmp"')]


def no_boxes(folder: Path, train: Content, val: Content) -> list[Planted]:
    add_image(folder, train, "bare.png", noise(44))
    return [("info", '"bare.png"')]


# Boxes to add to the training set: severity, image id, category id, bbox, part of the message.
BOXES: dict[str, list[tuple[str, int, int, list[Any], str]]] = {
    "undeclared-class": [("error", 1, 99, [10, 20, 40, 40], "category_id 99")],
    "unknown-image": [("error", 999, 1, GOOD, "image_id 999")],
    "box-not-finite": [
        ("error", 1, 1, [1, 2, float(text), 4], f"bbox is [1, 2, {text}")
        for text in ("NaN", "Infinity", "1e+308")
    ],
    "empty-box": [("error", 2, 1, bbox, str(bbox)) for bbox in ([10, 10, 0, 20], [10, 10, 20, -5])],
    "box-outside": [
        ("error", 3, 1, bbox, str(bbox)) for bbox in ([60, 40, 60, 20], [500, 500, 20, 20])
    ],
    "duplicate-box": [
        ("warning", 4, 1, [4, 5, 40, 30], "[4, 5, 40, 30]"),
        ("warning", 4, 2, [50, 20.4, 36, 45.5], "[50, 20.4, 36, 45.5]"),
    ],
    "large-box": [("warning", 5, 1, [0, 0, WIDTH, HEIGHT], "100%")],
}
OTHERS: dict[str, Callable[[Path, Content, Content], list[Planted]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(malformed_entry, duplicate_id, duplicate_class_name, classes_differ, unused_class),
        *(image_size, exif_rotation, duplicate_image, image_in_both_splits, no_boxes),
    )
}
# Images to add to the training set, and what damages each file.
DAMAGED: dict[str, dict[str, Callable[[Path], object]]] = {
    "missing-image": {"missing.png": Path.unlink},
    "unreadable-image": {"text.png": lambda file: file.write_text("not an image")},
    "truncated-image": {"cut.jpg": halve, "cut.png": halve},
}
PLANT = (*OTHERS, *DAMAGED, *BOXES)


def plant(folder: Path, *rules: str) -> dict[str, list[Planted]]:
    """Writes both sets into ``folder`` with faults of these rules; returns what to find."""
    train, val = write_sound_sets(folder)
    planted = {rule: OTHERS[rule](folder, train, val) for rule in rules if rule in OTHERS}
    for rule in filter(DAMAGED.__contains__, rules):
        for name, damage in DAMAGED[rule].items():
            add_sound(folder, train, name, 50 + len(train["images"]))
            damage(folder / "images" / name)
        planted[rule] = [("error", f'"{name}"') for name in DAMAGED[rule]]
    for rule in filter(BOXES.__contains__, rules):
        for _, image_id, category_id, bbox, _ in BOXES[rule]:
            add_box(train, image_id, category_id, bbox)
        planted[rule] = [(severity, part) for severity, *_, part in BOXES[rule]]
    write_json(folder, train, "train.json")
    write_json(folder, val, "val.json")
    return planted
