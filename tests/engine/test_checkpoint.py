"""Checkpoints: the classes that they hold, and what is said of weights that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retinanet_plugin import UserError
from retinanet_plugin.engine import SafeCheckpointer

SEVEN = ["a", "b", "c", "d", "e", "f", "g"]


class Detector(nn.Module):
    """Named as a detector is, and quickly made: 2 parameters a layer, 4 in the head."""

    def __init__(self, layers: int = 2, width: int = 4, num_classes: int = 7) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*[nn.Conv2d(width, width, 1) for _ in range(layers)])
        self.head = nn.Module()
        self.head.cls_score = nn.Conv2d(width, 9 * num_classes, 1)
        self.head.bbox_pred = nn.Conv2d(width, 36, 1)


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Path:
    """A checkpoint of a model of seven classes, which it names."""
    folder = tmp_path_factory.mktemp("seven")
    SafeCheckpointer(Detector(), str(folder), classes=SEVEN).save("model", iteration=4)
    return folder / "model.pth"


def load(weights: Path, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    return SafeCheckpointer(model or Detector(), **options).load(str(weights))


def refused(weights: Path, model: nn.Module | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        load(weights, model, complete=True, **options)
    return str(error.value)


def test_classes_are_saved_and_come_back(seven: Path) -> None:
    assert torch.load(seven, weights_only=True)["classes"] == SEVEN
    loaded = load(seven, complete=True, classes=SEVEN)
    assert loaded["classes"] == SEVEN and loaded["iteration"] == 4


def test_a_checkpoint_without_classes(seven: Path, tmp_path: Path) -> None:
    old = torch.load(seven, weights_only=True)
    del old["classes"]
    torch.save(old, tmp_path / "old.pth")
    assert "classes" not in load(tmp_path / "old.pth", complete=True, classes=SEVEN)


def test_weights_of_another_number_of_classes(seven: Path) -> None:
    said = refused(seven, Detector(num_classes=3))
    assert "the checkpoint gives 6 of the model's 8 parameters, 2 are of another shape" in said
    assert "head.cls_score.weight is (63, 4, 1, 1) there and (27, 4, 1, 1) here" in said
    assert "NUM_CLASSES (there: 7, a, b, c, ...)" in said
    ours = Detector(num_classes=3)
    load(seven, ours)  # to go on training
    saved = torch.load(seven, weights_only=True)["model"]
    assert torch.equal(ours.head.bbox_pred.weight, saved["head.bbox_pred.weight"])


def test_weights_of_another_backbone(seven: Path) -> None:
    said = refused(seven, Detector(layers=5))
    assert "gives 8 of the model's 14 parameters, 6 are absent there (backbone.2.weight" in said
    assert "another backbone" in said and "MODEL.RESNETS.DEPTH" in said
    said = refused(seven, Detector(layers=1, width=2))
    assert "gives 2 of the model's 6 parameters, 4 are of another shape there" in said
    assert "2 of its own are not used (backbone.1.weight" in said and "another backbone" in said


@pytest.mark.parametrize(
    "classes, sentence",
    [
        (["b", "a", *SEVEN[2:]], '2 of 7 differ, class 0 is "a" there, "b" here'),
        ([*SEVEN[:6], "z"], '1 of 7 differ, class 6 is "g" there, "z" here'),
    ],
)
def test_other_classes_are_not_evaluated_but_trained_on(
    seven: Path, classes: list[str], sentence: str
) -> None:
    assert sentence in refused(seven, classes=classes)
    assert load(seven, classes=classes)["classes"] == SEVEN


@pytest.mark.parametrize("classes", [["g", "new", "b"], ["b", "a", *SEVEN[2:]], list("uvwxyz7")])
def test_fine_tuning_takes_the_classes_that_are_shared(
    seven: Path, classes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where as many classes have other names, or another order."""
    caplog.set_level("INFO", "retinanet_plugin")
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
            for i, kind in enumerate(classes):
                row = value[anchor * len(classes) + i]
                is_shared = kind in SEVEN
                where = anchor * 7 + SEVEN.index(kind) if is_shared else anchor * len(classes) + i
                assert torch.equal(row, (there if is_shared else before)[name][where])
    shared = len(set(classes) & set(SEVEN))
    kept = f"keeps, by name, the outputs of {shared} classes" if shared else "convolution starts"
    assert kept in caplog.text and "from the prior" in caplog.text


def test_fine_tuning_where_the_checkpoint_names_no_classes(
    seven: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "retinanet_plugin")
    nameless = torch.load(seven, weights_only=True)
    del nameless["classes"]
    torch.save(nameless, tmp_path / "nameless.pth")
    ours = Detector(num_classes=3)
    before = ours.head.cls_score.bias.clone()
    load(tmp_path / "nameless.pth", ours, classes=["a", "b", "c"])
    assert torch.equal(ours.head.cls_score.bias, before)
    assert "the class convolution starts from the prior" in caplog.text
