"""mmdetection's RetinaNet: keys, and detections against its formulas.

It cannot be installed beside this PyTorch, so its model is written down here: the layout from its
published config, the arithmetic in float32 with PyTorch's functions alone.
"""

import json
import sys
import types
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agreement import IMAGES, assert_equal, converted, detect, imitate_training
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.ops import batched_nms, clip_boxes_to_image

from retinanet_plugin import UserError, get_config
from retinanet_plugin.tools.convert_weights.conversion import convert
from retinanet_plugin.tools.convert_weights.model import NoRandomValues, Options

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
CAFFE = """
model = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_input', num_outs=5))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
"""


class ConvModule(nn.Module):
    """mmcv's: a convolution, then a group norm instead of the bias, and a ReLU, if wanted."""

    def __init__(self, channels: int, out: int, size: int, *, stride=1, gn=False, relu=False):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, size, stride, size // 2, bias=not gn)
        if gn:
            self.gn = nn.GroupNorm(32, out)
        self.has_gn, self.relu = gn, relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.gn(self.conv(x)) if self.has_gn else self.conv(x)
        return F.relu(x) if self.relu else x


class RetinaNet(nn.Module):
    """With the defaults of retinanet_r50_fpn_1x_coco: on_input, no ReLU before the last level."""

    def __init__(self, body: nn.Module, channels: list[int], *, gn=False, caffe=False) -> None:
        super().__init__()
        del body.fc
        self.backbone, self.neck, self.bbox_head = body, nn.Module(), nn.Module()
        if caffe:
            for stage in (body.layer2, body.layer3, body.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        self.neck.lateral_convs = nn.ModuleList(ConvModule(c, 256, 1) for c in channels)
        extra = [(channels[-1], 2), (256, 2)]
        self.neck.fpn_convs = nn.ModuleList(
            ConvModule(c, 256, 3, stride=s) for c, s in [(256, 1)] * 3 + extra
        )
        for name in ("cls_convs", "reg_convs"):
            convs = [ConvModule(256, 256, 3, gn=gn, relu=True) for _ in range(4)]
            setattr(self.bbox_head, name, nn.Sequential(*convs))
        self.bbox_head.retina_cls = nn.Conv2d(256, 9 * 80, 3, padding=1)
        self.bbox_head.retina_reg = nn.Conv2d(256, 9 * 4, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        body, head = self.backbone, self.bbox_head
        c3 = body.layer2(body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(images))))))
        c4 = body.layer3(c3)
        c5 = body.layer4(c4)
        laterals = [conv(c) for conv, c in zip(self.neck.lateral_convs, (c3, c4, c5), strict=True)]
        for i in (2, 1):
            size = laterals[i - 1].shape[2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=size)
        levels = [self.neck.fpn_convs[i](laterals[i]) for i in range(3)]
        levels.append(self.neck.fpn_convs[3](c5))
        levels.append(self.neck.fpn_convs[4](levels[3]))
        scores = [head.retina_cls(head.cls_convs(level)) for level in levels]
        return scores, [head.retina_reg(head.reg_convs(level)) for level in levels]

    @torch.no_grad()
    def detect(self, image: Tensor, mean: list[float], std: list[float]):
        """In an image with the model's channel order, from 0 to 1."""
        mean, std = (torch.tensor(x)[:, None, None] for x in (mean, std))
        height, width = image.shape[1:]
        image = F.pad((image * 255 - mean) / std, (0, -width % 32, 0, -height % 32))
        candidates = []
        for i, (scores, deltas) in enumerate(zip(*self(image[None]), strict=True)):
            stride = 8 * 2**i
            anchors = anchors_of(scores.shape[2], scores.shape[3], stride)
            scores = scores[0].permute(1, 2, 0).reshape(-1, 80).sigmoid()
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            value, order = scores[scores > 0.05].sort(descending=True)
            index = (scores > 0.05).nonzero()[order][:1000]
            boxes = decoded(anchors[index[:, 0]], deltas[index[:, 0]])
            boxes = clip_boxes_to_image(boxes, (height, width))
            candidates.append((boxes, value[:1000], index[:, 1]))
        boxes, scores, classes = (torch.cat(x) for x in zip(*candidates, strict=True))
        valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, classes = boxes[valid], scores[valid], classes[valid]
        keep = batched_nms(boxes, scores, classes, 0.5)[:100]
        return boxes[keep], scores[keep], classes[keep]


