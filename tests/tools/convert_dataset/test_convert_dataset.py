"""``retinanet convert-dataset``: output ready to train on, splits, and no overwriting."""

import json
from pathlib import Path
from typing import Any

import pytest
from coco_sets import forget_new_sets
from detectron2.data import DatasetCatalog
from four_formats import CLASSES, SIZES, TRAIN, WRITERS, boxes_of, expected
from PIL import Image

from retinanet_plugin.config import get_config
from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.errors import UserError
from retinanet_plugin.tools.convert_dataset.command import main


def convert(source: Path, output: Path, *args: object) -> None:
    main([str(source), "--output", str(output), *map(str, args)])


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def many(folder: Path, count: int = 40) -> Path:
    """A CSV of images, each with a box of one class, every fourth with one of another."""
    (folder / "p").mkdir(parents=True)
    rows = []
    for i in range(count):
        Image.new("RGB", (20, 10)).save(folder / "p" / f"{i}.png")
        rows.append(f"p/{i}.png,0,0,5,5,cat\n")
        rows += [f"p/{i}.png,2,2,{7 + i % 5},9,dog\n"] if i % 4 == 0 else []
    (folder / "boxes.csv").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("format", WRITERS)
def test_from_a_folder_to_registered_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    source, out = WRITERS[format](tmp_path / "their set"), tmp_path / "out"
    convert(source, out)
    printed = capsys.readouterr().out
    assert f"format: {format}\n" in printed
    for command in ("check-dataset", "anchors", "train"):
        assert f"retinanet {command} --config-file {out}/config.yaml\n" in printed
    assert sorted(x.name for x in out.iterdir()) == ["config.yaml", "train.json", "val.json"]
    train, val = (load(out / f"{split}.json") for split in ("train", "val"))
    assert boxes_of(train) | boxes_of(val) == expected()
    assert sorted(boxes_of(train)) == TRAIN
    assert [row["name"] for row in train["categories"]] == CLASSES
    images = train["images"] + val["images"]
    assert {Path(x["file_name"]).name: (x["width"], x["height"]) for x in images} == SIZES
    cfg = get_config(out / "config.yaml")
    assert cfg.SOLVER.BASE_BATCH_SIZE == cfg.SOLVER.IMS_PER_BATCH == 3
    with forget_new_sets():
        register_own_datasets(cfg)
        assert cfg.MODEL.RETINANET.NUM_CLASSES == len(CLASSES)
        records = DatasetCatalog.get("own_train")
        assert len(records) == 3
        assert all(Path(record["file_name"]).is_file() for record in records)
        assert len(DatasetCatalog.get("own_test")) == 1


def test_new_split_keeps_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = many(tmp_path / "set")
    convert(source, tmp_path / "a", "--val", "0.25")
    train, val = (load(tmp_path / "a" / f"{x}.json") for x in ("train", "val"))
    assert (len(train["images"]), len(val["images"])) == (30, 10)
    names = [{row["file_name"] for row in part["images"]} for part in (train, val)]
    assert not names[0] & names[1]
    labels = [label for rows in boxes_of(val).values() for label, _ in rows]
    num_dogs = labels.count("dog")
    assert labels.count("cat") == 10 and num_dogs in (2, 3)
    assert f"| dog | {10 - num_dogs} | {num_dogs} |" in capsys.readouterr().out
    convert(source, tmp_path / "b", "--val", "0.25")
    convert(source, tmp_path / "c", "--val", "0.25", "--seed", "2")
    texts = [(tmp_path / x / "val.json").read_bytes() for x in "abc"]
    assert texts[0] == texts[1] != texts[2]
    convert(source, tmp_path / "d", "--val", "0")
    assert sorted(x.name for x in (tmp_path / "d").iterdir()) == ["config.yaml", "train.json"]
    assert not get_config(tmp_path / "d" / "config.yaml").DATASETS.OWN.TEST_JSON


def test_resplit(tmp_path: Path) -> None:
    source = WRITERS["coco"](tmp_path / "set")
    convert(source, tmp_path / "out", "--resplit", "--val", "0.5")
    parts = [load(tmp_path / "out" / f"{x}.json") for x in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [2, 2]
    assert boxes_of(parts[0]) | boxes_of(parts[1]) == expected()
    ids = [row["id"] for part in parts for row in part["annotations"]]
    assert len(set(ids)) == len(ids) == 6


def test_overwrite_and_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = WRITERS["csv"](tmp_path / "set"), tmp_path / "out"
    convert(source, out)
    (out / "config.yaml").unlink()
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UserError, match=r"--output: .*train\.json"):
        convert(source, out, "--fix")
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    convert(source, out, "--overwrite", "--base", "retinanet_R50_FPN_1x.yaml")
    cfg = get_config(out / "config.yaml")
    assert cfg.MODEL.WEIGHTS and not cfg.MODEL.FPN.NORM
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.01 * cfg.SOLVER.IMS_PER_BATCH / 16)
    # A base of one's own is named relative to the output folder
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("VERSION: 2\nSOLVER: {MOMENTUM: 0.77}\n")
    monkeypatch.chdir(tmp_path)
    convert(source, Path("out"), "--overwrite", "--base", "mine/config.yaml")
    assert get_config("out/config.yaml").SOLVER.MOMENTUM == 0.77


def test_overrides_come_last(tmp_path: Path) -> None:
    source, out = many(tmp_path / "set"), tmp_path / "out"
    opts = ["SOLVER.MAX_ITER", "600", "SOLVER.STEPS", "(420,)", "MODEL.ANCHOR_GENERATOR.NAME"]
    convert(source, out, *opts, "DefaultAnchorGenerator", "--val", "0.5", "OUTPUT_DIR", "runs/1")
    cfg = get_config(out / "config.yaml")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.OUTPUT_DIR) == (600, (420,), "runs/1")
    assert cfg.MODEL.ANCHOR_GENERATOR.NAME == "DefaultAnchorGenerator"
    assert len(load(out / "val.json")["images"]) == 20


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--base", "none.yaml"], r"none\.yaml"),
        (["--format", "voc"], r"\.xml"),
        (["--images", "nowhere"], "nowhere"),
        (["--classes", "nowhere.txt"], r"nowhere\.txt"),
        (["--val", "0.2"], "--val"),  # of a single image
        (["--val", "1"], "--val"),
        (["SOLVER.MAX_ITR", "600"], r"SOLVER\.MAX_ITR"),
        (["--val", "nan"], "--val"),
    ],
)
def test_errors_write_nothing(tmp_path: Path, args: list[str], found: str) -> None:
    source = many(tmp_path / "set", 1)
    with pytest.raises(UserError, match=found):
        convert(source, tmp_path / "out", *args)
    assert not list(tmp_path.glob("out/*"))
