"""The model card beside converted weights."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import small_config
from retinanet_plugin.tools.convert_weights.command.conversion import convert
from retinanet_plugin.tools.convert_weights.command.model import NoRandomValues
from torchvision.models import resnet18

from retinanet_plugin.modeling import FocalRetinaNet

CLASSES = ["dög", "<b>cat</b>", "c|d"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What training leaves behind: AP is 11 in the middle, 25.5 at the end."""
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


@pytest.mark.parametrize("to", ["plugin", "detectron2"])
@pytest.mark.parametrize("name, ap", [("model_0000049", "11.00"), ("model_final", "25.50")])
def test_what_a_run_of_ones_own_tells(run: Path, tmp_path: Path, to, name, ap) -> None:
    file = run / f"{name}.pth"
    said = convert(file, tmp_path, to=to)
    path = tmp_path / "model_final.pth.md"
    assert str(path) in said.splitlines()
    card = path.read_text(encoding="utf-8")
    assert "own_train (pets/train.json)" in card and "own_test (pets/val.json)" in card
    assert str(run) not in card  # a card is for other people
    assert f"| {name}.pth, when it was trained | {ap} | 50.25 | 5.00 |" in card
    assert "dög" in card and "<b>" not in card and "c|d" not in card
    assert "tools.evaluate --model" in card.partition("## Speed")[2]
    for part in (file, tmp_path / "model_final.pth", tmp_path / "config.yaml"):
        assert hashlib.sha256(part.read_bytes()).hexdigest() in card
    assert torch.__version__ in card


def test_what_a_file_of_others_does_not_tell(run: Path, tmp_path: Path) -> None:
    """No data set of a config, nor AP of a run, that happens to lie beside it."""
    cfg = small_config("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CONVS", 4)
    with NoRandomValues():
        weights = FocalRetinaNet(cfg).state_dict()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": weights, "iteration": 99}, tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "there", to="torchvision")
    theirs = torch.load(tmp_path / "there" / "model.pth", weights_only=True)
    torch.save({"model": theirs, "iteration": 99}, run / "theirs.pth")
    convert(run / "theirs.pth", tmp_path / "here")
    for card in (tmp_path / "there" / "model.pth.md", tmp_path / "here" / "model_final.pth.md"):
        text = card.read_text(encoding="utf-8")
        assert text.count("Not measured; `python -m retinanet_plugin.tools.") == 2
        assert "25.50" not in text
    assert "| trained on | not told by the file |" in text
    assert "coco" not in text and "pets" not in text


def test_of_a_backbone(tmp_path: Path) -> None:
    with NoRandomValues():
        torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    convert(tmp_path / "resnet.pth", tmp_path / "out")
    card = (tmp_path / "out" / "model_final.pth.md").read_text(encoding="utf-8")
    assert "torchvision ResNet" in card and "the backbone alone" in card
    assert "Accuracy" not in card and "classes" not in card
