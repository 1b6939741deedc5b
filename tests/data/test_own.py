"""DATASETS.OWN keys become data sets of detectron2, or one sentence and nothing at all."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from coco_sets import forget_new_sets, own_config, valid_content, write_json, write_set
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

from retinanet_plugin.data.own import check_datasets, register_own_datasets
from retinanet_plugin.errors import UserError

BOTH = {"TRAIN_JSON": "train.json", "TRAIN_IMAGES": "images", "TEST_JSON": "test.json"}
BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    with forget_new_sets():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path)
    write_json(tmp_path, valid_content(), "test.json")
    return tmp_path


def sentence(cfg: CfgNode, **options: bool) -> str:
    before = cfg.dump()
    with pytest.raises(UserError) as raised:
        register_own_datasets(cfg, **options)
    assert "own_train" not in DatasetCatalog
    assert "own_test" not in DatasetCatalog
    assert cfg.dump() == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_train_and_test(folder: Path) -> None:
    cfg = own_config(folder, **BOTH)
    cfg.freeze()
    register_own_datasets(cfg)
    assert cfg.is_frozen()
    assert cfg.DATASETS.TRAIN == ("own_train",)
    assert cfg.DATASETS.TEST == ("own_test",)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    expected = load_coco_json(str(folder / "train.json"), str(folder / "images"), "their_own")
    assert expected[0]["annotations"]
    for name, file in (("own_train", "train.json"), ("own_test", "test.json")):
        metadata, theirs = MetadataCatalog.get(name), MetadataCatalog.get("their_own")
        assert DatasetCatalog.get(name) == expected
        assert metadata.json_file == str(folder / file)
        assert metadata.image_root == str(folder / "images")
        assert metadata.evaluator_type == "coco"
        assert metadata.thing_classes == theirs.thing_classes == ["cat", "dög"]
        assert (
            metadata.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id
        )
    check_datasets(cfg)
    check_datasets(cfg, training=False)
    assert not (folder / "output").exists()


def test_paths_relative_to_the_working_directory_or_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    cfg = own_config(Path(), **BOTH)
    cfg.DATASETS.OWN.ROOT = ""
    register_own_datasets(cfg)
    os.chdir("/")
    assert len(DatasetCatalog.get("own_train")) == 3
    monkeypatch.setenv("HOME", str(folder.parent))
    register_own_datasets(own_config(Path("~") / folder.name, **BOTH))
    cfg = own_config(Path("/nowhere"), TEST_JSON=f"~/{folder.name}/test.json")
    cfg.DATASETS.OWN.TEST_IMAGES = str(folder / "images")
    register_own_datasets(cfg)


def test_registering_again(folder: Path) -> None:
    register_own_datasets(own_config(folder, **BOTH))
    register_own_datasets(own_config(folder, **BOTH))
    other = valid_content()
    other["categories"].append({"id": 9, "name": "cow"})
    write_json(folder, other, "other.json")
    cfg = own_config(folder, TRAIN_JSON="other.json", TRAIN_IMAGES="images")
    register_own_datasets(cfg)
    assert MetadataCatalog.get("own_train").thing_classes == ["cat", "dög", "cow"]
    assert MetadataCatalog.get("own_train").json_file == str(folder / "other.json")


def test_only_training(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = own_config(folder, TRAIN_JSON="train.json", TRAIN_IMAGES="images")
    cfg.DATASETS.TEST = ("coco_2017_val",)
    register_own_datasets(cfg)
    assert cfg.DATASETS.TEST == ()
    assert "DATASETS.OWN.TEST_JSON is not set: nothing will be evaluated" in caplog.text
    check_datasets(cfg)
    with pytest.raises(UserError, match=r"DATASETS\.TEST names no data set to evaluate on; name"):
        check_datasets(cfg, training=False)


def test_only_evaluation(folder: Path) -> None:
    cfg = own_config(folder, TEST_JSON="test.json", TEST_IMAGES="images")
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    register_own_datasets(cfg)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    check_datasets(cfg, training=False)
    with pytest.raises(UserError, match="coco_2017_train"):
        check_datasets(cfg)


def test_only_the_training_set_needs_boxes(folder: Path) -> None:
    write_json(folder, valid_content() | {"annotations": []}, "test.json")
    register_own_datasets(own_config(folder, **BOTH))
    cfg = own_config(folder, **BOTH | {"TRAIN_JSON": "test.json"})
    with pytest.raises(UserError, match=r'test\.json: "annotations" holds no box to train on'):
        register_own_datasets(cfg)


def test_evaluation_needs_no_training_set(folder: Path) -> None:
    (folder / "train.json").unlink()
    cfg = own_config(folder, **BOTH)
    assert "TRAIN_JSON" in sentence(cfg)
    register_own_datasets(cfg, training=False)
    assert cfg.DATASETS.TEST == ("own_test",)
    assert "own_train" not in DatasetCatalog


def test_mended_content_is_used_from_a_copy(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = valid_content()
    content["annotations"].append({"image_id": 10, "category_id": 2, "bbox": [30, 20, 20, 20]})
    path = write_json(folder, content, "test.json")
    before = path.read_bytes()
    cfg = own_config(folder, BAD_BOXES="fix", **BOTH)
    with caplog.at_level(logging.INFO, logger="retinanet_plugin"):
        register_own_datasets(cfg)
    mended = folder / "output" / "datasets" / "own_test.json"
    assert path.read_bytes() == before
    assert list(mended.parent.iterdir()) == [mended]
    assert MetadataCatalog.get("own_test").json_file == str(mended)
    assert MetadataCatalog.get("own_train").json_file == str(folder / "train.json")
    row = json.loads(mended.read_text())["annotations"][4]
    assert (row["id"], row["bbox"], row["area"], row["iscrowd"]) == (5, [30, 20, 10, 10], 100, 0)
    assert (
        f"{path}: boxes clipped: 1, areas filled in: 1, iscrowd flags filled in: 1" in caplog.text
    )
    assert f"used from the copy {mended}" in caplog.text
    assert len(DatasetCatalog.get("own_test")[0]["annotations"]) == 3


def test_an_original_in_the_copys_place_is_not_overwritten(folder: Path) -> None:
    content = valid_content()
    del content["annotations"][0]["area"]
    place = folder / "output" / "datasets"
    place.mkdir(parents=True)
    path = write_json(place, content, "own_train.json")
    before = path.read_bytes()
    cfg = own_config(folder, TRAIN_JSON=str(path), TRAIN_IMAGES="images")
    text = sentence(cfg)
    assert f"{path}: is one of the files given" in text
    assert text.endswith("set OUTPUT_DIR to another folder")
    assert path.read_bytes() == before


def test_num_classes_is_kept_where_it_agrees(folder: Path) -> None:
    register_own_datasets(own_config(folder, 2, **BOTH))
    assert sentence_of_mismatch(folder, 80) == (
        f"MODEL.RETINANET.NUM_CLASSES is 80, but DATASETS.OWN.TRAIN_JSON {folder}/train.json has "
        '2 classes ("cat", "dög"); set it to 2, or to -1 to take the number from the data'
    )


def sentence_of_mismatch(folder: Path, num_classes: int) -> str:
    with pytest.raises(UserError) as raised:
        register_own_datasets(own_config(folder, num_classes, **BOTH))
    return str(raised.value)


def test_many_class_names_are_shortened(folder: Path) -> None:
    content = valid_content()
    content["categories"] += [{"id": 10 + i, "name": f"class {i}"} for i in range(50)]
    cfg = own_config(folder, 3, TRAIN_JSON="many.json", TRAIN_IMAGES="images")
    write_json(folder, content, "many.json")
    assert '52 classes ("cat", "dög", "class 0", ' in sentence(cfg)
    assert '"class 7" and 42 more); set it to 52' in sentence(cfg)


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        (
            [{"id": 2, "name": "cat"}, {"id": 8, "name": "dög"}],
            'here: 8 "dög"; only there: 7 "dög"',
        ),
        ([{"id": 2, "name": "dög"}, {"id": 7, "name": "cat"}], 'only here: 2 "dög", 7 "cat"; only'),
        ([{"id": 2, "name": "cat"}], 'only here: none; only there: 7 "dög"'),
    ],
)
def test_train_and_test_must_declare_the_same(
    folder: Path, categories: list[dict[str, object]], words: str
) -> None:
    content = valid_content() | {"categories": categories}
    content["annotations"] = content["annotations"][:1]
    write_json(folder, content, "test.json")
    text = sentence(own_config(folder, **BOTH))
    assert text.startswith(
        f"{folder}/test.json: its categories differ from those of {folder}/train"
    )
    assert words in text
    assert "; declare the same ids and names in both; python -m retinanet_plugin.tools." in text


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"TRAIN_JSON": "trian.json"},
            'DATASETS.OWN.TRAIN_JSON "trian.json": no file {0}/trian.json (did you mean '
            '"train.json"?); correct it, or DATASETS.OWN.ROOT ("{0}"), which it is relative to',
        ),
        ({"TRAIN_JSON": "images"}, 'TRAIN_JSON "images": no file {0}/images'),
        ({"TEST_JSON": "no/test.json"}, 'TEST_JSON "no/test.json": no file {0}/no/test.json; corr'),
        ({"TRAIN_IMAGES": "image"}, 'TRAIN_IMAGES "image": no folder {0}/image (did you mean "ima'),
        ({"TRAIN_IMAGES": "train.json"}, 'TRAIN_IMAGES "train.json": no folder {0}/train.json'),
        ({"TEST_IMAGES": "../no"}, 'DATASETS.OWN.TEST_IMAGES "../no": no folder '),
        (
            {"TRAIN_JSON": "", "TRAIN_IMAGES": "image"},
            'DATASETS.OWN.TRAIN_IMAGES "image": no folder {0}/image (did you mean "images"?)',
        ),
        (
            {"TRAIN_JSON": "", "TRAIN_IMAGES": ""},
            "TEST_JSON is set but DATASETS.OWN.TEST_IMAGES is not; name the folder",
        ),
        ({"TRAIN_IMAGES": ""}, "TRAIN_JSON is set but DATASETS.OWN.TRAIN_IMAGES is not; name the"),
        ({"BAD_BOXES": "fixx"}, 'BAD_BOXES: unknown value "fixx"; known: error, fix (did you mean'),
        ({"TRAIN_JSON": "voc"}, "(VOC, YOLO and CSV become a COCO JSON by python -m retinanet_plu"),
        (
            {"TRAIN_JSON": "a/00001.XML"},
            'TRAIN_JSON "a/00001.XML": looks like Pascal VOC, but must be a COCO JSON; '
            "python -m retinanet_plugin.tools.convert_dataset.command INPUT OUT makes it from that, and",
        ),
        ({"TRAIN_JSON": "data.yaml", "TRAIN_IMAGES": ""}, '"data.yaml": looks like YOLO, but must'),
        ({"TRAIN_JSON": "labels/1.txt"}, 'TRAIN_JSON "labels/1.txt": looks like YOLO, but must be'),
        ({"TEST_JSON": "boxes.csv"}, 'OWN.TEST_JSON "boxes.csv": looks like CSV, but must be a C'),
        (
            {"TRAIN_JSON": "", "TEST_JSON": ""},
            "names an image folder but no JSON; set DATASETS.OWN",
        ),
    ],
)
def test_keys_that_lead_nowhere(folder: Path, keys: dict[str, str], words: str) -> None:
    text = sentence(own_config(folder, **BOTH | keys))
    assert words.format(folder) in text


def test_faults_in_files_and_pictures_come_before_anything_is_registered(folder: Path) -> None:
    content = valid_content()
    content["annotations"][2]["category_id"] = 9
    write_json(folder, content, "test.json")
    text = sentence(own_config(folder, **BOTH))
    assert f"{folder}/test.json: annotations[2] (id 3): category_id 9 is not declared" in text
    write_json(folder, valid_content(), "test.json")
    (folder / "images" / "b.png").write_bytes(b"no picture")
    assert "b.png cannot be read as a picture" in sentence(own_config(folder, **BOTH))


# ---------------------------------------------------------------- other data sets


def test_nothing_of_ones_own(folder: Path) -> None:
    cfg = own_config(folder, 80)
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    before = cfg.dump()
    register_own_datasets(cfg)
    assert cfg.dump() == before
    cfg.MODEL.RETINANET.NUM_CLASSES = -1
    assert "does not exist" in sentence(cfg)
    cfg.DATASETS.TRAIN = ()
    assert sentence(cfg).endswith("declares classes; give the number")
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN names no data set; name .* or a COCO"):
        check_datasets(cfg)


def test_classes_of_a_set_registered_by_others(folder: Path) -> None:
    register_coco_instances("theirs", {}, str(folder / "train.json"), str(folder / "images"))
    cfg = own_config(folder)
    cfg.DATASETS.TRAIN = ("theirs",)
    cfg.freeze()
    register_own_datasets(cfg)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    cfg.defrost()
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    with pytest.raises(UserError, match=r'NUM_CLASSES is 5, but DATASETS\.TRAIN: "theirs" has 2 c'):
        check_datasets(cfg)


def test_a_set_is_loaded_only_where_its_classes_are_unknown(folder: Path) -> None:
    loaded = []

    def load() -> list[object]:
        loaded.append(1)
        return []

    DatasetCatalog.register("lazy", load)
    cfg = own_config(folder, 2)
    cfg.DATASETS.TRAIN = ("lazy",)
    check_datasets(cfg)  # it declares none: nothing to compare
    assert loaded == [1]
    MetadataCatalog.get("lazy").thing_classes = ["a", "b"]
    check_datasets(cfg)
    assert loaded == [1]


def test_unknown_name(folder: Path) -> None:
    cfg = own_config(folder, 80)
    cfg.DATASETS.TRAIN = ("coco_2017_trian",)
    with pytest.raises(UserError) as raised:
        check_datasets(cfg)
    assert str(raised.value).startswith(
        'DATASETS.TRAIN: no data set "coco_2017_trian" is registered '
        '(did you mean "coco_2017_train"?); '
    )


def test_built_in_set_whose_files_are_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_file = MetadataCatalog.get("coco_2017_val").json_file
    root = json_file.removesuffix("/coco/annotations/instances_val2017.json")
    cfg = own_config(folder, 80)
    cfg.DATASETS.TEST = ("coco_2017_val",)
    monkeypatch.setenv("DETECTRON2_DATASETS", root)
    with pytest.raises(UserError) as raised:
        check_datasets(cfg, training=False)
    assert str(raised.value) == (
        f'DATASETS.TEST: "coco_2017_val" needs {os.path.abspath(json_file)}, which does not exist; '
        f'put it there, or set the environment variable DETECTRON2_DATASETS, which is "{root}", '
        "to the folder that holds detectron2's data sets"
    )
    if root == "datasets":
        monkeypatch.delenv("DETECTRON2_DATASETS")
        with pytest.raises(UserError, match='DETECTRON2_DATASETS, which is not set, which means "'):
            check_datasets(cfg, training=False)


@pytest.mark.skipif(not BCCD.exists(), reason="the BCCD data set is not here")
def test_bccd(tmp_path: Path) -> None:
    cfg = own_config(
        BCCD,
        TRAIN_JSON="annotations/instances_train.json",
        TRAIN_IMAGES="images",
        TEST_JSON="annotations/instances_test.json",
    )
    cfg.OUTPUT_DIR = str(tmp_path)
    register_own_datasets(cfg)
    check_datasets(cfg)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 3
    sizes = {name: len(DatasetCatalog.get(name)) for name in ("own_train", "own_test")}
    assert sizes == {"own_train": 292, "own_test": 72}
    boxes = DatasetCatalog.get("own_train")
    assert sum(len(record["annotations"]) for record in boxes) == 3943
