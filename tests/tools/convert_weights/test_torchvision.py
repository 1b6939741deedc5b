"""torchvision's RetinaNets: their weights detect the same here, and ours detect the same there."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torchvision
from agreement import (
    PICTURES,
    assert_equal,
    detect,
    detect_torchvision,
    ours,
    spread,
)
from conftest import small_config
from retinanet_plugin.tools.convert_weights.command.conversion import convert
from retinanet_plugin.tools.convert_weights.command.model import NoRandomValues, Options
from torchvision.models import resnet18
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet_plugin import UserError, get_config
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.modeling import FocalRetinaNet

FACTORIES = ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"]


def new(name: str, num_classes: int = 91) -> RetinaNet:
    factory = getattr(torchvision.models.detection, name)
    with NoRandomValues():  # spread, or the weights to load, come over them
        return factory(weights=None, weights_backbone=None, num_classes=num_classes).eval()


@pytest.fixture(scope="module", params=FACTORIES)
def theirs(request, tmp_path_factory) -> tuple[str, RetinaNet, Path]:
    """A model of torchvision and its weights; outputs that no picture trains never score."""
    torch.manual_seed(1)
    model = new(request.param)
    head = model.head.classification_head
    spread(_all_of(model), head.cls_logits, model.head.regression_head.bbox_reg, PICTURES[0][None])
    unused = [i for i, name in enumerate(_COCO_CATEGORIES) if name in ("__background__", "N/A")]
    with torch.no_grad():
        head.cls_logits.bias.view(9, 91)[:, unused] = -30
        head.cls_logits.weight.view(9, 91, -1)[:, unused] = 0
    file = tmp_path_factory.mktemp(request.param) / "theirs.pth"
    torch.save(model.state_dict(), file)
    return request.param, model, file


def _all_of(model: RetinaNet) -> torch.nn.Module:
    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, pictures):
            return self.inner.head(list(self.inner.backbone(pictures).values()))

    return Outputs()


@pytest.fixture(scope="module")
def here(theirs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("here")
    convert(theirs[2], out)
    return out


def test_detections_are_the_same_here(theirs, here: Path) -> None:
    _, model, _ = theirs
    converted = ours(here)
    classes = torch.load(here / "model_final.pth", weights_only=True)["classes"]
    number = {name: i for i, name in enumerate(classes)}
    for picture in PICTURES:
        boxes, scores, labels = detect_torchvision(model, picture)
        kinds = torch.tensor([number[_COCO_CATEGORIES[label]] for label in labels])
        assert_equal(detect(converted, picture), (boxes, scores, kinds))


def test_and_there_again(theirs, here: Path, tmp_path: Path) -> None:
    name, model, _ = theirs
    said = convert(here / "model_final.pth", tmp_path, to="torchvision")
    assert f"{name}(weights=None" in said and "num_classes=91" in said
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    again = new(name)
    again.load_state_dict(state, strict=True)
    for picture in PICTURES[1:]:
        assert_equal(detect_torchvision(again, picture), detect_torchvision(model, picture))
    before = model.state_dict()
    assert before.keys() == state.keys()
    reached = [key for key in before if not torch.equal(before[key], state[key])]
    assert reached == ["head.classification_head.cls_logits.bias"]  # of outputs that never score


def test_every_key_is_reported(theirs, here: Path) -> None:
    _, model, _ = theirs
    report = json.loads((here / "conversion.json").read_text())
    used = {row["from"] for row in report["used"]}
    unused = {row["from"] for row in report["unused"]}
    assert used | unused == set(model.state_dict()) and not used & unused
    assert {x for x in unused if not x.endswith("num_batches_tracked")} == set()
    weights = torch.load(here / "model_final.pth", weights_only=True)["model"]
    assert {row["to"] for row in report["used"] + report["made"]} == set(weights)


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[RetinaNet, Path]:
    """A model with four outputs in the key layout of before torchvision 0.14, frozen norms."""
    torch.manual_seed(2)
    backbone = _resnet_fpn_extractor(
        resnet18(weights=None), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = RetinaNet(backbone, 4).eval()
    head = model.head
    spread(
        _all_of(model),
        head.classification_head.cls_logits,
        head.regression_head.bbox_reg,
        PICTURES[0][None],
    )
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("batches_tracked")}
    old = {}
    for key, value in state.items():
        words = key.split(".")
        if "_blocks" in key and words[-2] == "0":
            del words[-2]
        if ".conv." in key and words[0] == "head":
            words = [*words[:3], str(2 * int(words[3])), words[-1]]
        old[".".join(words)] = value
    assert {"backbone.fpn.inner_blocks.2.bias", "head.regression_head.conv.6.weight"} < old.keys()
    file = tmp_path_factory.mktemp("four") / "old.pth"
    torch.save({"model": old}, file)
    return model, file


@pytest.mark.parametrize("has_background", [True, False])
def test_classes_of_ones_own(four, tmp_path: Path, has_background: bool) -> None:
    model, file = four
    names = ["cat", "dog", "owl"] if has_background else ["ant", "cat", "dog", "owl"]
    convert(file, tmp_path, options=Options(names, has_background))
    converted = ours(tmp_path)
    model = copy.deepcopy(model)
    if has_background:
        with torch.no_grad():  # it cannot be found here
            logits = model.head.classification_head.cls_logits
            logits.weight.view(9, 4, -1)[:, 0] = 0
            logits.bias.view(9, 4)[:, 0] = -30
    boxes, scores, labels = detect_torchvision(model, PICTURES[0])
    assert_equal(detect(converted, PICTURES[0]), (boxes, scores, labels - int(has_background)))
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["classes"] == names


def test_norms_of_another_epsilon(four, tmp_path: Path) -> None:
    model, file = four
    convert(file, tmp_path, options=Options(has_background=False, norm_eps=0.01))
    model = copy.deepcopy(model)
    for module in model.modules():
        if "BatchNorm" in type(module).__name__:
            module.eps = 0.01
    assert_equal(detect(ours(tmp_path), PICTURES[1]), detect_torchvision(model, PICTURES[1]))


def test_half_a_match_is_refused(four, tmp_path: Path) -> None:
    _, file = four
    state = torch.load(file, weights_only=True)["model"]
    for change, said in (
        ({"backbone.fpn.inner_blocks.1.bias": None}, r"1 are missing .*fpn_lateral4.bias"),
        ({"backbone.fpn.inner_blocks.1.scale": torch.zeros(2)}, "inner_blocks.1.scale"),
        ({"head.regression_head.bbox_reg.bias": torch.zeros(35)}, "shapes of no RetinaNet"),
        ({"backbone.fpn.inner_blocks.1.bias": torch.zeros(255)}, r"another shape .*\(255,\), not"),
        ({"backbone.body.conv1.weight": torch.tensor(1.0)}, "shapes of no RetinaNet"),
        ({"backbone.body.layer3.1.conv2.weight": None}, "are missing"),
        ({"head.regression_head.bbox_reg.weight": torch.zeros(60, 256, 3, 3)}, "9 anchors"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        torch.save(changed, tmp_path / "half.pth")
        with pytest.raises(UserError, match=said):
            convert(tmp_path / "half.pth", tmp_path / "out")
    assert not (tmp_path / "out" / "model_final.pth").exists()


# ---------------------------------------------------------------- models of ours


def made_by_script(folder: Path) -> RetinaNet:
    """By the model.py that was written, as a person without this package has it."""
    spec = importlib.util.spec_from_file_location("theirs", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build()


@pytest.mark.parametrize(
    "base, overrides",
    [
        ("Base-Scratch-R18.yaml", ["MODEL.ANCHOR_GENERATOR.OFFSET", "0.5"]),
        ("Base-RetinaNet.yaml", ["MODEL.RETINANET.NUM_CONVS", "1"]),  # BGR, stride in 1x1
    ],
)
def test_our_models_detect_the_same_there(tmp_path: Path, base: str, overrides) -> None:
    cfg = get_config(
        base,
        [
            *("MODEL.DEVICE", "cpu", "MODEL.RETINANET.NUM_CLASSES", "3"),
            *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.CLIP_BEFORE_NMS", "True"),
            *overrides,
        ],
    )
    with NoRandomValues():
        model = FocalRetinaNet(cfg).eval()
    images = model.preprocess_image([{"image": PICTURES[0] * 255}]).tensor

    def outputs(pictures):
        return model.head(list(model.backbone(pictures).values()))

    wrapped = torch.nn.Module()
    wrapped.inner, wrapped.forward = model, outputs
    spread(wrapped, model.head.cls_score, model.head.bbox_pred, images)
    weights = tmp_path / "model_final.pth"
    torch.save({"model": model.state_dict(), "classes": ["a", "b", "c"]}, weights)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    convert(weights, tmp_path / "out", to="torchvision")
    theirs = made_by_script(tmp_path / "out")
    for picture in PICTURES:
        boxes, scores, classes = detect(model, picture, cfg.INPUT.FORMAT)
        assert_equal(detect_torchvision(theirs, picture), (boxes, scores, classes + 1))
    with pytest.raises(UserError, match=r"model\.json beside it tells of anchors"):
        convert(tmp_path / "out" / "model.pth", tmp_path / "back")
    labels = json.loads((tmp_path / "out" / "model.json").read_text())["labels"]
    assert labels == {"1": "a", "2": "b", "3": "c"}


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["MODEL.FPN.NORM", "SyncBN"], "MODEL.FPN.NORM: SyncBN"),
        (["MODEL.RETINANET.IN_FEATURES", "('p3','p4')"], r"MODEL.RETINANET.IN_FEATURES: \['p3'"),
        (["MODEL.RETINANET.CLASS_AGNOSTIC_BBOX_REG", "False"], "CLASS_AGNOSTIC_BBOX_REG: False"),
    ],
)
def test_what_torchvision_has_not(tmp_path: Path, overrides: list[str], said: str) -> None:
    cfg = small_config(*overrides)
    torch.save({"model": FocalRetinaNet(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "model.pth", tmp_path / "out", to="torchvision")


# ---------------------------------------------------------------- backbones


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_a_backbone_gives_the_same_features(tmp_path: Path, name: str) -> None:
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    said = convert(tmp_path / "resnet.pth", tmp_path / "out")
    assert "unused: 2 (the classifier of ImageNet)" in said
    cfg = get_config(tmp_path / "out" / "config.yaml", ["MODEL.DEVICE", "cpu"])
    model = FocalRetinaNet(cfg).eval()
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    picture = PICTURES[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        x = ((picture - mean[:, None, None]) / std[:, None, None])[None]
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        images = model.preprocess_image([{"image": picture * 255}])
        found = model.backbone.bottom_up(images.tensor)["res5"]
    assert cfg.INPUT.FORMAT == "RGB"
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    missing = json.loads((tmp_path / "out" / "conversion.json").read_text())["missing"]
    assert "head.cls_score.weight" in missing and not any("bottom_up" in x for x in missing)
