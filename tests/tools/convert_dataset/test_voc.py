"""Pascal VOC: coordinates, difficult objects, lists, and malformed XML."""

from pathlib import Path

import pytest
from four_formats import error_of, read, splits_of, voc_object, voc_xml, write_images, write_voc

from retinanet_plugin.tools.convert_dataset import read_dataset


def one(folder: Path, objects: str, **changes: str) -> Path:
    """A dataset of one image, a.jpg of 40 x 30, with its XML next to it."""
    write_images(folder, ["a.jpg"])
    text = voc_xml("a.jpg", objects)
    for old, new in changes.items():
        text = text.replace(f"<{old}>", new)
    (folder / "a.xml").write_text(text, encoding="utf-8")
    return folder


def test_pixels_count_from_one(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"  # no object
    whole = voc_object("cat", 1, 1, 40, 30).replace("</object>", f"{part}</object>")
    one(tmp_path, whole + voc_object("cat", 3, 5, 3, 5))
    boxes = [row["bbox"] for row in read(tmp_path)["annotations"]]
    assert boxes == [[0, 0, 40, 30], [2, 4, 1, 1]]  # the whole image, one pixel


def test_pixels_count_from_zero(tmp_path: Path) -> None:
    one(tmp_path, voc_object("cat", 0, 0, 40, 30) + voc_object("cat", 10.5, 5, 20, 15))
    dataset = read_dataset(tmp_path)
    assert "--zero-based" in dataset.notes[0]
    assert dataset.content["annotations"][0]["bbox"] == [0, 0, 40, 30]
    zero_based = read_dataset(tmp_path, zero_based=True)
    assert zero_based.content["annotations"][1]["bbox"] == [10.5, 5, 9.5, 10]
    assert not zero_based.notes


def test_difficult_is_trained_on_but_ignored_by_evaluation(tmp_path: Path) -> None:
    difficult = voc_object("cat", 1, 1, 9, 9, extra="<difficult>1</difficult>")
    write_voc(tmp_path)
    for name in ("a.jpg", "b.png"):
        text = voc_xml(name, voc_object("cat", 1, 1, 20, 20) + difficult)
        (tmp_path / "Annotations" / f"{name[0]}.xml").write_text(text)
    dataset = read_dataset(tmp_path)
    train, val = (dataset.subset(dataset.splits[x], x)["annotations"] for x in ("train", "val"))
    assert [row["iscrowd"] for row in train][:2] == [0, 0]
    assert [row["iscrowd"] for row in val] == [0, 1]
    assert sum(row.get("difficult", 0) for row in dataset.content["annotations"]) == 2


def test_image_of_an_xml(tmp_path: Path) -> None:
    one(tmp_path, voc_object("cat", 1, 1, 9, 9), filename="<filename>C:\\\\old\\\\")
    assert read(tmp_path)["images"][0]["file_name"] == "a.jpg"
    (tmp_path / "a.xml").rename(tmp_path / "0001.xml")
    assert read(tmp_path)["images"][0]["file_name"] == "a.jpg"  # by <filename>, without its folder
    text = (tmp_path / "0001.xml").read_text().replace("<width>40", "<width>0")  # unknown
    (tmp_path / "0001.xml").write_text(text)
    assert read(tmp_path)["images"][0]["width"] == 40


def test_lists_of_image_sets(tmp_path: Path) -> None:
    write_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "val.txt").unlink()
    (lists / "train.txt").rename(lists / "val.txt")
    (lists / "trainval.txt").write_text("b\nd e\n")
    assert splits_of(tmp_path) == {
        "train": ["b.png", "d e.png"],
        "val": ["a.jpg", "c.JPG", "d e.png"],
    }
    (lists / "val.txt").write_text("a\nnone\n")
    assert f"{lists}/val.txt, line 2" in error_of(tmp_path)
    assert len(read(tmp_path, fix=True)["images"]) == 4


@pytest.mark.parametrize(
    ("objects", "changes", "found"),
    [
        ("<object>", {}, "line 4"),
        ("", {"annotation": "<html>"}, "XML"),
        ("<object></object>", {}, "object 1: no <name>"),
        ("<object><name>x</name></object>", {}, "object 1: <xmin>"),
        (voc_object("x", 1, 1, "", 9), {}, 'object 1: <xmax> is ""'),
        (voc_object("x", "nan", 1, 9, 9), {}, 'object 1: <xmin> is "nan"'),
        (
            voc_object("x", 1, 1, 9, 9, extra="<difficult>y</difficult>"),
            {},
            "object 1: <difficult>",
        ),
        (voc_object("x", 1, 1, 9, 9), {"width": "<width>1"}, "140 x 30"),
        (voc_object("x", 20, 5, 10, 9), {}, "object 1: the box from (19, 4) to (10, 9)"),
    ],
)
def test_malformed(tmp_path: Path, objects: str, changes: dict[str, str], found: str) -> None:
    one(tmp_path, objects, **changes)
    error = error_of(tmp_path, "voc")
    assert error.startswith(f"{tmp_path}/a.xml") and found in error


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(tmp_path: Path, encoding: str) -> None:
    write_images(tmp_path, ["a.jpg"])
    bomb = '<!DOCTYPE x [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    (tmp_path / "a.xml").write_bytes(bomb.encode(encoding))
    assert error_of(tmp_path, "voc").startswith(f"{tmp_path}/a.xml: ")


def test_nothing_labeled(tmp_path: Path) -> None:
    assert f"{tmp_path}: no .xml" in error_of(tmp_path, "voc")
    assert f"{one(tmp_path, '')}: no labeled objects" in error_of(tmp_path, "voc")
