"""DATASETS.OWN keys become datasets of detectron2; after an error nothing is registered."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from coco_sets import forget_new_sets, own_config, valid_content, write_json, write_set
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

from retinanet_plugin.data import check_registered_datasets, register_own_datasets
from retinanet_plugin.errors import UserError

BOTH = {"TRAIN_JSON": "train.json", "TRAIN_IMAGES": "images", "TEST_JSON": "test.json"}


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    with forget_new_sets():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path)
    write_json(tmp_path, valid_content(), "test.json")
    return tmp_path


def error_of(cfg: CfgNode) -> str:
    before = cfg.dump()
    with pytest.raises(UserError) as raised:
        register_own_datasets(cfg)
    assert not {"own_train", "own_test"} & set(DatasetCatalog)
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
    theirs = MetadataCatalog.get("their_own")
    for name, file in (("own_train", "train.json"), ("own_test", "test.json")):
        metadata = MetadataCatalog.get(name)
        assert DatasetCatalog.get(name) == expected
        assert metadata.json_file == str(folder / file)
        assert metadata.image_root == str(folder / "images")
        assert metadata.evaluator_type == "coco"
        assert metadata.thing_classes == theirs.thing_classes == ["cat", "dög"]
        assert (
            metadata.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id
        )
    check_registered_datasets(cfg)
    check_registered_datasets(cfg, training=False)
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
    other = valid_content()
    other["categories"].append({"id": 9, "name": "cow"})
    write_json(folder, other, "other.json")
    register_own_datasets(own_config(folder, TRAIN_JSON="other.json", TRAIN_IMAGES="images"))
    assert MetadataCatalog.get("own_train").thing_classes == ["cat", "dög", "cow"]
    assert MetadataCatalog.get("own_train").json_file == str(folder / "other.json")


def test_only_training(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = own_config(folder, TRAIN_JSON="train.json", TRAIN_IMAGES="images")
    cfg.DATASETS.TEST = ("coco_2017_val",)
    register_own_datasets(cfg)
    assert cfg.DATASETS.TEST == ()
    assert "DATASETS.OWN.TEST_JSON" in caplog.text
    check_registered_datasets(cfg)
    with pytest.raises(UserError, match=r"DATASETS\.TEST"):
        check_registered_datasets(cfg, training=False)


def test_only_evaluation(folder: Path) -> None:
    cfg = own_config(folder, TRAIN_JSON="none.json", TEST_JSON="test.json", TEST_IMAGES="images")
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    register_own_datasets(cfg, training=False)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    assert cfg.DATASETS.TEST == ("own_test",)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    check_registered_datasets(cfg, training=False)
    with pytest.raises(UserError, match="coco_2017_train"):
        check_registered_datasets(cfg)


def test_fixed_content_is_used_from_a_copy(folder: Path) -> None:
    content = valid_content()
    content["annotations"].append({"image_id": 10, "category_id": 2, "bbox": [30, 20, 20, 20]})
    path = write_json(folder, content, "test.json")
    before = path.read_bytes()
    cfg = own_config(folder, BAD_BOXES="fix", **BOTH)
    register_own_datasets(cfg)
    fixed = folder / "output" / "datasets" / "own_test.json"
    assert path.read_bytes() == before
    assert list(fixed.parent.iterdir()) == [fixed]
    assert MetadataCatalog.get("own_test").json_file == str(fixed)
    assert MetadataCatalog.get("own_train").json_file == str(folder / "train.json")
    row = json.loads(fixed.read_text())["annotations"][4]
    assert (row["id"], row["bbox"], row["area"], row["iscrowd"]) == (5, [30, 20, 10, 10], 100, 0)
    assert len(DatasetCatalog.get("own_test")[0]["annotations"]) == 3


def test_num_classes_must_agree_with_the_data(folder: Path) -> None:
    register_own_datasets(own_config(folder, 2, **BOTH))
    with pytest.raises(UserError, match=r"NUM_CLASSES: 80 .*train\.json .*2 classes \(\"cat\", "):
        register_own_datasets(own_config(folder, 80, **BOTH))


@pytest.mark.parametrize(
    ("categories", "named"),
    [
        ([{"id": 2, "name": "cat"}, {"id": 8, "name": "dög"}], '8 "dög"'),
        ([{"id": 2, "name": "dög"}, {"id": 7, "name": "cat"}], '2 "dög"'),
        ([{"id": 2, "name": "cat"}], '7 "dög"'),
    ],
)
def test_train_and_test_must_declare_the_same_classes(
    folder: Path, categories: list[dict[str, object]], named: str
) -> None:
    content = valid_content() | {"categories": categories}
    content["annotations"] = content["annotations"][:1]
    write_json(folder, content, "test.json")
    text = error_of(own_config(folder, **BOTH))
    assert text.startswith(f"{folder}/test.json: category {named} ")
    assert f"{folder}/train.json" in text
    assert "check-dataset" in text


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"TRAIN_JSON": "trian.json"}, r'TRAIN_JSON: "trian\.json" .*"train\.json".*OWN\.ROOT'),
        ({"TRAIN_JSON": "images"}, 'TRAIN_JSON: "images"'),
        ({"TEST_JSON": "no/test.json"}, 'TEST_JSON: "no/test.json"'),
        ({"TRAIN_IMAGES": "image"}, 'TRAIN_IMAGES: "image" .*"images"'),
        ({"TRAIN_IMAGES": "train.json"}, 'TRAIN_IMAGES: "train.json"'),
        ({"TEST_IMAGES": "../no"}, 'TEST_IMAGES: "../no"'),
        ({"TRAIN_JSON": "", "TRAIN_IMAGES": "image"}, 'TRAIN_IMAGES: "image"'),
        ({"TRAIN_JSON": "", "TRAIN_IMAGES": ""}, "TEST_IMAGES: .*TEST_JSON"),
        ({"TRAIN_IMAGES": ""}, "TRAIN_IMAGES: .*TRAIN_JSON"),
        ({"TRAIN_JSON": "", "TEST_JSON": ""}, "TRAIN_JSON"),
    ],
)
def test_wrong_keys(folder: Path, keys: dict[str, str], named: str) -> None:
    assert re.search(named, error_of(own_config(folder, **BOTH | keys)))


def test_files_and_images_are_checked_before_anything_is_registered(folder: Path) -> None:
    content = valid_content()
    content["annotations"][2]["category_id"] = 9
    write_json(folder, content, "test.json")
    assert "test.json: annotations[2] (id 3)" in error_of(own_config(folder, **BOTH))
    write_json(folder, valid_content(), "test.json")
    (folder / "images" / "b.png").write_bytes(b"no image")
    assert 'train.json: images[1] (id 11) "b.png"' in error_of(own_config(folder, **BOTH))


# ---------------------------------------------------------------- other datasets


def test_no_own_datasets(folder: Path) -> None:
    cfg = own_config(folder, 80)
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    before = cfg.dump()
    register_own_datasets(cfg)
    assert cfg.dump() == before
    cfg.MODEL.RETINANET.NUM_CLASSES = -1
    assert "coco_2017_train" in error_of(cfg)
    cfg.DATASETS.TRAIN = ()
    assert "MODEL.RETINANET.NUM_CLASSES" in error_of(cfg)
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN"):
        check_registered_datasets(cfg)


def test_classes_of_a_dataset_registered_by_others(folder: Path) -> None:
    register_coco_instances("theirs", {}, str(folder / "train.json"), str(folder / "images"))
    cfg = own_config(folder)
    cfg.DATASETS.TRAIN = ("theirs",)
    cfg.freeze()
    register_own_datasets(cfg)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    cfg.defrost()
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    with pytest.raises(UserError, match=r'NUM_CLASSES: 5 .*DATASETS\.TRAIN "theirs"'):
        check_registered_datasets(cfg)


def test_a_dataset_is_loaded_only_if_its_classes_are_unknown(folder: Path) -> None:
    loaded = []
    DatasetCatalog.register("lazy", lambda: loaded.append(1) or [])
    cfg = own_config(folder, 2)
    cfg.DATASETS.TRAIN = ("lazy",)
    check_registered_datasets(cfg)  # it declares none: nothing to compare
    MetadataCatalog.get("lazy").thing_classes = ["a", "b"]
    check_registered_datasets(cfg)
    assert loaded == [1]


def test_unknown_name_and_missing_files(folder: Path) -> None:
    cfg = own_config(folder, 80)
    cfg.DATASETS.TRAIN = ("coco_2017_trian",)
    with pytest.raises(UserError, match=r'DATASETS\.TRAIN: .*"coco_2017_trian".*coco_2017_train"'):
        check_registered_datasets(cfg)
    cfg.DATASETS.TEST = ("coco_2017_val",)
    path = re.escape(os.path.abspath(MetadataCatalog.get("coco_2017_val").json_file))
    with pytest.raises(UserError, match=rf"DATASETS\.TEST: .*{path}.*DETECTRON2_DATASETS"):
        check_registered_datasets(cfg, training=False)
