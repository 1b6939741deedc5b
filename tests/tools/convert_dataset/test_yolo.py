"""YOLO: data.yaml and what it leads to, rows of all kinds, and what is wrong with them."""

from pathlib import Path

import pytest
from formats.four_formats import found, write_pictures, write_yolo
from retinanet_plugin.tools.convert_dataset.command.reading import recognise
from retinanet_plugin.tools.convert_dataset.command.yolo import label_file

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.convert_dataset.command import read, read_set


def one(folder: Path, rows: str, extra: str = "") -> Path:
    """A set of one picture, a.jpg of 40 x 30."""
    write_pictures(folder / "images", ["a.jpg"])
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text(rows)
    (folder / "data.yaml").write_text(f"train: images\nnames: [cat, dog]\n{extra}")
    return folder


def sentence(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as raised:
        read(path, "yolo", **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def splits_of(path: Path) -> dict[str, list[str]]:
    whole = read_set(path)
    names = {row["id"]: Path(row["file_name"]).name for row in whole.content["images"]}
    return {split: [names[i] for i in ids] for split, ids in whole.splits.items()}


def test_where_labels_are() -> None:
    for picture, labels in {
        "/d/images/train/a.jpg": "/d/labels/train/a.txt",
        "/images/d/train/images/a.b.PNG": "/images/d/train/labels/a.b.txt",
        "/d/obj_train_data/a.jpg": "/d/obj_train_data/a.txt",
        "/d/images.jpg": "/d/images.txt",
    }.items():
        assert label_file(Path(picture)) == Path(labels)


def test_rows_of_all_kinds(tmp_path: Path) -> None:
    rows = [
        "1 0.5 0.5 0.5 0.2",
        "",
        "0 0.1 0.2 0.5 0.1 0.3 0.9",  # a polygon
        "0 0.25 0.1 0.5 0.5 0.25 0.9 0.0 0.5",  # a rotated box
        "1.0 1 1 0.1 0.1",  # half outside: clipped, though only by --fix
    ]
    one(tmp_path, "\n".join(rows))
    assert "line 5: the box from (38, 28.5) to (42, 31.5) in pixels reaches out" in sentence(
        tmp_path
    )
    boxes = [
        (label, pytest.approx(box, abs=1e-3))
        for label, box in found(read(tmp_path, fix=True))["a.jpg"]
    ]
    assert boxes == [
        ("dog", [10, 12, 20, 6]),
        ("cat", [4, 3, 16, 24]),
        ("cat", [0, 3, 20, 24]),
        ("dog", [38, 28.5, 2, 1.5]),
    ]
    one(tmp_path, "0 0.5 0.5 0.5 0.2 0.4 0.4 2 0.6 0.6 0\n", "kpt_shape: [2, 3]\n")
    assert found(read(tmp_path))["a.jpg"][0][1] == pytest.approx([10, 12, 20, 6])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            "2 0.5 0.5 0.1 0.1",
            "a.txt, line 2: class 2 given, but {0}/data.yaml names 2; give 0 to 1",
        ),
        ("-1 0.5 0.5 0.1 0.1", "line 2: class -1 given"),
        ("0.5 0.5 0.5 0.1 0.1", "line 2: class 0.5 given"),
        ("cat 0.5 0.5 0.1 0.1", 'line 2: the class is "cat"; it must be a number'),
        ("0 0.5 x 0.1 0.1", 'line 2: a coordinate is "x"; it must be a number'),
        ("0 0.5 inf 0.1 0.1", 'line 2: a coordinate is "inf"; it must be a number'),
        ("0 0.5 0.5 0.1", "line 2: 4 values; give class x y width height, or class and the x y of"),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2: 6 values; give class x y width height, or class and"),
        (
            "0 20 15 10 4",
            "line 2: 20 given; coordinates are shares of the picture's width and heig",
        ),
        ("0 0.5 0.5 -0.1 0.1", "line 2: a width or height below 0; give shares from 0 to 1"),
        ("0 0.5 0.5 0 0.1", "line 2: the box from (20, 13.5) to (20, 16.5) in pixels has no width"),
    ],
)
def test_malformed_rows(tmp_path: Path, row: str, words: str) -> None:
    one(tmp_path, f"0 0.5 0.5 0.1 0.1\n{row}\n")
    assert f"{tmp_path}/labels/" in sentence(tmp_path)
    assert words.format(tmp_path) in sentence(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images\nnames: [cat, cat]\n", 'class "cat" comes twice; give each class a name o'),
        ("train: images\nnames: {0: cat, 2: dog}\n", 'the keys of "names" must be 0 to 1, each on'),
        ("train: images\nnames: 5\n", '"names" must list the classes, as in names: [cat, dog]'),
        ("train: images\nnames: [[cat]]\n", '"names" holds more than texts; write names: [cat,'),
        ("train: image\nnames: [cat]\n", 'train is "image", but there is no {0}/image (did you me'),
        ("train: 5\nnames: [cat]\n", "train must be a folder, a list file, or a list of them"),
        ("train: data.yaml\nnames: [cat]\n", 'train is "data.yaml"; give a folder or a .txt list'),
        ("train: images\nnames: [cat, dog]\nkpt_shape: 3\n", "kpt_shape must be two whole numbers"),
        ("train: !!python/object/apply:os.system [exit]\nnames: [a]\n", "only plain YAML is read"),
        ("a: &a [x]\ntrain: &b [*b]\nnames: [cat]\n", "an alias stands within what it repeats"),
    ],
)
def test_malformed_yaml(tmp_path: Path, text: str, words: str) -> None:
    one(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    file = tmp_path / "data.yaml"
    file.write_text(text)
    assert sentence(file).startswith(f"{file}: ")
    assert words.format(tmp_path) in sentence(file)


def test_names_by_index(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    text = (tmp_path / "data.yaml").read_text().split("\nnames")[0]
    (tmp_path / "data.yaml").write_text(f"{text}\nnames: {{1: b, 0: a}}\n")
    assert [row["name"] for row in read(tmp_path)["categories"]] == ["a", "b"]


def test_lists_of_files_and_lists_of_folders(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    names = 'names: ["cat", "dog"]\n'
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\n\nimages\\train\\c.JPG\n")
    (tmp_path / "data.yaml").write_text(
        f"train: list.txt\nval: [images/val, images/train]\n{names}"
    )
    assert splits_of(tmp_path) == {
        "train": ["a.jpg", "c.JPG"],
        "val": ["a.jpg", "c.JPG", "b.png", "d e.png"],
    }
    (tmp_path / "list.txt").write_text("images/train/a.jpg\nimages/train/z.jpg\n")
    assert f"{tmp_path}/list.txt, line 2: no picture {tmp_path}/images/train/z.jpg" in sentence(
        tmp_path
    )


def test_roboflows_paths(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for split, new in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (tmp_path / new).mkdir(exist_ok=True)
            (tmp_path / kind / split).rename(tmp_path / new / kind)
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat, dog]\n"
    (tmp_path / "data.yaml").write_text(text)
    expected = {"train": ["a.jpg", "c.JPG", "d e.png"], "val": ["b.png"]}
    assert splits_of(tmp_path) == expected
    # Without it, folders tell the splits, and a list the classes
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "images").rmdir()
    assert recognise(tmp_path) == "yolo"
    assert f"{tmp_path}: no data.yaml that names classes, and no classes.t" in sentence(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert splits_of(tmp_path) == expected


def test_a_yaml_that_names_classes_only(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    assert splits_of(tmp_path) == {"train": ["a.jpg", "c.JPG", "d e.png"], "val": ["b.png"]}
    (tmp_path / "data.yaml").write_text("names: [cat, dog\n")
    assert f"{tmp_path}/data.yaml: not valid YAML" in sentence(tmp_path)


def test_labels_without_a_picture_and_pictures_without_labels(tmp_path: Path) -> None:
    one(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels" / "z.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert (
        f"1 label files have no picture, such as {tmp_path}/labels/z.txt"
        in read_set(tmp_path).notes
    )
    (tmp_path / "labels" / "a.txt").unlink()
    assert f"{tmp_path}/labels/a.txt: no such file, nor one for any other" in sentence(tmp_path)
