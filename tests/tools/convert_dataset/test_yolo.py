"""YOLO: data.yaml and what it names, rows of all kinds, and malformed ones."""

from pathlib import Path

import pytest
from four_formats import boxes_of, error_of, read, splits_of, write_images, write_yolo

from retinanet_plugin.tools.convert_dataset import read_dataset
from retinanet_plugin.tools.convert_dataset.formats import format_of
from retinanet_plugin.tools.convert_dataset.yolo import label_file


def one(folder: Path, rows: str, extra: str = "") -> Path:
    """A dataset of one image, a.jpg of 40 x 30."""
    write_images(folder / "images", ["a.jpg"])
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text(rows)
    (folder / "data.yaml").write_text(f"train: images\nnames: [cat, dog]\n{extra}")
    return folder


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/train/images/a.b.PNG", "/images/d/train/labels/a.b.txt"),
        ("/d/obj_train_data/a.jpg", "/d/obj_train_data/a.txt"),
        ("/d/images.jpg", "/d/images.txt"),
    ],
)
def test_label_file(image: str, labels: str) -> None:
    assert label_file(Path(image)) == Path(labels)


def test_rows_of_all_kinds(tmp_path: Path) -> None:
    rows = [
        "1 0.5 0.5 0.5 0.2",
        "",
        "0 0.1 0.2 0.5 0.1 0.3 0.9",  # a polygon
        "0 0.25 0.1 0.5 0.5 0.25 0.9 0.0 0.5",  # a rotated box
        "1.0 1 1 0.1 0.1",  # half outside: clipped, but only with fix
    ]
    one(tmp_path, "\n".join(rows))
    assert "a.txt, line 5: the box from (38, 28.5) to (42, 31.5)" in error_of(tmp_path)
    assert boxes_of(read(tmp_path, fix=True))["a.jpg"] == [
        ("dog", [10, 12, 20, 6]),
        ("cat", [4, 3, 16, 24]),
        ("cat", [0, 3, 20, 24]),
        ("dog", [38, 28.5, 2, 1.5]),
    ]
    one(tmp_path, "0 0.5 0.5 0.5 0.2 0.4 0.4 2 0.6 0.6 0\n", "kpt_shape: [2, 3]\n")
    assert boxes_of(read(tmp_path))["a.jpg"] == [("cat", [10, 12, 20, 6])]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("cat 0.5 0.5 0.1 0.1", 'class is "cat"'),
        ("0 0.5 inf 0.1 0.1", 'coordinate is "inf"'),
        ("0 0.5 0.5 0.1", "4 values"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 values"),
        ("0 20 15 10 4", "20"),
        ("0 0.5 0.5 -0.1 0.1", "width"),
        ("0 0.5 0.5 0 0.1", "the box from (20, 13.5) to (20, 16.5)"),
    ],
)
def test_malformed_rows(tmp_path: Path, row: str, found: str) -> None:
    one(tmp_path, f"0 0.5 0.5 0.1 0.1\n{row}\n")
    error = error_of(tmp_path)
    assert error.startswith(f"{tmp_path}/labels/a.txt, line 2: ") and found in error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train: images\nnames: [cat, cat]\n", '"cat"'),
        ("train: images\nnames: {0: cat, 2: dog}\n", '"names"'),
        ("train: images\nnames: [[cat]]\n", '"names"'),
        ("train: image\nnames: [cat]\n", 'train is "image"'),
        ("train: 5\nnames: [cat]\n", "train is 5"),
        ("train: data.yaml\nnames: [cat]\n", 'train is "data.yaml"'),
        ("train: !!python/object/apply:os.system [exit]\nnames: [a]\n", "YAML"),
    ],
)
def test_malformed_yaml(tmp_path: Path, text: str, found: str) -> None:
    file = one(tmp_path, "0 0.5 0.5 0.1 0.1\n") / "data.yaml"
    file.write_text(text)
    error = error_of(file)
    assert error.startswith(f"{file}: ") and found in error


def test_names_by_index(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: {1: b, 0: a}\n")  # folders tell the splits
    assert [row["name"] for row in read(tmp_path)["categories"]] == ["a", "b"]
    assert splits_of(tmp_path) == {"train": ["a.jpg", "c.JPG", "d e.png"], "val": ["b.png"]}


def test_lists_of_files_and_lists_of_folders(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\n\nimages\\train\\c.JPG\n")
    (tmp_path / "data.yaml").write_text(
        "train: list.txt\nval: [images/val, images/train]\nnames: [cat, dog]\n"
    )
    assert splits_of(tmp_path) == {
        "train": ["a.jpg", "c.JPG"],
        "val": ["a.jpg", "b.png", "c.JPG", "d e.png"],
    }
    (tmp_path / "list.txt").write_text("images/train/a.jpg\nimages/train/z.jpg\n")
    error = error_of(tmp_path)
    assert f"{tmp_path}/list.txt, line 2" in error and "images/train/z.jpg" in error


def test_paths_of_roboflow(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for split, new in (("train", "train"), ("val", "valid")):
        for folder in ("images", "labels"):
            (tmp_path / new).mkdir(exist_ok=True)
            (tmp_path / folder / split).rename(tmp_path / new / folder)
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat, dog]\n"
    (tmp_path / "data.yaml").write_text(text)
    expected = {"train": ["a.jpg", "c.JPG", "d e.png"], "val": ["b.png"]}
    assert splits_of(tmp_path) == expected
    # Without data.yaml, folders tell the splits and a list the classes
    (tmp_path / "data.yaml").unlink()
    assert format_of(tmp_path) == "yolo"
    assert "--classes" in error_of(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert splits_of(tmp_path) == expected


def test_labels_without_image_and_images_without_labels(tmp_path: Path) -> None:
    one(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels" / "z.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert f"{tmp_path}/labels/z.txt" in read_dataset(tmp_path).notes[0]
    (tmp_path / "labels" / "a.txt").unlink()
    assert f"{tmp_path}/labels/a.txt" in error_of(tmp_path)
