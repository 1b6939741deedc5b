"""tools.convert_dataset: files that train as they are, a split kept or made, nothing replaced."""

import json
import shutil
from pathlib import Path

import pytest
from coco_sets import forget_new_sets
from detectron2.data import DatasetCatalog
from formats.four_formats import CLASSES, WRITERS, expected, found
from PIL import Image
from retinanet_plugin.tools.convert_dataset.command.command import main

from retinanet_plugin.config import get_config
from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.errors import UserError


def convert(*words: object) -> None:
    main([str(word) for word in words])


def load(file: Path) -> dict[str, object]:
    return json.loads(file.read_text(encoding="utf-8"))


def many(folder: Path, count: int = 40) -> Path:
    """A CSV of pictures, each with one of the first class, every fourth with one of the other."""
    (folder / "p").mkdir(parents=True)
    rows = []
    for i in range(count):
        Image.new("RGB", (20, 10)).save(folder / "p" / f"{i}.png")
        rows.append(f"p/{i}.png,0,0,5,5,cat\n")
        rows += [f"p/{i}.png,2,2,{7 + i % 5},9,dog\n"] if i % 4 == 0 else []
    (folder / "boxes.csv").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("kind", WRITERS)
def test_from_a_folder_to_registered_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    source, out = WRITERS[kind](tmp_path / "their set"), tmp_path / "out"
    convert(source, out)
    said = capsys.readouterr().out
    assert f"format: {kind}, recognised from the files of {source}" in said
    assert "split: the set's own (train, val), kept" in said
    assert f"tools.train --config-file {out}/config.yaml" in said
    assert f"tools.check_dataset --config-file {out}/config.yaml" in said
    assert sorted(x.name for x in out.iterdir()) == ["config.yaml", "train.json", "val.json"]
    boxes = found(load(out / "train.json")) | found(load(out / "val.json"))
    assert {name: [label for label, _ in rows] for name, rows in boxes.items()} == {
        name: [label for label, _ in rows] for name, rows in expected().items()
    }
    cfg = get_config(out / "config.yaml")
    with forget_new_sets():
        register_own_datasets(cfg)
        assert cfg.MODEL.RETINANET.NUM_CLASSES == len(CLASSES)
        records = DatasetCatalog.get("own_train")
        assert len(records) == 3
        assert all(Path(record["file_name"]).is_file() for record in records)
        assert len(DatasetCatalog.get("own_test")) == 1


def test_a_new_split_keeps_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = many(tmp_path / "set")
    convert(source, tmp_path / "a", "--val", "0.25")
    train, val = (load(tmp_path / "a" / f"{x}.json") for x in ("train", "val"))
    assert (len(train["images"]), len(val["images"])) == (30, 10)
    names = [{row["file_name"] for row in part["images"]} for part in (train, val)]
    assert not names[0] & names[1]
    labels = [label for rows in found(val).values() for label, _ in rows]
    assert labels.count("cat") == 10
    assert labels.count("dog") in (2, 3)
    assert "| dog | 8 | 2 |" in (said := capsys.readouterr().out) or "| dog | 7 | 3 |" in said
    convert(source, tmp_path / "b", "--val", "0.25")
    convert(source, tmp_path / "c", "--val", "0.25", "--seed", "2")
    texts = [(tmp_path / x / "val.json").read_bytes() for x in "abc"]
    assert texts[0] == texts[1] != texts[2]
    convert(source, tmp_path / "d", "--val", "0")
    assert sorted(x.name for x in (tmp_path / "d").iterdir()) == ["config.yaml", "train.json"]
    assert not get_config(tmp_path / "d" / "config.yaml").DATASETS.OWN.TEST_JSON


def test_a_set_split_anew(tmp_path: Path) -> None:
    source = WRITERS["coco"](tmp_path / "set")
    convert(source, tmp_path / "out", "--resplit", "--val", "0.5")
    parts = [load(tmp_path / "out" / f"{x}.json") for x in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [2, 2]
    assert found(parts[0]) | found(parts[1]) == expected()
    ids = [row["id"] for part in parts for row in part["annotations"]]
    assert len(set(ids)) == len(ids) == 6


def test_pictures_copied(tmp_path: Path) -> None:
    source, out = WRITERS["voc"](tmp_path / "set"), tmp_path / "out"
    convert(source, out, "--copy")
    pixels = (source / "JPEGImages" / "a.jpg").read_bytes()
    assert (out / "pictures" / "a.jpg").read_bytes() == pixels
    shutil.rmtree(source)
    with forget_new_sets():
        register_own_datasets(get_config(out / "config.yaml"))


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    source, out = WRITERS["csv"](tmp_path / "set"), tmp_path / "out"
    convert(source, out)
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UserError, match=r"OUT: .* already holds config\.yaml; give another fold"):
        convert(source, out, "--fix")
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    del before[out / "config.yaml"]
    (out / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"OUT: .* already holds train\.json, val\.json; give ano"):
        convert(source, out, "--fix")
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    convert(source, out, "--overwrite", "--base", "retinanet_R50_FPN_1x.yaml")
    cfg = get_config(out / "config.yaml")
    assert not cfg.MODEL.FPN.NORM
    assert cfg.MODEL.WEIGHTS
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.01 * cfg.SOLVER.IMS_PER_BATCH / 16)


def test_a_base_of_ones_own_is_found_from_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = WRITERS["csv"](tmp_path / "set")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("VERSION: 2\nSOLVER: {MOMENTUM: 0.77}\n")
    monkeypatch.chdir(tmp_path)
    convert(source, Path("out"), "--base", "mine/config.yaml")
    assert get_config("out/config.yaml").SOLVER.MOMENTUM == 0.77
    convert(source, Path("out"), "--overwrite", "--base", "quickstart.yaml")
    monkeypatch.chdir(tmp_path.parent)
    assert get_config(tmp_path / "out" / "config.yaml").MODEL.RETINANET.FOCAL_LOSS_GAMMA == 1.0


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--base", "none.yaml"], "no file none.yaml"),
        (["--format", "voc"], "holds no .xml file"),
        (["--images", "nowhere"], "no picture"),
        (["--classes", "nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, words: list[str], fault: str) -> None:
    source = many(tmp_path / "set", 4)
    with pytest.raises(UserError, match=fault):
        convert(source, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_one_picture(tmp_path: Path) -> None:
    source = many(tmp_path / "set", 1)
    with pytest.raises(UserError, match="--val: only one picture, which cannot be split; give --v"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", "--val", "0")


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for share in ("1", "-0.1", "some"):
        with pytest.raises(SystemExit):
            convert("set", "out", "--val", share)
        assert f"'{share}' given; give a share from 0 to below 1" in capsys.readouterr().err
