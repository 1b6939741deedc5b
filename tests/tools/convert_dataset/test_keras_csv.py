"""keras-retinanet's CSV: paths, empty rows, class mapping, headers, and what is wrong with rows."""

from pathlib import Path

import pytest
from formats.four_formats import csv_rows, expected, found, write_csv, write_pictures
from retinanet_plugin.tools.convert_dataset.command.reading import recognise

from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.convert_dataset.command import read, read_set


def sentence(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as raised:
        read(path, "csv", **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def one(folder: Path, text: str) -> Path:
    write_pictures(folder / "images", ["a.jpg"])
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
    (tmp_path / "boxes.csv").write_text("a.jpg,0,0,4,4,cat\n")
    assert "no picture" in sentence(tmp_path / "boxes.csv")
    assert read(tmp_path / "boxes.csv", images=tmp_path / "images")["images"][0]["width"] == 40


def test_the_class_mapping(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "classes.csv").write_text("dög,0\ncow,2\ncat,1\n", encoding="utf-8")
    whole = read_set(tmp_path)
    assert [row["name"] for row in whole.content["categories"]] == ["dög", "cat", "cow"]
    assert whole.notes == (f"classes and their order from {tmp_path}/classes.csv",)
    assert read(tmp_path / "train.csv")["categories"] == whole.content["categories"]
    (tmp_path / "classes.csv").write_text("dog,0\ncat,1\n")
    assert 'train.csv, line 1: unknown class "dög" (did you mean "dog"?); known: "dog", "cat"' in (
        sentence(tmp_path)
    )
    (tmp_path / "classes.csv").write_text("dög,0\ncat,0\n", encoding="utf-8")
    assert "classes.csv, line 2: index 0 is taken; give each its own" in sentence(tmp_path)
    (tmp_path / "classes.csv").unlink()
    assert [row["name"] for row in read(tmp_path)["categories"]] == ["cat", "dög"]  # sorted


def test_other_csvs_are_passed_over(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "results.csv").write_text("epoch,loss\n1,0.5\n")
    whole = read_set(tmp_path)
    assert f"passed over: {tmp_path}/results.csv" in whole.notes
    assert len(whole.content["images"]) == 4


def test_a_header_tells_the_columns(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["a.jpg"])
    rows = csv_rows(["a.jpg"]).splitlines()
    cells = [row.split(",") for row in rows]
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    text = "".join(f"{p},40,30,{c},{x1},{y1},{x2},{y2}\n" for p, x1, y1, x2, y2, c in cells)
    file = one(tmp_path, header + text)
    assert recognise(tmp_path) == "csv"
    assert found(read(file))["a.jpg"] == expected()["a.jpg"]
    one(tmp_path, "Path,X1,Y1,X2,Y2,Class\n" + "\n".join(rows))
    assert found(read(file))["a.jpg"] == expected()["a.jpg"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("images/a.jpg,1,2,3,4", '5 cells in "images/a.jpg,1,2,3,4"; give 6, separated by commas'),
        ("images/a.jpg;1;2;3;4;cat", "line 2: 1 cells in"),
        (",1,2,3,4,cat", "line 2: no path of a picture; write it into the first cell"),
        ("images/a.jpg,1,2,3,4,", "line 2: a box without a class; name it in the last cell"),
        ("images/a.jpg,1,2,,4,cat", 'line 2: x2 is ""; it must be a number'),
        ("images/a.jpg,1,two,3,4,cat", 'line 2: y1 is "two"; it must be a number'),
        ("images/a.jpg,5,2,3,4,cat", "line 2: the box from (5, 2) to (3, 4) in pixels has no wid"),
        ("images/a.jpg,5,2,300,4,cat", "reaches outside its picture a.jpg (40 x 30); mend it, or"),
        ("images/a.jpg,-5,2,30,4,cat", "line 2: the box from (-5, 2) to (30, 4) in pixels reaches"),
        (
            "images/z.jpg,1,2,3,4,cat",
            "line 2: no picture {0}/images/z.jpg (--images, or images= in",
        ),
        ('images/a.jpg,1,2,3,4,"cat', "line 2: not valid CSV (unexpected end of data); mend it th"),
    ],
)
def test_malformed(tmp_path: Path, row: str, words: str) -> None:
    file = one(tmp_path, f"images/a.jpg,0,0,4,4,cat\n{row}\n")
    assert sentence(file).startswith(f"{file}, line 2: ")
    assert words.format(tmp_path) in sentence(file)


def test_no_text(tmp_path: Path) -> None:
    file = one(tmp_path, "")
    assert f"{file}: the file is empty; write a row path,x1,y1,x2,y2,class" in sentence(file)
    file.write_bytes("images/a.jpg,0,0,4,4,dög".encode("latin-1"))
    assert f"{file}: byte 22 is not UTF-8 text; save the file in UTF-8" in sentence(file)
    assert "holds no CSV of path,x1,y1,x2,y2,class" in sentence(tmp_path / "images")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_what_a_spreadsheet_writes(tmp_path: Path, delimiter: str) -> None:
    write_csv(tmp_path)
    expected = read(tmp_path)
    for file in tmp_path.rglob("*.csv"):
        text = "\ufeff" + file.read_text(encoding="utf-8").replace(",", delimiter)
        file.write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "classes.csv").write_text(f"cat{delimiter}0\ndög{delimiter}1\n", encoding="utf-8")
    assert read(tmp_path) == expected


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_folder_whose_only_csv_is_no_utf8(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "boxes.csv").write_bytes("a.jpg,1,2,3,4,dög\n".encode(encoding))
    with pytest.raises(UserError, match=r"boxes\.csv: byte .* save the file in UTF-8"):
        read(tmp_path)
