"""keras-retinanet's CSV: paths, class lists, headers, and malformed rows."""

from pathlib import Path

import pytest
from four_formats import boxes_of, csv_rows, error_of, expected, read, write_csv, write_images

from retinanet_plugin.tools.convert_dataset import read_dataset


def one(folder: Path, text: str) -> Path:
    """A CSV of one image, a.jpg of 40 x 30."""
    write_images(folder / "images", ["a.jpg"])
    (folder / "boxes.csv").write_text(text, encoding="utf-8")
    return folder / "boxes.csv"


def test_paths_are_relative_to_the_csv_or_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    rows = f"images/a.jpg,0,0,4,4,cat\n{tmp_path}/images/a.jpg,1,1,5,5,cat\nimages\\a.jpg,,,,,\n"
    content = read(one(tmp_path, rows))
    assert len(content["images"]) == 1
    assert [row["bbox"] for row in content["annotations"]] == [[0, 0, 4, 4], [1, 1, 4, 4]]
    file = one(tmp_path, "a.jpg,0,0,4,4,cat\n")
    assert "--images" in error_of(file)
    assert read(file, images=tmp_path / "images")["images"][0]["width"] == 40


def test_class_list(tmp_path: Path) -> None:
    classes = write_csv(tmp_path) / "classes.csv"
    classes.write_text("dög,0\ncow,2\ncat,1\n", encoding="utf-8")
    (tmp_path / "results.csv").write_text("epoch,loss\n1,0.5\n")  # skipped
    dataset = read_dataset(tmp_path)
    assert [row["name"] for row in dataset.content["categories"]] == ["dög", "cat", "cow"]
    assert "results.csv" in dataset.notes[0] and str(classes) in dataset.notes[1]
    assert read(tmp_path / "train.csv")["categories"] == dataset.content["categories"]
    classes.write_text("dog,0\ncat,1\n")
    error = error_of(tmp_path)
    assert "train.csv, line 1" in error and '"dog"' in error
    classes.write_text("dög,0\ncat,0\n", encoding="utf-8")
    assert "classes.csv, line 2" in error_of(tmp_path)
    classes.unlink()
    assert [row["name"] for row in read(tmp_path)["categories"]] == ["cat", "dög"]  # sorted


def test_header(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a.jpg"])
    rows = csv_rows(["a.jpg"]).splitlines()
    cells = [row.split(",") for row in rows]
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    text = "".join(f"{p},40,30,{c},{x1},{y1},{x2},{y2}\n" for p, x1, y1, x2, y2, c in cells)
    for content in (header + text, "Path,X1,Y1,X2,Y2,Class\n" + "\n".join(rows)):
        one(tmp_path, content)
        assert boxes_of(read(tmp_path))["a.jpg"] == expected()["a.jpg"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("images/a.jpg,1,2,3,4", "5 cells"),
        ("images/a.jpg;1;2;3;4;cat", "1 cells"),
        (",1,2,3,4,cat", "path"),
        ("images/a.jpg,1,2,3,4,", "class"),
        ("images/a.jpg,1,2,,4,cat", 'x2 is ""'),
        ("images/a.jpg,1,two,3,4,cat", 'y1 is "two"'),
        ("images/a.jpg,5,2,3,4,cat", "(5, 2) to (3, 4)"),
        ("images/z.jpg,1,2,3,4,cat", "images/z.jpg"),
        ('images/a.jpg,1,2,3,4,"cat', "CSV"),
    ],
)
def test_malformed_rows(tmp_path: Path, row: str, found: str) -> None:
    file = one(tmp_path, f"images/a.jpg,0,0,4,4,cat\n{row}\n")
    assert error_of(file).startswith(f"{file}, line 2: ")
    assert found in error_of(file)


def test_no_csv(tmp_path: Path) -> None:
    file = one(tmp_path, "")
    assert f"{file}: " in error_of(file)
    file.write_bytes("images/a.jpg,0,0,4,4,dög".encode("latin-1"))
    assert f"{file}: byte 22" in error_of(file)
    assert f"{tmp_path}/images: " in error_of(tmp_path / "images", "csv")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_delimiters_of_spreadsheets(tmp_path: Path, delimiter: str) -> None:
    write_csv(tmp_path)
    content = read(tmp_path)
    for file in tmp_path.rglob("*.csv"):
        text = "\ufeff" + file.read_text(encoding="utf-8").replace(",", delimiter)
        file.write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "classes.csv").write_text(f"cat{delimiter}0\ndög{delimiter}1\n", encoding="utf-8")
    assert read(tmp_path) == content
