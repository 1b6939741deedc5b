"""The model card beside converted weights."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import small_config
from torchvision.models import resnet18

from retinanet_plugin.modeling import FocalRetinaNet
from retinanet_plugin.tools.convert_weights.conversion import convert
from retinanet_plugin.tools.convert_weights.model import NoRandomValues

CLASSES = ["dög", "<b>cat</b>", "c|d"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What training leaves behind: AP was 11 in the middle, 25.5 at the end."""
    folder = tmp_path_factory.mktemp("run")
    cfg = small_config(
        *("MODEL.RETINANET.NUM_CLASSES", 3, "DATASETS.OWN.ROOT", folder / "home" / "pets"),
        *("DATASETS.OWN.TRAIN_JSON", "train.json", "DATASETS.OWN.TEST_JSON", "val.json"),
    )
    with NoRandomValues():
        weights = FocalRetinaNet(cfg).state_dict()
    for name, iteration in (("model_0000049", 49), ("model_final", 99)):
        content = {"model": weights, "classes": CLASSES, "iteration": iteration}
        torch.save(content, folder / f"{name}.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [
        {"iteration": step, "bbox/AP": value, "bbox/AP50": 50.25, "bbox/AP75": 5.0}
        for step, value in ((49, 11.0), (99, 25.5))
    ]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.parametrize(
    "to, name, ap", [("plugin", "model_0000049", "11.00"), ("detectron2", "model_final", "25.50")]
)
def test_own_runs_have_datasets_and_accuracy(run: Path, tmp_path: Path, to, name, ap) -> None:
    file = run / f"{name}.pth"
    convert(file, tmp_path, to=to)
    card = (tmp_path / "model_final.pth.md").read_text(encoding="utf-8")
    assert "own_train (pets/train.json)" in card and "own_test (pets/val.json)" in card
    assert str(run) not in card  # a card is for other people
    assert f"| {ap} | 50.25 | 5.00 |" in card and f"{name}.pth" in card
    assert "dög" in card and "<b>" not in card and "c|d" not in card
    for path in (file, tmp_path / "model_final.pth", tmp_path / "config.yaml"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert torch.__version__.partition("+")[0] in card


def test_foreign_files_do_not_take_the_accuracy_of_a_run_beside_them(run: Path, tmp_path: Path):
    cfg = small_config("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CONVS", 4)
    with NoRandomValues():
        weights = FocalRetinaNet(cfg).state_dict()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": weights, "iteration": 99}, tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "theirs", to="torchvision")
    theirs = torch.load(tmp_path / "theirs" / "model.pth", weights_only=True)
    torch.save({"model": theirs, "iteration": 99}, run / "theirs.pth")
    convert(run / "theirs.pth", tmp_path / "ours")
    for path in (tmp_path / "theirs" / "model.pth.md", tmp_path / "ours" / "model_final.pth.md"):
        card = path.read_text(encoding="utf-8")
        assert "retinanet evaluate" in card and "25.50" not in card
    assert "coco" not in card and "pets" not in card


def test_backbones_have_neither_classes_nor_accuracy(tmp_path: Path) -> None:
    with NoRandomValues():
        torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    convert(tmp_path / "resnet.pth", tmp_path / "out")
    card = (tmp_path / "out" / "model_final.pth.md").read_text(encoding="utf-8")
    assert "torchvision ResNet" in card and "Accuracy" not in card and "classes" not in card
