"""Checkpoints: classes, weights that do not fit, damaged files, and which one is the newest."""

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retinanet_plugin import UserError
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.engine.checkpoint import fault_of, remove_old, resumable

SEVEN = ["a", "b", "c", "d", "e", "f", "g"]


class Detector(nn.Module):
    """A small model with a detector's names: 2 parameters per layer, 4 in the head."""

    def __init__(self, layers: int = 2, width: int = 4, num_classes: int = 7) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*[nn.Conv2d(width, width, 1) for _ in range(layers)])
        self.head = nn.Module()
        self.head.cls_score = nn.Conv2d(width, 9 * num_classes, 1)
        self.head.bbox_pred = nn.Conv2d(width, 36, 1)


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Path:
    """A checkpoint of a model of seven classes, with their names."""
    folder = tmp_path_factory.mktemp("seven")
    SafeCheckpointer(Detector(), str(folder), classes=SEVEN).save("model", iteration=4)
    return folder / "model.pth"


def load(weights: Path, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    return SafeCheckpointer(model or Detector(), **options).load(str(weights))


@pytest.mark.parametrize(
    "model, named",
    [
        (Detector(num_classes=3), r" 6 of .* 8 .*\(63, 4, 1, 1\).*\(27, 4.*NUM_CLASSES"),
        (Detector(layers=5), " 8 of .* 14 .*6 are missing .*backbone.2.weight.*DEPTH"),
        (Detector(layers=1, width=2), " 2 of .* 6 .*unused .*backbone.1.*DEPTH"),
    ],
    ids=["classes", "layers", "width"],
)
def test_weights_of_another_model(seven: Path, model: Detector, named: str) -> None:
    with pytest.raises(UserError, match=f"MODEL.WEIGHTS: .*{named}"):
        load(seven, model, complete=True)


@pytest.mark.parametrize("classes", [["b", "a", *SEVEN[2:]], [*SEVEN[:6], "z"]])
def test_evaluation_refuses_other_classes(seven: Path, classes: list[str]) -> None:
    with pytest.raises(UserError, match=r'MODEL.WEIGHTS: .*"[ag]" in the file, "[bz]" here'):
        load(seven, classes=classes, complete=True)
    assert load(seven, classes=classes)["classes"] == SEVEN


@pytest.mark.parametrize("classes", [["g", "new", "b"], ["b", "a", *SEVEN[2:]], list("uvwxyz7")])
def test_fine_tuning_keeps_shared_classes(seven: Path, classes: list[str]) -> None:
    """By name, also if the number of classes is the same."""
    ours = Detector(num_classes=len(classes))
    ours.head.cls_score.bias.data.fill_(-4.6)  # the prior
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    load(seven, ours, classes=classes)
    there = torch.load(seven, weights_only=True)["model"]
    for name, value in ours.state_dict().items():
        if "cls_score" not in name:
            assert torch.equal(value, there[name])
            continue
        for anchor in range(9):
            for i, label in enumerate(classes):
                row = anchor * len(classes) + i
                expected = before[name][row]
                if label in SEVEN:
                    expected = there[name][anchor * 7 + SEVEN.index(label)]
                assert torch.equal(value[row], expected)


def test_without_names_of_classes(seven: Path, tmp_path: Path) -> None:
    content = torch.load(seven, weights_only=True)
    del content["classes"]
    torch.save(content, tmp_path / "nameless.pth")
    assert load(tmp_path / "nameless.pth", complete=True, classes=list("tuvwxyz"))["iteration"] == 4
    ours = Detector(num_classes=3)
    before = ours.head.cls_score.bias.clone()
    load(tmp_path / "nameless.pth", ours, classes=["a", "b", "c"])
    assert torch.equal(ours.head.cls_score.bias, before)


def save(path: Path) -> None:
    torch.save({"model": {"w": torch.arange(5000.0)}, "iteration": 1}, path)


def test_a_flipped_bit_in_any_tensor_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model_0000001.pth"
    save(path)
    assert fault_of(path) is None
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [x for x in archive.infolist() if x.file_size > 100]
    assert len(entries) >= 2  # the structure and the tensor
    for entry in entries:
        changed = bytearray(whole)
        header = whole[entry.header_offset : entry.header_offset + 30]
        lengths = struct.unpack("<HH", header[26:])  # of the name and the extra field
        changed[entry.header_offset + 30 + sum(lengths) + entry.file_size // 2] ^= 1
        path.write_bytes(changed)
        assert fault_of(path) is not None, entry.filename


@pytest.mark.parametrize("fault", ["empty", "cut", "encrypted", "unknown compression"])
def test_a_run_with_damaged_checkpoints(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "model_0000002.pth"
    save(path)
    data = bytearray(path.read_bytes())
    if fault in ("empty", "cut"):
        data = data[: -1 if fault == "cut" else 0]
    else:
        behind, value = (8, 1) if fault == "encrypted" else (10, 99)
        data[data.index(b"PK\1\2") + behind] = value
        data[data.index(b"PK\3\4") + behind - 2] = value
    path.write_bytes(data)
    checkpointer = SafeCheckpointer(nn.Module(), str(tmp_path))
    with pytest.raises(UserError, match=rf"{path.name}.*OUTPUT_DIR"):
        checkpointer.get_checkpoint_file()
    save(tmp_path / "model_0000001.pth")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


@pytest.mark.parametrize(
    ("last", "newest"),
    [
        ("model_final.pth", ["final", "0000019", "0000009", "0000004"]),
        ("model_0000009.pth", ["0000009", "0000019", "0000004", "final"]),
        ("model_best.pth", ["final", "0000019", "0000009", "0000004"]),
        ("../outside.pth", ["final", "0000019", "0000009", "0000004"]),
        (None, ["final", "0000019", "0000009", "0000004"]),
    ],
)
def test_the_newest_is_first(tmp_path: Path, last: str | None, newest: list[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in (tmp_path / "outside.pth", *(folder / f"model_{x}.pth" for x in (*newest, "best"))):
        path.touch()
    if last is not None:
        (folder / "last_checkpoint").write_text(last)
    assert [p.name for p in resumable(folder)] == [f"model_{name}.pth" for name in newest]


def test_the_latest_steps_are_kept(tmp_path: Path) -> None:
    for name in ("0000001", "0000002", "0000030", "0000004", "12345678", "final", "best"):
        (tmp_path / f"model_{name}.pth").touch()
    remove_old(tmp_path, 0)
    assert len(os.listdir(tmp_path)) == 7
    remove_old(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [
        *("model_0000030.pth", "model_12345678.pth", "model_best.pth", "model_final.pth")
    ]
