"""torchvision's RetinaNets: their weights detect the same here, and ours detect the same there."""

import copy
import json
import runpy
from pathlib import Path

import pytest
import torch
import torchvision
from agreement import (
    IMAGES,
    Outputs,
    assert_equal,
    converted,
    detect,
    detect_torchvision,
    imitate_training,
    imitate_training_of,
    save,
)
from torchvision.models import resnet18
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet_plugin import UserError, get_config
from retinanet_plugin.engine import SafeCheckpointer
from retinanet_plugin.modeling import FocalRetinaNet
from retinanet_plugin.tools.convert_weights.conversion import convert
from retinanet_plugin.tools.convert_weights.model import NoRandomValues, Options

FACTORIES = ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"]


def new(name: str, num_classes: int = 91) -> RetinaNet:
    factory = getattr(torchvision.models.detection, name)
    with NoRandomValues():  # the weights are overwritten anyway
        return factory(weights=None, weights_backbone=None, num_classes=num_classes).eval()


def imitate(model: RetinaNet) -> RetinaNet:
    logits, deltas = model.head.classification_head.cls_logits, model.head.regression_head.bbox_reg
    imitate_training(Outputs(model), logits, deltas, IMAGES[0][None])
    return model


@pytest.fixture(scope="module", params=FACTORIES)
def theirs(request, tmp_path_factory) -> tuple[str, RetinaNet, Path]:
    """A model of torchvision and its weights; outputs that are never trained never score."""
    torch.manual_seed(1)
    model = imitate(new(request.param))
    logits = model.head.classification_head.cls_logits
    unused = [i for i, name in enumerate(_COCO_CATEGORIES) if name in ("__background__", "N/A")]
    with torch.no_grad():
        logits.bias.view(9, 91)[:, unused] = -30
        logits.weight.view(9, 91, -1)[:, unused] = 0
    file = tmp_path_factory.mktemp(request.param) / "theirs.pth"
    torch.save(model.state_dict(), file)
    return request.param, model, file


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("ours")
    convert(theirs[2], output)
    return output


def test_detections_are_the_same_here(theirs, ours: Path) -> None:
    model = converted(ours)
    classes = torch.load(ours / "model_final.pth", weights_only=True)["classes"]
    class_ids = {name: i for i, name in enumerate(classes)}
    for image in IMAGES:
        boxes, scores, labels = detect_torchvision(theirs[1], image)
        expected = torch.tensor([class_ids[_COCO_CATEGORIES[label]] for label in labels])
        assert_equal(detect(model, image), (boxes, scores, expected))


def test_and_back_in_torchvision(theirs, ours: Path, tmp_path: Path) -> None:
    name, model, _ = theirs
    convert(ours / "model_final.pth", tmp_path, to="torchvision")
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    again = new(name)
    again.load_state_dict(state, strict=True)
    for image in IMAGES[1:]:
        assert_equal(detect_torchvision(again, image), detect_torchvision(model, image))
    before = model.state_dict()
    assert before.keys() == state.keys()
    changed = [key for key in before if not torch.equal(before[key], state[key])]
    assert changed == ["head.classification_head.cls_logits.bias"]  # of outputs that never score


