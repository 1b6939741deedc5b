"""detectron2's own RetinaNet: its weights as they are; ours in it, with a config of its keys."""

import pickle
from pathlib import Path

import pytest
import torch
from agreement import PICTURES, assert_equal, detect, ours, spread
from conftest import small_config
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from retinanet_plugin.tools.convert_weights.command.conversion import convert
from retinanet_plugin.tools.convert_weights.command.rows import COCO_CLASSES
from torch import nn

from retinanet_plugin import UserError
from retinanet_plugin.modeling import FocalRetinaNet


class Outputs(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, images: torch.Tensor) -> object:
        levels = self.inner.backbone(images)
        return self.inner.head([levels[name] for name in self.inner.head_in_features])


def spread_out(model: nn.Module) -> nn.Module:
    model.eval()
    images = model.preprocess_image([{"image": PICTURES[0] * 255}]).tensor
    spread(Outputs(model), model.head.cls_score, model.head.bbox_pred, images)
    return model


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
    theirs = spread_out(build_model(zoo_config()))
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    weights["anchor_generator.cell_anchors.0"] = torch.zeros(9, 4).numpy()  # as old ones have it
    content = {"model": weights, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
    said = convert(tmp_path / "model.pkl", tmp_path / "out")
    assert "takes the file as it is" in said and "unused: 1 (follows from the config)" in said
    for picture in PICTURES:
        assert_equal(detect(ours(tmp_path / "out"), picture, "BGR"), detect(theirs, picture, "BGR"))
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
    model = spread_out(FocalRetinaNet(cfg))
    names = ["a", "b", "c", "d", "e", "f", "g"]
    torch.save({"model": model.state_dict(), "classes": names}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    said = convert(tmp_path / "model.pth", tmp_path / "out", to="detectron2")
    assert ("its moving average" in said) == (cfg.MODEL.RETINANET.LOSS_NORMALIZER == "ema")
    theirs = get_cfg()
    theirs.merge_from_file(str(tmp_path / "out" / "config.yaml"))
    theirs.MODEL.DEVICE = "cpu"
    built = build_model(theirs).eval()
    assert type(built).__module__.startswith("detectron2.")
    loaded = torch.load(theirs.MODEL.WEIGHTS, weights_only=True)["model"]
    built.load_state_dict(loaded, strict=True)
    DetectionCheckpointer(built).load(theirs.MODEL.WEIGHTS)
    for picture in PICTURES:
        expected = detect(model, picture, cfg.INPUT.FORMAT)
        assert_equal(detect(built, picture, theirs.INPUT.FORMAT), expected)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["MODEL.ANCHOR_GENERATOR.NAME", "TorchvisionAnchorGenerator"], "--to torchvision"),
        (
            [
                *("MODEL.BACKBONE.NAME", "build_resnet_fpn_p6p7_backbone"),
                *("MODEL.FPN.P6_INPUT", "p5"),
            ],
            "P6_INPUT: p5",
        ),
        (["MODEL.FPN.P7_RELU", "False"], "P7_RELU: False"),
    ],
)
def test_what_detectron2_has_not(tmp_path: Path, overrides: list[str], said: str) -> None:
    cfg = small_config(*overrides)
    torch.save({"model": FocalRetinaNet(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "model.pth", tmp_path / "out", to="detectron2")


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    model = FocalRetinaNet(small_config())
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(small_config("MODEL.RETINANET.NUM_CONVS", 2).dump())
    with pytest.raises(UserError, match="4 are missing"):
        convert(tmp_path / "model.pth", tmp_path / "out")