def anchors_of(rows: int, columns: int, stride: int) -> Tensor:
    """Ratio by ratio, and for each the three scales, around the corner of each location."""
    anchors = []
    shapes = product(range(rows), range(columns), (0.5, 1.0, 2.0), range(3))
    for row, column, ratio, i in shapes:
        size = 4 * stride * 2 ** (i / 3)
        w, h = size / ratio**0.5, size * ratio**0.5
        x, y = column * stride, row * stride
        anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return torch.tensor(anchors)


def decoded(anchors: Tensor, deltas: Tensor) -> Tensor:
    size = anchors[:, 2:] - anchors[:, :2]
    centre = (anchors[:, 2:] + anchors[:, :2]) / 2 + deltas[:, :2] * size
    size = size * deltas[:, 2:].clamp(-4.135166556742356, 4.135166556742356).exp()
    return torch.cat((centre - size / 2, centre + size / 2), dim=1)


def imitate(model: RetinaNet, scale: float, mean: float = -8.5) -> RetinaNet:
    """With fewer than 100 detections per image, the limit."""
    images, head = (IMAGES[0][None] - 0.5) * scale, model.bbox_head
    imitate_training(model.eval(), head.retina_cls, head.retina_reg, images, mean)
    return model


@pytest.mark.parametrize("gn, mean", [(False, -8.5), (True, -7.5)])
def test_detections_are_the_same(tmp_path: Path, gn: bool, mean: float) -> None:
    model = imitate(RetinaNet(resnet18(weights=None), [128, 256, 512], gn=gn), 4.0, mean)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "mm.pth")
    said = convert(tmp_path / "mm.pth", tmp_path / "out")
    assert "mmdetection RetinaNet" in said and "--caffe-style" in said
    ours = converted(tmp_path / "out")
    for image in IMAGES:
        assert_equal(detect(ours, image), model.detect(image, MEAN, STD), 10)
    with torch.no_grad():  # also levels with few detections
        images = torch.randn(1, 3, 96, 128)
        features = list(ours.backbone(images).values())
        for actual, expected in zip(ours.head(features), model(images), strict=True):
            for actual_i, theirs_i in zip(actual, expected, strict=True):
                ratio_first = actual_i.unflatten(1, (3, 3, -1)).transpose(1, 2).flatten(1, 3)
                torch.testing.assert_close(ratio_first, theirs_i, rtol=1e-3, atol=1e-3)


def test_caffes_resnet_is_known_from_the_config_in_the_file(tmp_path: Path) -> None:
    with NoRandomValues():
        body = resnet50(weights=None)
    model = imitate(RetinaNet(body, [512, 1024, 2048], caffe=True), 255.0)
    meta = {"config": CAFFE, "CLASSES": ("a",) * 80}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "mm.pth")
    convert(tmp_path / "mm.pth", tmp_path / "out")
    expected = model.detect(IMAGES[0].flip(0), [103.53, 116.28, 123.675], [1.0] * 3)
    assert_equal(detect(converted(tmp_path / "out"), IMAGES[0], "BGR"), expected, 10)


OTHERS = """
model = dict(
    data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=False, pad_size_divisor=32),
    neck=dict(relu_before_extra_convs=True),
    bbox_head=dict(
        anchor_generator=dict(octave_base_scale=5, ratios=[0.4, 1.0, 2.5]),
        bbox_coder=dict(target_stds=(0.1, 0.1, 0.2, 0.2))),
    test_cfg=dict(
        nms_pre=500, score_thr=0.1, nms=dict(type='nms', iou_threshold=0.6), max_per_img=50))
test_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(type='Resize', scale=(640, 512), keep_ratio=True),
    dict(type='Pack', keys=print('run'))]
"""


@pytest.fixture(scope="module")
def narrow() -> dict[str, Tensor]:
    with NoRandomValues():
        return RetinaNet(resnet18(weights=None), [128, 256, 512]).state_dict()


def saved(folder: Path, state: dict[str, Tensor], meta: object = None, **others: object) -> Path:
    torch.save({"state_dict": state, "meta": meta or {}, **others}, folder / "mm.pth")
    return folder / "mm.pth"


