"""Predictor: the detections of train_net.py --eval-only, whatever a picture comes as."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_sets import SIZES, forget_new_sets
from detectron2.structures import BoxMode, Instances
from PIL import Image
from retinanet_plugin.tools.export.command.detector import PictureDetector
from retinanet_plugin.tools.export.command.exporting import EAGER_OVERRIDES, Options, describe
from small_run import CLASSES, write_run
from toy_onnx import write_toy

from retinanet_plugin import Predictor, UserError, get_config
from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.engine import Trainer
from retinanet_plugin.tools.export.command import files


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run on a small set, evaluated."""
    folder = tmp_path_factory.mktemp("run")
    cfg = write_run(folder)
    with forget_new_sets():
        register_own_datasets(cfg, training=False)
        Trainer.evaluate(cfg, resume=False)
    return folder / "out"


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(weights=run / "model_final.pth")


def pictures(run: Path) -> list[Path]:
    return [run.parent / "images" / name for name in SIZES]


def same(one: Instances, other: Instances, tolerance: float = 0.0) -> bool:
    assert len(one) > 0 and one.image_size == other.image_size
    return torch.equal(one.pred_classes, other.pred_classes) and all(
        torch.allclose(a, b, rtol=0, atol=tolerance)
        for a, b in (
            (one.scores, other.scores),
            (one.pred_boxes.tensor, other.pred_boxes.tensor),
        )
    )


def test_the_same_as_eval_only(run: Path, predictor: Predictor) -> None:
    expected = json.loads((run / "inference/coco_instances_results.json").read_text())
    assert predictor.classes == CLASSES
    for i, path in enumerate(pictures(run)):
        found = predictor(str(path))
        there = [x for x in expected if x["image_id"] == 10 + i]
        boxes = BoxMode.convert(
            np.array([x["bbox"] for x in there]), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS
        )
        assert len(there) > 0
        assert [(2, 7)[kind] for kind in found.pred_classes] == [x["category_id"] for x in there]
        assert found.scores.tolist() == pytest.approx([x["score"] for x in there], abs=1e-6)
        np.testing.assert_allclose(found.pred_boxes.tensor, boxes, atol=1e-3)


def test_whatever_a_picture_comes_as(run: Path, predictor: Predictor) -> None:
    path = pictures(run)[0]
    expected = predictor(path)
    rgb = np.asarray(Image.open(path))
    assert same(predictor(cv2.imread(str(path))), expected)
    assert same(predictor(Image.open(path)), expected)
    assert not same(predictor(rgb), expected)
    assert same(Predictor(run / "config.yaml", channels="RGB")(rgb), expected)
    of_rgb = Predictor(run / "config.yaml", overrides=["INPUT.FORMAT", "RGB"])
    assert not same(of_rgb(path), expected)
    assert same(of_rgb(cv2.imread(str(path))), of_rgb(path))
    grey = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2BGR)
    assert same(predictor(grey[:, :, 0]), predictor(grey))


def test_a_list_gives_a_list_in_its_order(run: Path, predictor: Predictor) -> None:
    a, b, c = pictures(run)
    mixed = [a, cv2.imread(str(a))[::-1], b, c, Image.open(c), c, a]
    together = predictor(mixed)
    assert [x.image_size for x in together] == [predictor(x).image_size for x in mixed]
    assert all(same(x, predictor(y), 1e-3) for x, y in zip(together, mixed, strict=True))
    assert predictor([]) == []


def test_a_batch_is_of_pictures_of_one_size(run: Path, predictor: Predictor, monkeypatch) -> None:
    sizes = []
    forward = predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", lambda x: sizes.append(len(x)) or forward(x))
    a, b, _ = pictures(run)
    assert len(list(predictor.stream([a, a, b, b, b], batch_size=2))) == 5
    assert sizes == [2, 2, 1]


def test_exif_orientation(run: Path, predictor: Predictor, tmp_path: Path) -> None:
    upright = Image.open(pictures(run)[0])
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = predictor(upright)
    assert turned.size != upright.size
    assert same(predictor(tmp_path / "turned.png"), expected)
    assert same(predictor(Image.open(tmp_path / "turned.png")), expected)


def test_threshold_and_classes(run: Path, predictor: Predictor) -> None:
    path = pictures(run)[0]
    every = predictor(path)
    threshold = every.scores.median().item()
    strict = Predictor(run / "config.yaml", score_threshold=threshold)
    assert same(strict(path), every[every.scores > threshold])
    dogs = Predictor(run / "config.yaml", classes=["dög"])
    assert same(dogs(path), every[every.pred_classes == 1])
    with pytest.raises(UserError, match=r'no class "cats" .did you mean "cat"'):
        Predictor(run / "config.yaml", classes=["cats"])


def test_names_of_classes(run: Path, tmp_path: Path) -> None:
    """From the data set where the checkpoint is an older one, else numbers."""
    old = torch.load(run / "model_final.pth", weights_only=True)
    del old["classes"]
    torch.save(old, tmp_path / "old.pth")
    shutil.copy(run / "config.yaml", tmp_path)
    assert Predictor(weights=tmp_path / "old.pth").classes == CLASSES
    gone = ("DATASETS.OWN.ROOT", "/nowhere")
    assert Predictor(weights=tmp_path / "old.pth", overrides=gone).classes == ["0", "1"]