def test_every_key_is_recorded(theirs, ours: Path) -> None:
    record = json.loads((ours / "conversion.json").read_text())
    used, unused = ({row["from"] for row in record[key]} for key in ("used", "unused"))
    assert used | unused == set(theirs[1].state_dict()) and not used & unused
    assert all(key.endswith("num_batches_tracked") for key in unused)
    weights = torch.load(ours / "model_final.pth", weights_only=True)["model"]
    assert {row["to"] for row in record["used"] + record["made"]} == set(weights)


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[RetinaNet, Path]:
    """A model with four outputs and frozen norms, in the key layout before torchvision 0.14."""
    torch.manual_seed(2)
    backbone = _resnet_fpn_extractor(
        resnet18(weights=None), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = imitate(RetinaNet(backbone, 4).eval())
    old = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if "_blocks" in key and parts[-2] == "0":
            del parts[-2]
        if ".conv." in key and parts[0] == "head":
            parts = [*parts[:3], str(2 * int(parts[3])), parts[-1]]
        if parts[-1] != "num_batches_tracked":
            old[".".join(parts)] = value
    assert {"backbone.fpn.inner_blocks.2.bias", "head.regression_head.conv.6.weight"} < old.keys()
    file = tmp_path_factory.mktemp("four") / "old.pth"
    torch.save({"model": old}, file)
    return model, file


@pytest.mark.parametrize("has_background", [True, False])
def test_own_classes_and_norms(four, tmp_path: Path, has_background: bool) -> None:
    model, file = four
    eps = 0.01 if has_background else None
    names = ["cat", "dog", "owl"] if has_background else ["ant", "cat", "dog", "owl"]
    convert(file, tmp_path, options=Options(names, has_background, norm_eps=eps))
    model = copy.deepcopy(model)
    for module in model.modules():
        if eps and "BatchNorm" in type(module).__name__:
            module.eps = eps
    if has_background:
        with torch.no_grad():  # which is never detected here
            logits = model.head.classification_head.cls_logits
            logits.weight.view(9, 4, -1)[:, 0] = 0
            logits.bias.view(9, 4)[:, 0] = -30
    boxes, scores, labels = detect_torchvision(model, IMAGES[0])
    expected = (boxes, scores, labels - int(has_background))
    assert_equal(detect(converted(tmp_path), IMAGES[0]), expected)
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["classes"] == names


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("backbone.fpn.inner_blocks.1.bias", None, "fpn_lateral4.bias"),
        ("backbone.fpn.inner_blocks.1.scale", torch.zeros(2), "inner_blocks.1.scale"),
        ("backbone.fpn.inner_blocks.1.bias", torch.zeros(255), r"\(255,\), not"),
        ("head.regression_head.bbox_reg.bias", torch.zeros(35), "35"),
        ("head.regression_head.bbox_reg.weight", torch.zeros(60, 256, 3, 3), "9 anchors"),
        ("backbone.body.conv1.weight", torch.tensor(1.0), "half.pth"),
        ("backbone.body.layer3.1.conv2.weight", None, "res4.1.conv2.weight"),
    ],
)
def test_incomplete_weights_are_refused(four, tmp_path: Path, key, value, named) -> None:
    state = {**torch.load(four[1], weights_only=True)["model"], key: value}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "half.pth")
    with pytest.raises(UserError, match=named):
        convert(tmp_path / "half.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
        model = FocalRetinaNet(cfg)
    imitate_training_of(model)
    weights = save(cfg, tmp_path, model, classes=["a", "b", "c"])
    convert(weights, tmp_path / "out", to="torchvision")
    theirs = runpy.run_path(str(tmp_path / "out" / "model.py"))["build"]()  # needs torchvision only
    for image in IMAGES:
        boxes, scores, classes = detect(model, image, cfg.INPUT.FORMAT)
        assert_equal(detect_torchvision(theirs, image), (boxes, scores, classes + 1))
    with pytest.raises(UserError, match=r"model\.json"):
        convert(tmp_path / "out" / "model.pth", tmp_path / "back")
    labels = json.loads((tmp_path / "out" / "model.json").read_text())["labels"]
    assert labels == {"1": "a", "2": "b", "3": "c"}


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_backbones_give_the_same_features(tmp_path: Path, name: str) -> None:
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    convert(tmp_path / "resnet.pth", tmp_path / "out")
    cfg = get_config(tmp_path / "out" / "config.yaml", ["MODEL.DEVICE", "cpu"])
    model = FocalRetinaNet(cfg).eval()
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        x = ((IMAGES[0] - mean[:, None, None]) / std[:, None, None])[None]
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        images = model.preprocess_image([{"image": IMAGES[0] * 255}])
        actual = model.backbone.bottom_up(images.tensor)["res5"]
    assert cfg.INPUT.FORMAT == "RGB"
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert "head.cls_score.weight" in record["missing"]
    assert not any("bottom_up" in name for name in record["missing"])
    assert {row["from"] for row in record["unused"]} >= {"fc.weight", "fc.bias"}
