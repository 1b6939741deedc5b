"""Predictor: the detections of train_net.py --eval-only, from any kind of image."""

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
from small_run import CLASSES, write_run
from toy_onnx import write_toy

from retinanet_plugin import Predictor, UserError, get_config
from retinanet_plugin.data import register_own_datasets
from retinanet_plugin.engine import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of an evaluated run with random weights."""
    folder = tmp_path_factory.mktemp("run")
    cfg = write_run(folder)
    with forget_new_sets():
        register_own_datasets(cfg, training=False)
        Trainer.evaluate(cfg, resume=False)
    return folder / "out"


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(weights=run / "model_final.pth")


def images(run: Path) -> list[Path]:
    return [run.parent / "images" / name for name in SIZES]


def same(one: Instances, other: Instances, tolerance: float = 0.0) -> bool:
    assert len(one) > 0 and one.image_size == other.image_size
    return torch.equal(one.pred_classes, other.pred_classes) and all(
        torch.allclose(a, b, rtol=0, atol=tolerance)
        for a, b in ((one.scores, other.scores), (one.pred_boxes.tensor, other.pred_boxes.tensor))
    )


def test_equals_eval_only(run: Path, predictor: Predictor) -> None:
    expected = json.loads((run / "inference/coco_instances_results.json").read_text())
    assert predictor.classes == CLASSES
    for i, path in enumerate(images(run)):
        detections = predictor(str(path))
        stored = [x for x in expected if x["image_id"] == 10 + i]
        boxes = BoxMode.convert(
            np.array([x["bbox"] for x in stored]), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS
        )
        assert len(stored) > 0
        assert [(2, 7)[i] for i in detections.pred_classes] == [x["category_id"] for x in stored]
        assert detections.scores.tolist() == pytest.approx([x["score"] for x in stored], abs=1e-6)
        np.testing.assert_allclose(detections.pred_boxes.tensor, boxes, atol=1e-3)


def test_kinds_of_images(run: Path, predictor: Predictor) -> None:
    path = images(run)[0]
    expected = predictor(path)
    rgb = np.asarray(Image.open(path))
    assert same(predictor(cv2.imread(str(path))), expected)
    assert same(predictor(Image.open(path)), expected)
    assert not same(predictor(rgb), expected)
    assert same(Predictor(run / "config.yaml", channels="RGB")(rgb), expected)
    rgb_model = Predictor(run / "config.yaml", overrides=["INPUT.FORMAT", "RGB"])
    assert not same(rgb_model(path), expected)
    assert same(rgb_model(cv2.imread(str(path))), rgb_model(path))
    gray = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2BGR)
    assert same(predictor(gray[:, :, 0]), predictor(gray))


def test_only_consecutive_images_of_one_size_form_a_batch(
    run: Path, predictor: Predictor, monkeypatch
) -> None:
    a, b, c = images(run)
    mixed = [a, cv2.imread(str(a))[::-1], b, c, Image.open(c), c, a]
    expected = [predictor(x) for x in mixed]
    sizes = []
    forward = predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", lambda x: sizes.append(len(x)) or forward(x))
    together = list(predictor.stream(mixed, batch_size=2))
    assert sizes == [2, 1, 2, 1, 1]
    assert all(same(x, y, 1e-3) for x, y in zip(together, expected, strict=True))
    assert predictor([]) == []


def test_exif_orientation(run: Path, predictor: Predictor, tmp_path: Path) -> None:
    upright = Image.open(images(run)[0])
    exif = Image.Exif()
    exif[274] = 6  # rotate clockwise
    rotated = upright.transpose(Image.Transpose.ROTATE_90)
    rotated.save(tmp_path / "rotated.png", exif=exif)
    expected = predictor(upright)
    assert rotated.size != upright.size
    assert same(predictor(tmp_path / "rotated.png"), expected)
    assert same(predictor(Image.open(tmp_path / "rotated.png")), expected)


def test_threshold_and_classes(run: Path, predictor: Predictor) -> None:
    path = images(run)[0]
    every = predictor(path)
    threshold = every.scores.median().item()
    strict = Predictor(run / "config.yaml", score_threshold=threshold)
    assert same(strict(path), every[every.scores > threshold])
    dogs = Predictor(run / "config.yaml", classes=["dög"])
    assert same(dogs(path), every[every.pred_classes == 1])
    with pytest.raises(UserError, match=r'"cats" .*"cat"'):
        Predictor(run / "config.yaml", classes=["cats"])


def test_number_and_names_of_classes(run: Path, tmp_path: Path) -> None:
    config, unknown = run / "config.yaml", ("MODEL.RETINANET.NUM_CLASSES", "-1")
    automatic = Predictor(config, run / "model_final.pth", overrides=unknown)
    assert automatic.cfg.MODEL.RETINANET.NUM_CLASSES == 2
    old = torch.load(run / "model_final.pth", weights_only=True)
    del old["classes"]
    torch.save(old, tmp_path / "old.pth")
    assert Predictor(config, tmp_path / "old.pth").classes == ["0", "1"]
    with forget_new_sets():
        assert Predictor(config, tmp_path / "old.pth", overrides=unknown).classes == CLASSES


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("nowhere.jpg", "nowhere.jpg: .*No such file"),
        (np.zeros((4, 4, 3)), r"float64 and shape \(4, 4, 3\)"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (Image.new("I;16", (4, 4)), "8 bits"),
        (3, "got a int"),
    ],
)
def test_unusable_images(predictor: Predictor, image: object, named: str) -> None:
    with pytest.raises(UserError, match=named):
        predictor(image)


def test_mistakes(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "model_final.pth", tmp_path)
    for arguments, named in (
        ({}, "weights, a config"),
        ({"weights": tmp_path / "model_final.pth"}, r"weights: .*config\.yaml"),
        ({"weights": tmp_path / "no.pth"}, r"weights: .*no\.pth"),
        ({"config": run / "config.yaml", "device": "gpu"}, "MODEL.DEVICE"),
        ({"config": run / "config.yaml", "channels": "BRG"}, '"BRG"'),
        ({"config": "Base-Scratch-R18.yaml"}, "MODEL.WEIGHTS: empty"),
    ):
        with pytest.raises(UserError, match=named):
            Predictor(**arguments)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='device "cuda"'):
            Predictor(run / "config.yaml", device="cuda")


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, (24, 36)),
        ({"overrides": ["INPUT.MIN_SIZE_TEST", "30"]}, (27, 40)),
        ({"config": ["INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", "10"]}, (10, 15)),
    ],
)
def test_an_exported_file_determines_size_and_channels_unless_overridden(
    tmp_path: Path, arguments: dict, size: tuple[int, int]
) -> None:
    pytest.importorskip("onnxruntime")
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, :, 0] = 255  # blue
    if "config" in arguments:
        arguments = {"config": get_config(overrides=arguments["config"])}
    predictor = Predictor(weights=write_toy(tmp_path / "toy.onnx"), device="cpu", **arguments)
    assert predictor._prepare(image)["image"].shape[1:] == size
    (detections,) = predictor([image])
    assert [predictor.classes[i] for i in detections.pred_classes] == ["blue"]
    assert (predictor.category_ids, predictor.score_threshold) == ([3, 5, 9], 0.05)
    right = size[1] // 2 * 90 / size[1]
    np.testing.assert_allclose(detections.pred_boxes.tensor, [[0, 0, right, 60]], atol=1e-4)


def test_threshold_and_channels_with_an_exported_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path, image = write_toy(tmp_path / "toy.onnx"), np.full((60, 90, 3), (255, 0, 0), np.uint8)
    assert Predictor(weights=path, channels="RGB")(image).pred_classes.tolist() == [2]
    dim = Predictor(weights=path, score_threshold=0.5)
    assert [len(x) for x in dim([image // 3, image, image // 3])] == [0, 1, 0]
    with pytest.raises(UserError, match=r"score_threshold .*toy\.onnx"):
        Predictor(weights=path, score_threshold=0.01)
