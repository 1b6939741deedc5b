"""All formats give the same COCO boxes, splits and data sets of detectron2; which is recognised."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from coco_sets import forget_new_sets
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from formats.four_formats import CLASSES, SIZES, TRAIN, WRITERS, expected, found, write_pictures
from PIL import ExifTags, Image
from pycocotools.coco import COCO
from retinanet_plugin.tools.convert_dataset.command.reading import recognise

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.convert_dataset.command import Options, read, read_set, register


@pytest.fixture(autouse=True)
def _clean_catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with forget_new_sets():
        yield


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_boxes_from_each(tmp_path: Path, kind: str) -> None:
    folder = WRITERS[kind](tmp_path / "set")
    assert recognise(folder) == kind
    content = read(folder)
    assert content == read(str(folder), kind)
    boxes = found(content)
    for name, rows in expected().items():
        assert [label for label, _ in boxes[name]] == [label for label, _ in rows]
        for (_, mine), (_, theirs) in zip(boxes[name], rows, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-3)
    assert [row["name"] for row in content["categories"]] == CLASSES
    by_name = {Path(row["file_name"]).name: row for row in content["images"]}
    assert {name: (row["width"], row["height"]) for name, row in by_name.items()} == SIZES
    whole = read_set(folder)
    named = {row["id"]: Path(row["file_name"]).name for row in content["images"]}
    splits = {split: sorted(named[i] for i in ids) for split, ids in whole.splits.items()}
    assert splits == {"train": TRAIN, "val": ["b.png"]}
    assert all((whole.images / row["file_name"]).is_file() for row in content["images"])


@pytest.mark.parametrize("kind", WRITERS)
def test_register(tmp_path: Path, kind: str) -> None:
    folder = WRITERS[kind](tmp_path / "set")
    metadata = register("theirs", folder, split="train")
    assert metadata.thing_classes == CLASSES
    assert metadata.evaluator_type == "coco"
    records = {Path(x["file_name"]).name: x for x in DatasetCatalog.get("theirs")}
    assert sorted(records) == TRAIN
    for name, record in records.items():
        assert Path(record["file_name"]).is_file()
        assert (record["width"], record["height"]) == SIZES[name]
        rows = record["annotations"]
        assert [CLASSES[x["category_id"]] for x in rows] == [label for label, _ in expected()[name]]
        for row, (_, bbox) in zip(rows, expected()[name], strict=True):
            assert row["bbox_mode"] == BoxMode.XYWH_ABS
            assert row["bbox"] == pytest.approx(bbox, abs=1e-3)
    assert len(COCO(metadata.json_file).anns) == 5
    assert Path(metadata.json_file).is_relative_to(tmp_path / "cache")
    with pytest.raises(UserError, match='register: a data set "theirs" is registered already'):
        register("theirs", folder)
    with pytest.raises(UserError, match='split "test": the files name train, val; give that'):
        register("others", folder, split="test")
    assert "others" not in DatasetCatalog


def test_a_json_of_ones_own_is_not_replaced(tmp_path: Path) -> None:
    folder, target = WRITERS["csv"](tmp_path / "set"), tmp_path / "sub" / "all.json"
    register("first", folder, json_file=target)
    before = target.read_bytes()
    register("second", folder, json_file=target)  # the same content
    assert MetadataCatalog.get("second").json_file == str(target)
    with pytest.raises(
        UserError, match=r"all\.json: is there with another content; name another j"
    ):
        register("third", folder, split="val", json_file=target)
    assert target.read_bytes() == before
    assert [x.name for x in target.parent.iterdir()] == ["all.json"]


def test_what_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set: no such file or folder \(did you mean \"sets\"\?\)"):
        (tmp_path / "sets").mkdir()
        read(tmp_path / "set")
    with pytest.raises(UserError, match="no format recognised; needed is one of these: COCO JSON"):
        read(tmp_path / "sets")
    write_pictures(tmp_path / "sets")
    with pytest.raises(UserError, match=r"a\.jpg: a \.jpg does not tell the format; give the fold"):
        read(tmp_path / "sets" / "a.jpg")
    with pytest.raises(
        UserError, match=r'format "vok": unknown \(did you mean "voc"\?\); known: c'
    ):
        read(tmp_path / "sets", "vok")


def test_a_folder_of_two_formats(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndög\n", encoding="utf-8")
    assert recognise(tmp_path) == "voc"  # such a list lies beside VOC too
    WRITERS["csv"](tmp_path)
    with pytest.raises(UserError, match=r"several formats: csv \(.*train\.csv\), voc \(.*a\.xml\)"):
        read(tmp_path)
    assert len(read(tmp_path, "voc")["images"]) == len(read(tmp_path, "csv")["images"]) == 4
    assert len(read(tmp_path / "train.csv")["images"]) == 3


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("coco", "width and height are 40 x 30, but .* is 30 x 40, after its EXIF rotation"),
        ("voc", "line 3: <size> is 40 x 30, but .* is 30 x 40, after its EXIF rotation"),
        ("csv", r"train\.csv, line 1: .* reaches outside its picture a\.jpg \(30 x 40\)"),
    ],
)
def test_exif_rotation_counts(tmp_path: Path, kind: str, fault: str) -> None:
    folder = WRITERS[kind](tmp_path / "set")
    picture = next(folder.rglob("a.jpg"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 40)).save(picture, exif=exif)  # lying: it is shown as 40 x 30
    assert found(read(folder))["a.jpg"] == expected()["a.jpg"]
    Image.new("RGB", (40, 30)).save(picture, exif=exif)
    with pytest.raises(UserError, match=fault):
        read(folder)


@pytest.mark.parametrize("kind", WRITERS)
def test_absent_and_unreadable_pictures(tmp_path: Path, kind: str) -> None:
    folder = WRITERS[kind](tmp_path / "set")
    next(folder.rglob("a.jpg")).write_bytes(b"no picture")
    if kind != "yolo":  # whose pictures are those of the folder
        next(folder.rglob("d e.png")).unlink()
    with pytest.raises(UserError) as raised:
        read(folder)
    assert "a.jpg cannot be read as a picture" in str(raised.value)
    assert ("(1 more like it)" in str(raised.value)) == (kind != "yolo")
    assert str(raised.value).endswith(
        "; mend it, or give --fix (fix=True in Python), which leaves such pictures out"
    )
    mended = read_set(folder, options=Options(fix=True))
    assert "a.jpg" not in found(mended.content)
    assert any(note.startswith("pictures left out: ") for note in mended.notes)


@pytest.mark.parametrize("kind", WRITERS)
def test_boxes_outside_and_empty(tmp_path: Path, kind: str) -> None:
    folder = WRITERS[kind](tmp_path / "set")
    if kind == "coco":
        file = folder / "annotations" / "instances_train2017.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"] = [20, 10, 60, 10]
        content["annotations"][1]["bbox"] = [5, 5, 0, 3]
        file.write_text(json.dumps(content))
        where = "instances_train2017.json: annotations[1]"
    elif kind == "voc":
        file = folder / "Annotations" / "a.xml"
        text = file.read_text(encoding="utf-8").replace("<xmin>1<", "<xmin>21<")
        text = text.replace("<ymin>1<", "<ymin>11<").replace("<ymax>30<", "<ymax>20<")
        text = text.replace("<xmax>40<", "<xmax>80<").replace("<xmax>15<", "<xmax>5<")
        file.write_text(text, encoding="utf-8")
        where = "a.xml, line 5: the box from (20, 10) to (80, 20) in pixels reaches outside"
    elif kind == "yolo":
        file = folder / "labels" / "train" / "a.txt"
        file.write_text("1 1.25 0.5 1.5 0.333333\n0 0.2 0.2 0 0.1\n")
        where = "a.txt, line 1: the box from (20, 10) to (80, 20) in pixels reaches outside"
    else:
        file = folder / "train.csv"
        text = file.read_text(encoding="utf-8").replace("0,0,40,30", "20,10,80,20")
        file.write_text(text.replace("5,4,15,12", "5,4,5,12"), encoding="utf-8")
        where = "train.csv, line 1: the box from (20, 10) to (80, 20) in pixels reaches outside"
    with pytest.raises(UserError) as raised:
        read(folder)
    assert where in str(raised.value)
    assert "give --fix (fix=True in Python)" in str(raised.value)
    mended = read_set(folder, options=Options(fix=True))
    assert found(mended.content)["a.jpg"] == [("dög", pytest.approx([20, 10, 20, 10], abs=1e-3))]
    assert "boxes dropped: 1" in " ".join(mended.notes)


@pytest.mark.parametrize("name", ["a\x1b[31mred", "c" * 251, "left \u202e right"])
def test_names_that_training_would_refuse(tmp_path: Path, name: str) -> None:
    """A terminal would obey them; the COCO JSON is not written only to be refused."""
    write_pictures(tmp_path / "images")
    (tmp_path / "boxes.csv").write_text(f"images/a.jpg,1,1,9,9,{name}\n", encoding="utf-8")
    must = "it must be a text that is not empty, without line breaks and other control"
    with pytest.raises(UserError, match=rf'csv, line 1: class name is ".*"; {must}') as error:
        read(tmp_path / "boxes.csv")
    assert str(error.value).isprintable()
    (tmp_path / "names.txt").write_text(f"cat\n{name}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf'names\.txt: class 1: name is ".*"; {must}'):
        read(tmp_path / "boxes.csv", classes=tmp_path / "names.txt")


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
@pytest.mark.parametrize("name", [b"a\nb.png", b"\xfc.png"])  # the latter is no UTF-8
def test_names_of_pictures_that_training_would_refuse(tmp_path: Path, name: bytes) -> None:
    folder = WRITERS["yolo"](tmp_path / "set")
    pictures = os.fsencode(folder / "images" / "train")
    os.replace(pictures + b"/a.jpg", pictures + b"/" + name)
    with pytest.raises(UserError, match=r'file_name is ".*"; it must be a text .*--fix') as error:
        read(folder)
    assert str(error.value).isprintable()
    assert sorted(found(read(folder, fix=True))) == ["b.png", "c.JPG", "d e.png"]


def test_classes_that_a_file_fixes(tmp_path: Path) -> None:
    folder = WRITERS["voc"](tmp_path / "set")
    names = tmp_path / "names.txt"
    names.write_text("dög\ncow\ncat\n", encoding="utf-8")
    content = read(folder, classes=names)
    assert [row["name"] for row in content["categories"]] == ["dög", "cow", "cat"]
    assert found(content) == {name: expected()[name] for name in found(content)}
    names.write_text("dög\ncats\n", encoding="utf-8")
    with pytest.raises(UserError, match=r'a\.xml, line 7: unknown class "cat" \(did you mean "cat'):
        read(folder, classes=names)
    names.write_text("cat\ncat\n")
    with pytest.raises(UserError, match=r'names\.txt: class "cat" comes twice; give each class a'):
        read(folder, classes=names)
    with pytest.raises(UserError, match="a COCO JSON declares its own"):
        read(WRITERS["coco"](tmp_path / "coco"), classes=names)
