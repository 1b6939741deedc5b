"""The command that converts weights: what it writes, refuses, and leaves alone."""

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from retinanet_plugin import UserError, get_config
from retinanet_plugin.tools.convert_weights.command import main
from tests.safety.known_bad import Command


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    torch.save(resnet18(weights=None).state_dict(), file)
    return file


def convert(file: object, output: Path, *args: str) -> None:
    main(["--weights", str(file), "--output", str(output), *args])


def test_the_files_and_the_summary(resnet: Path, tmp_path: Path, capsys) -> None:
    convert(resnet, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert "torchvision ResNet" in lines[0]
    # 20 convolutions and as many norms of 4 tensors each; nothing for the pyramid and the head
    assert lines[1] == "used: 100" and "missing: 36 (left to training)" in lines
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["config.yaml", "conversion.json", "model_final.pth"]
    with pytest.raises(UserError, match="--overwrite"):
        convert(resnet, tmp_path / "out")
    convert(resnet, tmp_path / "out", "--overwrite")


def test_overrides_are_in_the_config(resnet: Path, tmp_path: Path) -> None:
    convert(resnet, tmp_path / "out", "SOLVER.BASE_LR", "0.003", "MODEL.PIXEL_MEAN", "[1,2,3]")
    cfg = get_config(tmp_path / "out/config.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.MODEL.PIXEL_MEAN) == (0.003, [1, 2, 3])
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR"):
        convert(resnet, tmp_path / "theirs", "--to", "detectron2", "SOLVER.BASE_LR", "0.003")


@pytest.mark.parametrize(
    "args",
    [
        ["--to", "torchvision"],
        ["--config-file", "Base-RetinaNet.yaml"],
        ["--caffe-style"],
        ["--norm-eps", "0"],
        ["--no-background"],
        ["--classes", "cat"],
    ],
)
def test_options_of_other_kinds_of_files(resnet: Path, tmp_path: Path, args: list[str]) -> None:
    with pytest.raises(UserError, match=args[0]):
        convert(resnet, tmp_path / "out", *args)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, named",
    [
        ({"model": {"encoder.weight": torch.zeros(2)}}, "encoder.weight"),
        ({"model": {"epoch": 3}}, "epoch"),
        ({}, "empty"),
        ({"state_dict": {"bbox_head.retina_cls.weight": torch.zeros(9)}}, "bbox_pred"),
        ({"head.cls_score.weight": torch.zeros(())}, ""),
        ([1, 2], ""),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), ""),
        ({"state_dict": {"bbox_head.retina_cls.weight": Command()}}, ""),
    ],
)
def test_other_files_are_refused(tmp_path: Path, monkeypatch, content: object, named) -> None:
    """And the commands in them are not run."""
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "mine.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=rf"mine\.pth.*{named}"):
        convert(tmp_path / "mine.pth", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pth"]


@pytest.mark.parametrize(
    "key, change, named",
    [
        ("conv1.weight", lambda x: x / 0, "NaN"),
        ("bn1.running_var", lambda x: x - 2, "negative"),
        ("conv1.weight", lambda x: x.to(torch.int8), "int8"),
        ("conv1.weight", lambda x: x.to("meta"), "mine"),
    ],
)
def test_values_that_no_training_leaves(resnet: Path, tmp_path: Path, key, change, named) -> None:
    weights = torch.load(resnet, weights_only=True)
    torch.save({**weights, key: change(weights[key])}, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=named):
        convert(tmp_path / "mine.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_becomes_float32(resnet: Path, tmp_path: Path) -> None:
    weights = torch.load(resnet, weights_only=True)
    halved = {k: x.half() if x.is_floating_point() else x for k, x in weights.items()}
    torch.save({"model": halved, "epoch": 1}, tmp_path / "half.pth")
    convert(tmp_path / "half.pth", tmp_path / "out")
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    stem = saved["backbone.bottom_up.stem.conv1.weight"]
    assert stem.dtype == torch.float32 and torch.equal(stem, weights["conv1.weight"].half().float())


def test_the_file_itself_is_not_replaced(resnet: Path, tmp_path: Path) -> None:
    file = tmp_path / "model_final.pth"
    file.write_bytes(resnet.read_bytes())
    with pytest.raises(UserError, match="--output"):
        convert(file, tmp_path, "--overwrite")
    assert file.read_bytes() == resnet.read_bytes()