def test_the_number_of_classes_is_the_checkpoints(run: Path) -> None:
    unknown = ("MODEL.RETINANET.NUM_CLASSES", "-1")
    found = Predictor(run / "config.yaml", run / "model_final.pth", overrides=unknown)
    assert found.cfg.MODEL.RETINANET.NUM_CLASSES == 2


@pytest.mark.parametrize(
    "picture, sentence",
    [
        ("nowhere.jpg", "nowhere.jpg: the picture cannot be read .No such file"),
        (np.zeros((4, 4, 3)), "an array of float64 and shape .4, 4, 3. is no picture; give uint8"),
        (np.zeros((4, 4, 4), np.uint8), "shape .4, 4, 4. is no picture"),
        (np.zeros((0, 4, 3), np.uint8), "is no picture"),
        (Image.new("I;16", (4, 4)), "cannot be read .its grey has more than 8 bits"),
        (3, "a int is no picture"),
    ],
)
def test_what_is_no_picture(predictor: Predictor, picture: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        predictor(picture)


def test_mistakes(run: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copy(run / "model_final.pth", tmp_path)
    for arguments, sentence in (
        ({}, "neither config nor weights given"),
        ({"weights": tmp_path / "model_final.pth"}, "no .*config.yaml beside the weights"),
        (
            {"weights": tmp_path / "no.pth"},
            r"weights: no file .*no\.pth; give a file on this machine\.",
        ),
        ({"config": run / "config.yaml", "device": "gpu"}, "MODEL.DEVICE"),
        ({"config": run / "config.yaml", "channels": "BRG"}, '"BRG"'),
        ({"config": "Base-Scratch-R18.yaml"}, "MODEL.WEIGHTS: empty"),
    ):
        with pytest.raises(UserError, match=sentence):
            Predictor(**arguments)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Predictor(run / "config.yaml", "~/model_final.pth").classes == CLASSES
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='device "cuda": no such GPU'):
            Predictor(run / "config.yaml", device="cuda")


# ---------------------------------------------------------------- exported files


def test_an_exported_file_finds_the_same(run: Path, tmp_path: Path) -> None:
    """Without any config beside it; a traced file, which is the one that takes no time to make."""
    eager = Predictor(weights=run / "model_final.pth", overrides=EAGER_OVERRIDES)
    path = tmp_path / "model.torchscript"
    detector = PictureDetector(eager.model).eval()
    files.write(detector, path, "torchscript", describe(eager, Options("torchscript")))
    exported = Predictor(weights=path)
    assert exported.classes == CLASSES
    assert exported.category_ids == eager.category_ids
    for picture in pictures(run):
        assert same(exported(picture), eager(picture), 1e-4)
    threshold = eager(pictures(run)[0]).scores.median().item()
    kept = {"score_threshold": threshold, "classes": ["cat"]}
    strict = Predictor(weights=path, **kept)(pictures(run)[0])
    assert same(strict, Predictor(run / "config.yaml", **kept)(pictures(run)[0]), 1e-4)


def test_what_an_exported_file_says_of_pictures(tmp_path: Path) -> None:
    """Their size and channels, which a config or overrides may replace."""
    pytest.importorskip("onnxruntime")
    path = write_toy(tmp_path / "toy.onnx")
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[:, :, 0] = 255  # blue
    cfg = get_config(overrides=["INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", "10"])
    for arguments, size in (
        ({}, (24, 36)),
        ({"overrides": ["INPUT.MIN_SIZE_TEST", "30"]}, (27, 40)),
        ({"overrides": ["INPUT.MAX_SIZE_TEST", "33"]}, (22, 33)),
        ({"config": cfg}, (10, 15)),
    ):
        blue = Predictor(weights=path, device="cpu", **arguments)
        assert blue._prepare(picture)["image"].shape[1:] == size
        (found,) = blue([picture])
        assert found.pred_classes.tolist() == [0] and blue.classes[0] == "blue"
        right = size[1] // 2 * 90 / size[1]
        np.testing.assert_allclose(found.pred_boxes.tensor, [[0, 0, right, 60]], atol=1e-4)
    assert (blue.category_ids, blue.score_threshold) == ([3, 5, 9], 0.05)
    rgb = Predictor(weights=path, channels="RGB")
    assert rgb(picture).pred_classes.tolist() == [2]
    dim = Predictor(weights=path, score_threshold=0.5)
    assert [len(x) for x in dim([picture // 3, picture, picture // 3])] == [0, 1, 0]
    with pytest.raises(UserError, match=r"score_threshold 0.01 given, but .*toy.onnx leaves out"):
        Predictor(weights=path, score_threshold=0.01)
    with pytest.raises(UserError, match=r"INPUT.MIN_SIZE_TEST"):
        Predictor(weights=path, overrides=["INPUT.MIN_SIZE_TEST", "small"])
    with pytest.raises(UserError, match=r"no file .*absent.onnx"):
        Predictor(weights=tmp_path / "absent.onnx")
