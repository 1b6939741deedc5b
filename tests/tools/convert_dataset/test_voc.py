"""Pascal VOC: coordinates, difficult objects, lists, and what is wrong with an XML."""

from pathlib import Path

import pytest
from formats.four_formats import voc_object, voc_xml, write_pictures, write_voc

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.convert_dataset.command import Options, read, read_set


def one(folder: Path, objects: str, **changes: str) -> Path:
    """A set of one picture, a.jpg of 40 x 30, its XML beside it."""
    write_pictures(folder, ["a.jpg"])
    text = voc_xml("a.jpg", objects)
    for old, new in changes.items():
        text = text.replace(f"<{old}>", new)
    (folder / "a.xml").write_text(text, encoding="utf-8")
    return folder


def sentence(folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as raised:
        read(folder, "voc", **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_pixels_are_counted_from_one(tmp_path: Path) -> None:
    one(tmp_path, voc_object("cat", 1, 1, 40, 30) + voc_object("cat", 3, 5, 3, 5))
    boxes = [row["bbox"] for row in read(tmp_path)["annotations"]]
    assert boxes == [[0, 0, 40, 30], [2, 4, 1, 1]]  # the whole picture, one pixel


def test_pixels_counted_from_zero(tmp_path: Path) -> None:
    one(tmp_path, voc_object("cat", 0, 0, 40, 30) + voc_object("cat", 10.5, 5, 20, 15))
    whole = read_set(tmp_path)
    assert "1 boxes begin at pixel 0, though VOC counts from 1" in whole.notes[0]
    assert whole.content["annotations"][0]["bbox"] == [0, 0, 40, 30]
    zero_based = read_set(tmp_path, options=Options(zero_based=True))
    assert zero_based.content["annotations"][1]["bbox"] == [10.5, 5, 9.5, 10]
    assert not zero_based.notes


def test_difficult_is_trained_on_but_ignored_by_evaluation(tmp_path: Path) -> None:
    hard = voc_object("cat", 1, 1, 9, 9, extra="<difficult>1</difficult>")
    write_voc(tmp_path)
    for name in ("a.jpg", "b.png"):
        text = voc_xml(name, voc_object("cat", 1, 1, 20, 20) + hard)
        (tmp_path / "Annotations" / f"{name[0]}.xml").write_text(text)
    whole = read_set(tmp_path)
    assert [row["iscrowd"] for row in whole.of_split("train")["annotations"]][:2] == [0, 0]
    assert [row["iscrowd"] for row in whole.of_split("val")["annotations"]] == [0, 1]
    assert sum(row.get("difficult", 0) for row in whole.content["annotations"]) == 2


def test_parts_of_persons_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    one(tmp_path, voc_object("person", 1, 1, 20, 20).replace("</object>", f"{part}</object>"))
    assert len(read(tmp_path)["annotations"]) == 1


def test_the_picture_of_an_xml(tmp_path: Path) -> None:
    one(tmp_path, voc_object("cat", 1, 1, 9, 9), filename="<filename>C:\\\\old\\\\")
    assert read(tmp_path)["images"][0]["file_name"] == "a.jpg"
    (tmp_path / "a.xml").rename(tmp_path / "0001.xml")
    assert read(tmp_path)["images"][0]["file_name"] == "a.jpg"  # by <filename>, its folder left out
    (tmp_path / "0002.xml").write_text((tmp_path / "0001.xml").read_text())
    text = sentence(tmp_path)
    assert text.startswith(
        f"{tmp_path}/0002.xml: its picture {tmp_path}/a.jpg is that of {tmp_path}"
    )


def test_lists_of_image_sets(tmp_path: Path) -> None:
    write_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "val.txt").unlink()
    (lists / "train.txt").rename(lists / "val.txt")
    (lists / "trainval.txt").write_text("b\nd e 1\n")
    (lists / "test.txt").write_text("elsewhere\n")
    whole = read_set(tmp_path)
    names = {row["id"]: row["file_name"] for row in whole.content["images"]}
    splits = {split: [names[i] for i in ids] for split, ids in whole.splits.items()}
    assert splits == {"train": ["b.png", "d e.png"], "val": ["a.jpg", "c.JPG", "d e.png"]}
    assert "test.txt was passed over: none of its entries has an XML" in whole.notes[0]
    (lists / "val.txt").write_text("a\nnone.jpg\n")
    assert f"{lists}/val.txt, line 2: no {tmp_path}/Annotations/none.xml; mend" in sentence(
        tmp_path
    )
    assert len(read(tmp_path, fix=True)["images"]) == 4


@pytest.mark.parametrize(
    ("objects", "changes", "words"),
    [
        ("<object>", {}, "a.xml, line 4: not valid XML (mismatched tag); mend it there or export"),
        ("", {"annotation": "<html>"}, "not valid XML"),
        ("<object></object>", {}, "a.xml, line 4: <object> has no <name>; name its class"),
        ("<object><name>x</name></object>", {}, "line 4: <object> has no <bndbox>; give it one wi"),
        (voc_object("x", 1, 1, "", 9), {}, 'line 5: <xmax> is ""; it must be a number'),
        (voc_object("x", "nan", 1, 9, 9), {}, 'line 5: <xmin> is "nan"; it must be a number'),
        (voc_object("x", 1, "1e99", 9, 9), {}, 'line 5: <ymin> is "1e99"; it must be a number'),
        (
            voc_object("x", 1, 1, 9, 9, extra="<difficult>yes</difficult>"),
            {},
            'line 4: <difficult> is "yes"; it must be 0 or 1',
        ),
        (
            voc_object("x", 1, 1, 9, 9),
            {"width": "<width>1"},
            "a.xml, line 3: <size> is 140 x 30, but its picture {0}/a.jpg is 40 x 30, after its",
        ),
        (
            voc_object("x", 20, 5, 10, 9),
            {},
            "line 5: the box from (19, 4) to (10, 9) in pixels has",
        ),
        ("", {}, "no class left to use: no object is labelled; look at the files"),
    ],
)
def test_malformed(tmp_path: Path, objects: str, changes: dict[str, str], words: str) -> None:
    one(tmp_path, objects, **changes)
    assert words.format(tmp_path) in sentence(tmp_path)


def test_sizes_of_nought_are_passed_over(tmp_path: Path) -> None:
    one(tmp_path, voc_object("x", 1, 1, 9, 9), width="<width>0</width><old>")
    text = (tmp_path / "a.xml").read_text().replace("</width><height>", "</old><height>")
    (tmp_path / "a.xml").write_text(text)
    assert read(tmp_path)["images"][0]["width"] == 40


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;'
)


@pytest.mark.parametrize(
    "raw",
    [
        f'<?xml version="1.0"?>{BOMB}</annotation>'.encode(),
        f'<?xml version="1.0" encoding="utf-16"?>{BOMB}</annotation>'.encode("utf-16"),
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>',
    ],
)
def test_entities_are_refused(tmp_path: Path, raw: bytes) -> None:
    write_pictures(tmp_path, ["a.jpg"])
    (tmp_path / "a.xml").write_bytes(raw)
    assert f"{tmp_path}/a.xml: has a DOCTYPE, null bytes or more than" in sentence(tmp_path)


def test_no_xml(tmp_path: Path) -> None:
    assert sentence(tmp_path) == (
        f"{tmp_path}: holds no .xml file; name the folder with VOC's Annotations"
    )