def test_the_config_in_the_file_is_read_but_not_run(narrow, tmp_path: Path, capsys) -> None:
    names = [f"class {i}" for i in range(80)]
    file = saved(tmp_path, narrow, {"cfg": OTHERS, "dataset_meta": {"classes": names}})
    convert(file, tmp_path / "out")
    assert capsys.readouterr().out == ""  # of the call in the config
    cfg = get_config(tmp_path / "out" / "config.yaml")
    retinanet, anchors = cfg.MODEL.RETINANET, cfg.MODEL.ANCHOR_GENERATOR
    assert cfg.MODEL.FPN.P7_RELU and cfg.INPUT.FORMAT == "BGR"
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ([1, 2, 3], [4, 5, 6])
    assert anchors.ANCHOR_SCALE == 5 and anchors.ASPECT_RATIOS == [[0.4, 1, 2.5]]
    assert list(retinanet.BBOX_REG_WEIGHTS) == pytest.approx([10, 10, 5, 5])
    assert (retinanet.SCORE_THRESH_TEST, retinanet.NMS_THRESH_TEST) == (0.1, 0.6)
    assert (retinanet.TOPK_CANDIDATES_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (500, 50)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (512, 640)
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert checkpoint["classes"] == names
    with pytest.raises(UserError, match=r"--classes: 2 .* 80"):
        convert(file, tmp_path / "two", options=Options(["a", "b"]))


def test_averaged_weights_are_preferred_and_a_wrapper_is_ignored(narrow, tmp_path: Path) -> None:
    """The averaged weights have the plain names."""
    before = {f"ema_{key.replace('.', '_')}": x + 1 for key, x in narrow.items()}
    wrapped = {f"module.{key}": x for key, x in {**narrow, **before}.items()}
    convert(saved(tmp_path, wrapped), tmp_path / "out")
    weights = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    key = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(weights[key], narrow["backbone.conv1.weight"])
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert {row["from"] for row in record["unused"]} >= before.keys()


@pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"), reason="torch 2.4 cannot read such files"
)
def test_training_state_of_mmengine_is_ignored(narrow, tmp_path: Path, monkeypatch) -> None:
    """Its logs are objects of its own with numpy arrays and methods."""
    name = "mmengine.logging.history_buffer"
    for module in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values, self.total = np.arange(3.0), np.float64(3)
            self.methods = {"mean": HistoryBuffer.mean}

        @classmethod
        def mean(cls) -> None: ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    sys.modules[name].HistoryBuffer = HistoryBuffer
    hub = {"log_scalars": {"loss": HistoryBuffer()}}
    before = set(torch.serialization.get_safe_globals())
    said = convert(saved(tmp_path, narrow, message_hub=hub), tmp_path / "out")
    assert "mmdetection RetinaNet" in said
    assert set(torch.serialization.get_safe_globals()) == before


STRIDES = "model=dict(bbox_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64])))"


@pytest.mark.parametrize(
    "weights, config, named",
    [
        ({}, "model=dict(bbox_head=dict(loss_cls=dict(use_sigmoid=False)))", "use_sigmoid=False"),
        ({}, STRIDES, r"strides=\[4, 8, 16, 32, 64\]"),
        ({"neck.fpn_convs.3.conv.weight": torch.zeros(256, 256, 3, 3)}, "", "on_input"),
        ({"neck.lateral_convs.3.conv.weight": torch.zeros(1)}, "", r"lateral_convs\.3"),
        ({"bbox_head.retina_iou.weight": torch.zeros(9)}, "", "retina_iou"),
    ],
)
def test_other_models_are_refused(narrow, tmp_path: Path, weights, config: str, named) -> None:
    with pytest.raises(UserError, match=named):
        convert(saved(tmp_path, {**narrow, **weights}, {"cfg": config}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pyramid_whose_p6_is_computed_from_p5(narrow, tmp_path: Path) -> None:
    key = "neck.fpn_convs.3.conv.weight"
    state = {**narrow, key: narrow[key][:, :256].clone()}
    meta = {"cfg": "model = dict(neck=dict(add_extra_convs='on_output'))"}
    convert(saved(tmp_path, state, meta), tmp_path / "out")
    assert get_config(tmp_path / "out" / "config.yaml").MODEL.FPN.P6_INPUT == "p5"
