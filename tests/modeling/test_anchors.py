"""Anchors against the numbers of the paper, detectron2's generator and torchvision's."""

import copy

import pytest
import torch
from conftest import small_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from retinanet_plugin import RetinaNetAnchorGenerator, UserError
from retinanet_plugin.modeling.anchors import HostAnchors, TorchvisionAnchorGenerator

STRIDES = [8, 16, 32, 64, 128]
GRIDS = [(14, 20), (7, 10), (4, 5), (2, 3), (1, 2)]


def features(grids=GRIDS):
    return [torch.zeros(1, 1, *grid) for grid in grids]


def test_sizes_of_the_paper() -> None:
    generator = RetinaNetAnchorGenerator(strides=STRIDES)
    sizes = torch.cat([(c[:, 2:] - c[:, :2]).prod(1).sqrt() for c in generator.cell_anchors])
    assert generator.num_anchors == [9] * 5
    assert sizes.min().item() == pytest.approx(32)
    assert sizes.max().item() == pytest.approx(813, abs=0.5)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("scales, ratios", [(3, [0.5, 1.0, 2.0]), (1, [1.0]), (4, [0.5, 1.0, 2.0])])
def test_equal_to_detectron2(scales: int, ratios: list[float], offset: float) -> None:
    ours = RetinaNetAnchorGenerator(
        strides=STRIDES, scales_per_octave=scales, aspect_ratios=ratios, offset=offset
    )
    sizes = [[4.0 * s * 2 ** (i / scales) for i in range(scales)] for s in STRIDES]
    theirs = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[ratios], strides=STRIDES, offset=offset
    )
    for mine, expected in zip(ours(features()), theirs(features()), strict=True):
        assert torch.equal(mine.tensor, expected.tensor)


@pytest.mark.parametrize("height, width", [(32, 32), (96, 128), (800, 1344), (224, 416)])
def test_equal_to_torchvision(height: int, width: int) -> None:
    """torchvision rounds sizes, edges and, at coarse levels, the distance between locations."""
    sizes = tuple(
        (x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)
    )
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    grids = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (expected,) = theirs(images, features(grids))
    ours = torch.cat(
        [x.tensor for x in TorchvisionAnchorGenerator(strides=STRIDES)(features(grids))]
    )
    ratio_first = ours.reshape(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4)
    assert torch.equal(ratio_first, expected)


def test_grids_are_cached() -> None:
    generator = RetinaNetAnchorGenerator(strides=[8])
    first = generator(features([(3, 4)]))[0].tensor
    assert generator(features([(3, 4)]))[0].tensor is first
    for width in range(5, 60):
        generator(features([(3, width)]))
    again = generator(features([(3, 4)]))[0].tensor
    assert again is not first and torch.equal(again, first)
    assert copy.deepcopy(generator)(features([(3, 4)]))[0].tensor is not again


def test_host_anchors() -> None:
    """They need the values of neither the features nor the generator, which may be elsewhere."""
    generator = RetinaNetAnchorGenerator(strides=[8, 16], offset=0.5)
    expected = generator(features([(3, 4), (2, 5)]))
    anchors_of = HostAnchors(generator)
    generator.to("meta")
    on_device = [x.to("meta") for x in features([(3, 4), (2, 5)])]
    grid = anchors_of(on_device)
    assert anchors_of([x.expand(2, -1, -1, -1) for x in on_device]) is grid
    boxes = grid.boxes_of(torch.arange(grid.num_anchors))
    assert torch.equal(boxes, torch.cat([x.tensor for x in expected]))


def test_from_config() -> None:
    prefix = "MODEL.ANCHOR_GENERATOR"
    cfg = small_config(f"{prefix}.SCALES_PER_OCTAVE", 2, f"{prefix}.ANCHOR_SCALE", 2.0)
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=s) for s in STRIDES])
    assert isinstance(generator, RetinaNetAnchorGenerator)
    assert generator.num_anchors == [6] * 5
    assert next(iter(generator.cell_anchors))[1].tolist() == [-8, -8, 8, 8]


@pytest.mark.parametrize("ratios", [[[0.5, 0.0]], [1.0, float("nan")], []])
def test_impossible_ratios(ratios: list) -> None:
    with pytest.raises(UserError, match=r"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS: "):
        RetinaNetAnchorGenerator(strides=STRIDES, aspect_ratios=ratios)
