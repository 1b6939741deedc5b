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


@pytest.fixture
def nameless(seven: Path, tmp_path: Path) -> Path:
    """The same without names of classes."""
    content = torch.load(seven, weights_only=True)
    del content["classes"]
    torch.save(content, tmp_path / "nameless.pth")
    return tmp_path / "nameless.pth"


def load(weights: Path, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    return SafeCheckpointer(model or Detector(), **options).load(str(weights))


def test_classes_are_saved(seven: Path, nameless: Path) -> None:
    assert torch.load(seven, weights_only=True)["classes"] == SEVEN
    loaded = load(seven, complete=True, classes=SEVEN)
    assert loaded["classes"] == SEVEN and loaded["iteration"] == 4
    assert "classes" not in load(nameless, complete=True, classes=SEVEN)


@pytest.mark.parametrize(
    "model, named",
    [
        (
            Detector(num_classes=3),
            [" 6 of the .* 8 ", r"\(63, 4, 1, 1\)", r"\(27, 4", "NUM_CLASSES"],
        ),
        (Detector(layers=5), [" 8 of the .* 14 ", "6 are missing .*backbone.2.weight", "DEPTH"]),
        (Detector(layers=1, width=2), [" 2 of the .* 6 ", "unused .*backbone.1", "DEPTH"]),
    ],
    ids=["classes", "layers", "width"],
)
def test_weights_of_another_model(seven: Path, model: Detector, named: list[str]) -> None:
    for pattern in named:
        with pytest.raises(UserError, match=f"MODEL.WEIGHTS: .*{pattern}"):
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
                if label in SEVEN:
                    expected = there[name][anchor * 7 + SEVEN.index(label)]
                else:
                    expected = before[name][row]
                assert torch.equal(value[row], expected)


def test_fine_tuning_without_names_starts_from_the_prior(nameless: Path) -> None:
    ours = Detector(num_classes=3)
    before = ours.head.cls_score.bias.clone()
    load(nameless, ours, classes=["a", "b", "c"])
    assert torch.equal(ours.head.cls_score.bias, before)


def save(path: Path, step: int = 1) -> None:
    torch.save({"model": {"w": torch.arange(5000.0) + step}, "iteration": step}, path)


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


@pytest.mark.parametrize("length", [0, 10, 5000, -1])
def test_a_truncated_file_is_found(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model_0000001.pth"
    save(path)
    path.write_bytes(path.read_bytes()[:length])
    assert fault_of(path) is not None
    assert fault_of(tmp_path / "absent.pth") is not None


@pytest.mark.parametrize("bytes_behind, value", [(8, 1), (10, 8), (10, 12), (10, 99)])
def test_a_run_with_damaged_checkpoints(tmp_path: Path, bytes_behind: int, value: int) -> None:
    """The flipped bits say that an entry is encrypted, or compressed in some way."""
    path = tmp_path / "model_0000002.pth"
    save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + bytes_behind] = value
    data[data.index(b"PK\3\4") + bytes_behind - 2] = value
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
        ("model_0000019.pth", ["0000019", "0000009", "0000004", "final"]),  # a longer MAX_ITER
        ("model_0000009.pth", ["0000009", "0000019", "0000004", "final"]),
        ("model_best.pth", ["final", "0000019", "0000009", "0000004"]),
        ("model_0000099.pth", ["final", "0000019", "0000009", "0000004"]),
        ("../model_0000009.pth", ["final", "0000019", "0000009", "0000004"]),
        ("\0" * 5000, ["final", "0000019", "0000009", "0000004"]),
        (None, ["final", "0000019", "0000009", "0000004"]),
    ],
)
def test_the_newest_is_first(tmp_path: Path, last: str | None, newest: list[str]) -> None:
    for time, name in enumerate(("0000019", "final", "0000009", "best", "0000004")):
        (tmp_path / f"model_{name}.pth").touch()
        os.utime(tmp_path / f"model_{name}.pth", (1000 + time, 1000 + time))
    if last is not None:
        (tmp_path / "last_checkpoint").write_text(last)
    assert [p.name for p in resumable(tmp_path)] == [f"model_{name}.pth" for name in newest]


def test_a_run_is_not_resumed_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(tmp_path / "outside.pth")
    (tmp_path / "run" / "last_checkpoint").write_text("../outside.pth")
    assert SafeCheckpointer(nn.Module(), str(tmp_path / "run")).get_checkpoint_file() == ""


def test_the_latest_steps_are_kept(tmp_path: Path) -> None:
    for name in ("0000001", "0000002", "0000030", "0000004", "12345678", "final", "best"):
        (tmp_path / f"model_{name}.pth").touch()
    remove_old(tmp_path, 0)
    assert len(os.listdir(tmp_path)) == 7
    remove_old(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [
        *("model_0000030.pth", "model_12345678.pth", "model_best.pth", "model_final.pth")
    ]
