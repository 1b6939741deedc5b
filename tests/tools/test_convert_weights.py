"""The command that converts weights: what it says, what it refuses, and what it leaves alone."""

import os
from pathlib import Path

import pytest
import torch
from retinanet_plugin.tools.convert_weights.command.command import main
from torchvision.models import resnet18

from retinanet_plugin import UserError


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    torch.save(resnet18(weights=None).state_dict(), file)
    return file


def test_the_table_and_the_files(resnet: Path, tmp_path: Path, capsys) -> None:
    main([str(resnet), str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{resnet}: torchvision ResNet"
    # 20 convolutions and as many norms of 4 numbers a channel; nothing for pyramid and head
    assert lines[2].split() == ["backbone", "100", "0", "0"]
    assert lines[5].split() == ["all", "100", "0", "36"]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["config.yaml", "conversion.json", "model_final.pth", "model_final.pth.md"]
    with pytest.raises(UserError, match=r"already holds .*--overwrite"):
        main([str(resnet), str(tmp_path / "out")])
    main([str(resnet), str(tmp_path / "out"), "--overwrite"])


@pytest.mark.parametrize(
    "words, said",
    [
        (["--to", "torchvision"], "backbone alone"),
        (["--config-file", "Base-RetinaNet.yaml"], "--config-file is for weights with this"),
        (["--caffe-style"], "--caffe-style is for a mmdetection RetinaNet, and this is a torchv"),
        (["--norm-eps", "0"], "--norm-eps is for a torchvision RetinaNet, and this is"),
        (["--classes", "cat"], "--classes is for detectors"),
    ],
)
def test_options_that_do_not_go_with_the_file(
    resnet: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        main([str(resnet), str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, said",
    [
        ({"model": {"encoder.weight": torch.zeros(2)}}, "of no known kind; known are RetinaNets"),
        ({"model": {"epoch": 3}}, "it holds no tensors, but epoch"),
        ({}, "it holds no tensors, it is empty"),
        ({"module.a": torch.zeros(1), "a": torch.ones(1)}, "a is there twice"),
        ({"state_dict": {"bbox_head.retina_cls.weight": torch.zeros(9)}}, "box subnet is absent"),
        ({"conv1_w": torch.zeros(2)}, "MODEL.WEIGHTS takes as they are"),
        ([1, 2], "no checkpoint that can be read safely"),
        ({"head.cls_score.weight": torch.zeros(())}, "mine.pth: "),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=said):
        main([str(tmp_path / "mine.pth"), str(tmp_path / "out")])


def test_numbers_that_no_training_leaves_behind(resnet: Path, tmp_path: Path) -> None:
    weights = torch.load(resnet, weights_only=True)
    for key, change, said in (
        ("conv1.weight", lambda x: x / 0, r"stem\.conv1\.weight holds NaN or infinite"),
        ("bn1.running_var", lambda x: x - 2, "variances below 0"),
        ("conv1.weight", lambda x: x.to(torch.int8), "int8 numbers"),
        ("conv1.weight", lambda x: x.to("meta"), "of no known kind"),
    ):
        torch.save({**weights, key: change(weights[key])}, tmp_path / "mine.pth")
        with pytest.raises(UserError, match=said):
            main([str(tmp_path / "mine.pth"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_half_precision_becomes_float32(resnet: Path, tmp_path: Path) -> None:
    weights = torch.load(resnet, weights_only=True)
    halved = {k: x.half() if x.is_floating_point() else x for k, x in weights.items()}
    torch.save({"model": halved, "epoch": 1}, tmp_path / "half.pth")
    main([str(tmp_path / "half.pth"), str(tmp_path / "out")])
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    stem = saved["backbone.bottom_up.stem.conv1.weight"]
    assert stem.dtype == torch.float32 and torch.equal(stem, weights["conv1.weight"].half().float())


@pytest.mark.parametrize(
    "name, said",
    [
        ("mine.pth", r"no checkpoint .* \(PyTorch has not written it\)"),
        ("mine.safetensors", "write it as a .pth"),
    ],
)
def test_other_formats(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    with pytest.raises(UserError, match=said):
        main([str(tmp_path / name), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_file_itself_is_not_replaced(resnet: Path, tmp_path: Path) -> None:
    file = tmp_path / "model_final.pth"
    file.write_bytes(resnet.read_bytes())
    with pytest.raises(UserError, match=r"holds FILE, which would be replaced"):
        main([str(file), str(tmp_path), "--overwrite"])
    assert file.read_bytes() == resnet.read_bytes()


class Command:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_file_that_would_run_a_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"bbox_head.retina_cls.weight": Command()}}, "bad.pth")
    with pytest.raises(UserError, match=r"^bad\.pth is no checkpoint that can be read safely"):
        main(["bad.pth", "out"])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]
