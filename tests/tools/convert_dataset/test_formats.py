"""All formats give the same COCO boxes and splits; formats are recognized."""

import json
import os
from pathlib import Path

import pytest
from four_formats import BOXES, WRITERS, boxes_of, error_of, expected, read, write_images
from PIL import ExifTags, Image

from retinanet_plugin.tools.convert_dataset import read_dataset
from retinanet_plugin.tools.convert_dataset.formats import format_of


def test_unknown_formats(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    assert '"sets"' in error_of(tmp_path / "set")
    assert f"{tmp_path}/sets" in error_of(tmp_path / "sets")
    write_images(tmp_path / "sets")
    assert "a.jpg" in error_of(tmp_path / "sets" / "a.jpg")


def test_folder_with_two_formats(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndög\n", encoding="utf-8")
    assert format_of(tmp_path) == "voc"  # such a list may be next to VOC, too
    WRITERS["csv"](tmp_path)
    error = error_of(tmp_path)
    assert "train.csv" in error and "a.xml" in error and "--format" in error
    assert len(read(tmp_path, "voc")["images"]) == len(read(tmp_path, "csv")["images"]) == 4
    assert len(read(tmp_path / "train.csv")["images"]) == 3


@pytest.mark.parametrize(
    ("format", "where"), [("coco", "a.jpg"), ("voc", "a.xml"), ("csv", "train.csv, line 1")]
)
def test_exif_rotation_counts(tmp_path: Path, format: str, where: str) -> None:
    folder = WRITERS[format](tmp_path / "set")
    image = next(folder.rglob("a.jpg"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 40)).save(image, exif=exif)  # shown as 40 x 30
    assert boxes_of(read(folder))["a.jpg"] == expected()["a.jpg"]
    Image.new("RGB", (40, 30)).save(image, exif=exif)
    assert where in error_of(folder)


@pytest.mark.parametrize("format", WRITERS)
def test_missing_and_unreadable_images(tmp_path: Path, format: str) -> None:
    folder = WRITERS[format](tmp_path / "set")
    next(folder.rglob("a.jpg")).write_bytes(b"no image")
    if format != "yolo":  # which uses all images in the folder
        next(folder.rglob("d e.png")).unlink()
    error = error_of(folder)
    assert "a.jpg" in error and "--fix" in error
    fixed = read_dataset(folder, fix=True)
    assert "a.jpg" not in boxes_of(fixed.content)
    count = 1 if format == "yolo" else 2
    assert any(note.startswith(f"images left out: {count}") for note in fixed.notes)


@pytest.mark.parametrize(
    ("format", "file", "where"),
    [
        ("coco", "annotations/instances_train2017.json", "annotations["),
        ("voc", "Annotations/a.xml", "object 1"),
        ("yolo", "labels/train/a.txt", "line 1"),
        ("csv", "train.csv", "line 1"),
    ],
)
def test_boxes_outside_and_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, file: str, where: str
) -> None:
    monkeypatch.setitem(BOXES, "a.jpg", [("dög", 20, 10, 80, 20), ("cat", 5, 4, 5, 12)])
    folder = WRITERS[format](tmp_path / "set")
    error = error_of(folder)
    assert f"{folder / file}" in error and where in error and "--fix" in error
    fixed = read_dataset(folder, fix=True)
    assert boxes_of(fixed.content)["a.jpg"] == [("dög", [20, 10, 20, 10])]
    assert fixed.notes


@pytest.mark.parametrize("name", ["a\x1b[31mred", "c" * 251, "left \u202e right"])
def test_invalid_class_names(tmp_path: Path, name: str) -> None:
    """Names that a terminal would obey, or that training would refuse."""
    write_images(tmp_path / "images")
    (tmp_path / "boxes.csv").write_text(f"images/a.jpg,1,1,9,9,{name}\n", encoding="utf-8")
    assert "boxes.csv, line 1" in error_of(tmp_path / "boxes.csv")
    (tmp_path / "names.txt").write_text(f"cat\n{name}\n", encoding="utf-8")
    assert "names.txt" in error_of(tmp_path / "boxes.csv", classes=tmp_path / "names.txt")


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
@pytest.mark.parametrize("name", [b"a\nb.png", b"\xfc.png"])  # the latter is not UTF-8
def test_invalid_image_names(tmp_path: Path, name: bytes) -> None:
    folder = WRITERS["yolo"](tmp_path / "set")
    images = os.fsencode(folder / "images" / "train")
    os.replace(images + b"/a.jpg", images + b"/" + name)
    assert "file_name" in error_of(folder)
    assert sorted(boxes_of(read(folder, fix=True))) == ["b.png", "c.JPG", "d e.png"]


def test_classes_from_a_file(tmp_path: Path) -> None:
    folder = WRITERS["voc"](tmp_path / "set")
    names = tmp_path / "names.txt"
    names.write_text("dög\ncow\ncat\n", encoding="utf-8")
    content = read(folder, classes=names)
    assert [row["name"] for row in content["categories"]] == ["dög", "cow", "cat"]
    assert boxes_of(content) == expected()
    names.write_text("dög\ncats\n", encoding="utf-8")
    error = error_of(folder, classes=names)
    assert "a.xml, object 2" in error and '"cats"' in error
    names.write_text("cat\ncat\n")
    assert "names.txt" in error_of(folder, classes=names)
    assert "--classes" in error_of(WRITERS["coco"](tmp_path / "coco"), classes=names)


def test_coco_files_that_do_not_fit(tmp_path: Path) -> None:
    folder = WRITERS["coco"](tmp_path / "set")
    train, val = sorted((folder / "annotations").iterdir())
    content = json.loads(val.read_text())
    val.write_text(json.dumps(content | {"categories": content["categories"][::-1]}))
    assert boxes_of(read(folder)) == expected()  # the order does not matter
    content["categories"][0]["name"] = "cow"
    val.write_text(json.dumps(content))
    assert str(val) in error_of(folder)
    val.write_text(train.read_text())
    assert "a.jpg" in error_of(folder)  # in both
    val.rename(val.with_name("instances_more.json"))
    assert "instances_more.json" in error_of(folder)
    assert "--images" in error_of(train, images=tmp_path)
