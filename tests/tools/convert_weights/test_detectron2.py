"""detectron2's own RetinaNet: its weights here, and ours there with a config of its keys."""

import pickle
from pathlib import Path

import pytest
import torch
from agreement import IMAGES, assert_equal, converted, detect, imitate_training_of, save
from conftest import small_config
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from retinanet_plugin import UserError
from retinanet_plugin.modeling import FocalRetinaNet
from retinanet_plugin.tools.convert_weights.conversion import convert
from retinanet_plugin.tools.convert_weights.model import COCO_CLASSES


def zoo_config() -> CfgNode:
    """detectron2's Base-RetinaNet.yaml, which its wheel lacks, with a ResNet-18."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [
        [x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in [32, 64, 128, 256, 512]
    ]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    return cfg


def test_a_pickle_of_the_zoo(tmp_path: Path) -> None:
    theirs = imitate_training_of(build_model(zoo_config()))
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    weights["anchor_generator.cell_anchors.0"] = torch.zeros(9, 4).numpy()  # in old files
    content = {"model": weights, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
    convert(tmp_path / "model.pkl", tmp_path / "out")
    ours = converted(tmp_path / "out")
    for image in IMAGES:
        assert_equal(detect(ours, image, "BGR"), detect(theirs, image, "BGR"))
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert saved["classes"] == COCO_CLASSES


@pytest.mark.parametrize(
    "overrides",
    [
        ["MODEL.RETINANET.LOSS_NORMALIZER", "ema", "MODEL.ANCHOR_GENERATOR.ANCHOR_SCALE", "2.0"],
        ["MODEL.BACKBONE.NAME", "build_resnet_fpn_p6p7_backbone", "INPUT.FORMAT", "RGB"],
    ],
)
def test_our_models_detect_the_same_there(tmp_path: Path, overrides: list[str]) -> None:
    cfg = small_config(*overrides)
    model = imitate_training_of(FocalRetinaNet(cfg))
    convert(save(cfg, tmp_path, model, classes=list("abcdefg")), tmp_path / "out", to="detectron2")
    theirs = get_cfg()
    theirs.merge_from_file(str(tmp_path / "out" / "config.yaml"))
    theirs.MODEL.DEVICE = "cpu"
    built = build_model(theirs).eval()
    assert type(built).__module__.startswith("detectron2.")
    built.load_state_dict(torch.load(theirs.MODEL.WEIGHTS, weights_only=True)["model"], strict=True)
    DetectionCheckpointer(built).load(theirs.MODEL.WEIGHTS)
    for image in IMAGES:
        expected = detect(model, image, cfg.INPUT.FORMAT)
        assert_equal(detect(built, image, theirs.INPUT.FORMAT), expected)


@pytest.mark.parametrize(
    "to, key, value",
    [
        ("detectron2", "MODEL.ANCHOR_GENERATOR.NAME", "TorchvisionAnchorGenerator"),
        ("detectron2", "MODEL.FPN.P6_INPUT", "p5"),
        ("detectron2", "MODEL.FPN.P7_RELU", "False"),
        ("torchvision", "MODEL.FPN.NORM", "SyncBN"),
        ("torchvision", "MODEL.RETINANET.IN_FEATURES", "('p3','p4')"),
        ("torchvision", "MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG", "False"),
    ],
)
def test_what_others_cannot_express(tmp_path: Path, to: str, key: str, value: str) -> None:
    cfg = small_config("MODEL.BACKBONE.NAME", "build_resnet_fpn_p6p7_backbone", key, value)
    with pytest.raises(UserError, match=key):
        convert(save(cfg, tmp_path, FocalRetinaNet(cfg)), tmp_path / "out", to=to)


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    cfg = small_config("MODEL.RETINANET.NUM_CONVS", 2)
    file = save(cfg, tmp_path, FocalRetinaNet(small_config()))
    with pytest.raises(UserError, match=r"4 .*head\.cls_subnet\.2\.weight"):
        convert(file, tmp_path / "out")
