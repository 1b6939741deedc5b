"""Labels and matches against detectron2's Matcher, which compares every box with every anchor."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from retinanet_plugin import RetinaNetAnchorGenerator, UserError
from retinanet_plugin.modeling import AnchorAssigner
from retinanet_plugin.modeling import anchor_grid as grid_module
from retinanet_plugin.modeling.anchor_grid import AnchorGrid

K = 7


def levels_of(generator: nn.Module, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    anchors = generator([torch.zeros(1, 1, *shape) for shape in shapes])
    return [x.tensor.unflatten(0, (*s, -1)) for x, s in zip(anchors, shapes, strict=True)]


def plugins(shapes: Sequence[tuple[int, int]], first: int = 8, **arguments: object) -> list[Tensor]:
    strides = [first * 2**i for i in range(len(shapes))]
    return levels_of(RetinaNetAnchorGenerator(strides=strides, **arguments), shapes)


def detectron2s(offset: float) -> list[Tensor]:
    """Sizes and ratios, even their number, a level; strides that are no power of 2."""
    generator = DefaultAnchorGenerator(
        sizes=[[20.0, 33.3], [64.0], [300.0]],
        aspect_ratios=[[0.5, 1.0], [0.3, 1.0, 3.0], [1.0]],
        strides=[10, 21, 50],
        offset=offset,
    )
    return levels_of(generator, [(12, 9), (6, 5), (3, 2)])


def moved(levels: list[Tensor], index: tuple[int, ...], by: float) -> list[Tensor]:
    levels[0] = levels[0].clone()
    levels[0][index] += by
    return levels


EVEN_GRIDS = {
    "five levels": lambda: plugins([(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]),
    "offset": lambda: plugins([(9, 12), (5, 6)], offset=0.5),
    "small anchors": lambda: plugins([(9, 12), (5, 6)], anchor_scale=0.5, scales_per_octave=2),
    "long anchors": lambda: plugins([(8, 8), (4, 4)], aspect_ratios=[0.1, 1.0, 10.0]),
    "one column": lambda: plugins([(11, 1), (6, 1), (3, 1)], offset=0.3),
    "one row": lambda: plugins([(1, 11), (1, 6), (1, 3)]),
    "one location": lambda: plugins([(1, 1)], scales_per_octave=1, aspect_ratios=[1.0]),
    "detectron2's": lambda: detectron2s(0.5),
    "far away": lambda: [x * 1.37 + 5e3 for x in plugins([(7, 9), (4, 5)])],
}
UNEVEN_GRIDS = {
    "an edge moved": lambda: moved(plugins([(9, 12), (5, 6)]), (3, 4, 1, 2), 1.0),
    "a column moved": lambda: moved(plugins([(9, 12), (5, 6)]), (slice(None), 4, 0, 0), 0.1),
    "too far away": lambda: [x * 1.37 + 3e5 for x in plugins([(7, 9), (4, 5)])],
    "upside down": lambda: [x.flip(0) for x in plugins([(7, 9), (4, 5)])],
}
GRIDS: dict[str, Callable[[], list[Tensor]]] = EVEN_GRIDS | UNEVEN_GRIDS

RULES = [
    ((0.4, 0.5), (0, -1, 1), True),
    ((0.4, 0.5), (0, -1, 1), False),
    ((0.5,), (0, 1), True),
    ((0.2, 0.7), (-1, 0, 1), True),
    ((0.3, 0.3, 0.6), (0, 1, -1, 1), False),
    ((0.5, 0.6), (1, 0, -1), True),
    ((2.0,), (0, 1), True),
]


def all_of(levels: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1, 4) for x in levels])


def around(anchors: Tensor, count: int, reach: float, low: float, high: float) -> Tensor:
    """Boxes with sides of ``low`` to ``high`` pixels, beyond the anchors by ``reach`` of them."""
    corner, size = anchors.amin(0)[:2], anchors.amax(0)[2:] - anchors.amin(0)[:2]
    center = corner + (torch.rand(count, 2) * (1 + 2 * reach) - reach) * size
    half = low * (high / low) ** torch.rand(count, 2) / 2
    return torch.cat([center - half, center + half], dim=1)


def some_of(anchors: Tensor, count: int) -> Tensor:
    return anchors[torch.randint(len(anchors), (count,))]


def beside(anchors: Tensor, count: int) -> Tensor:
    """Boxes that touch an anchor, or nearly."""
    boxes = some_of(anchors, count)
    gap = torch.tensor([0.0, 0.0, 1e-5, -1e-3, 0.1])[torch.randint(5, (count, 1))]
    return boxes + torch.tensor([1.0, 0, 1, 0]) * (boxes[:, 2:3] - boxes[:, :1] + gap)


def next_to_nothing(anchors: Tensor, count: int) -> Tensor:
    """IoUs down to the smallest numbers of float32, which has a few bits for them."""
    side = 10.0 ** -(44 * torch.rand(count, 2, dtype=torch.float64))
    return torch.cat([torch.zeros(count, 2), side.float()], dim=1)


def not_finite(anchors: Tensor, count: int) -> Tensor:
    odd = [torch.inf, -torch.inf, torch.nan, 1e38, -1e38, 1e20, -1e10, 1e-30, 0.0, 5.0, 50.0]
    return torch.tensor(odd)[torch.randint(len(odd), (count, 4))]


BOXES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "any": lambda a, n: around(a, n, 0.1, 1, 400),
    "tiny": lambda a, n: around(a, n, 0, 0.01, 8),
    "huge": lambda a, n: around(a, n, 0, 300, 20_000),
    "long": lambda a, n: around(a, n, 0, 1, 2) + torch.tensor([-150.0, 0, 150, 0]),
    "outside": lambda a, n: around(a, n, 2, 1, 200),
    "whole numbers": lambda a, n: around(a, n, 0, 8, 200).round(),
    "multiples of 8": lambda a, n: around(a, n, 0, 8, 200).div(8).round() * 8,
    "anchors": some_of,
    "anchors moved half a stride": lambda a, n: (
        some_of(a, n) + torch.randint(-2, 3, (n, 1)) * torch.tensor([4.0, 4.0, 4.0, 4.0])
    ),
    "between two anchors": lambda a, n: some_of(a, n) + torch.tensor([4.0, 0, 4, 0]),
    "near anchors": lambda a, n: some_of(a, n) + torch.randn(n, 4) * torch.rand(n, 1) * 20,
    "beside anchors": beside,
    "no area": lambda a, n: some_of(a, n)[:, [0, 1, 0, 3]],
    "next to nothing": next_to_nothing,
    "inside out": lambda a, n: some_of(a, n)[:, [2, 3, 0, 1]],
    "not finite": not_finite,
}


def assert_equal_to_matcher(grid: AnchorGrid, anchors: Tensor, batch: list[Tensor], rule) -> None:
    """A batch of images at once, against the Matcher on each."""
    thresholds, labels_of_rule, low_quality = rule
    matcher = Matcher(list(thresholds), list(labels_of_rule), low_quality)
    counts = torch.tensor([len(x) for x in batch])
    assigned = AnchorAssigner(*rule).assign(grid, torch.cat(batch), counts)
    parts, start = [], 0
    for i, boxes in enumerate(batch):
        if len(boxes):
            matches, labels = matcher(pairwise_iou(Boxes(boxes), Boxes(anchors)))
            (positive,), (ignored,) = torch.where(labels == 1), torch.where(labels == -1)
            match, first = matches[positive] + start, i * len(anchors)
            parts.append((positive + first, match, ignored + first))
            start += len(boxes)
    for mine, expected in zip(assigned, zip(*parts, strict=True), strict=True):
        assert torch.equal(mine, torch.cat(expected))


@pytest.mark.parametrize("boxes", BOXES)
def test_equal_to_matcher(boxes: str) -> None:
    for name, make in GRIDS.items():
        levels = make()
        anchors, grid = all_of(levels), AnchorGrid(levels)
        assert grid.is_even == (name in EVEN_GRIDS), name
        assert torch.equal(grid.boxes_of(torch.arange(len(anchors))), anchors)
        for rule in (RULES[0], RULES[torch.randint(1, len(RULES), ())]):
            batch = [BOXES[boxes](anchors, n) for n in (1, 2, 0, 6, 20)]
            batch[-1][11:14] = batch[-1][3]
            batch.append(torch.cat([BOXES[boxes](anchors, 8), BOXES["any"](anchors, 8)]))
            assert_equal_to_matcher(grid, anchors, batch, rule)


@pytest.mark.parametrize("name", ["five levels", "an edge moved"])
def test_small_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module, "_CHUNK", 100)
    levels = GRIDS[name]()
    anchors = all_of(levels)
    batch = [BOXES[boxes](anchors, 3) for boxes in ("any", "near anchors", "outside")]
    for rule in RULES[:4]:
        assert_equal_to_matcher(AnchorGrid(levels), anchors, batch, rule)


@pytest.mark.parametrize("and_best", [True, False])
def test_few_pairs_are_computed(and_best: bool) -> None:
    levels = plugins([(100, 152), (50, 76), (25, 38), (13, 19), (7, 10)])
    anchors, grid = all_of(levels), AnchorGrid(levels)
    boxes = around(anchors[:1] * 0 + torch.tensor([0.0, 0, 1216, 800]), 30, 0, 20, 400)
    box, anchor, iou = map(torch.cat, zip(*grid.pairs(boxes, 0.4, and_best), strict=True))
    expected = pairwise_iou(Boxes(boxes), Boxes(anchors))
    assert torch.equal(iou, expected[box, anchor])
    assert (iou >= 0.4).sum() == (expected >= 0.4).sum()
    assert len(iou) < 1.5 * (iou >= 0.4).sum()
    assert len(torch.unique(box * len(anchors) + anchor)) == len(iou)


@pytest.mark.parametrize("low_quality", [True, False])
def test_targets_are_those_of_detectron2(low_quality: bool) -> None:
    """``RetinaNet.label_anchors`` fills dense labels and boxes with what the indices say."""
    levels = EVEN_GRIDS["five levels"]()
    anchors = all_of(levels)
    batch = []
    for count in (0, 1, 5, 40):
        boxes, classes = BOXES["any"](anchors, count), torch.randint(K, (count,))
        batch.append(Instances((104, 136), gt_boxes=Boxes(boxes), gt_classes=classes))
    matcher = Matcher([0.4, 0.5], [0, -1, 1], low_quality)
    reference = SimpleNamespace(anchor_matcher=matcher, num_classes=K)
    expected_labels, expected_boxes = RetinaNet.label_anchors(reference, [Boxes(anchors)], batch)
    assigner = AnchorAssigner(allow_low_quality_matches=low_quality)
    targets = assigner(AnchorGrid(levels), batch)
    labels = torch.full((len(batch), len(anchors)), K)
    labels[targets.image, targets.anchor] = targets.gt_class
    labels[targets.ignored_image, targets.ignored_anchor] = -1
    assert torch.equal(labels, torch.stack(expected_labels))
    boxes = torch.stack(expected_boxes)[targets.image, targets.anchor]
    assert torch.equal(targets.gt_box, boxes)
    assert torch.equal(targets.anchor_box, anchors[targets.anchor])


@pytest.mark.parametrize("first_label", [0, -1, 1])
def test_no_box_at_all(first_label: int) -> None:
    """All anchors are background, as ``RetinaNet.label_anchors`` has it, whatever the labels."""
    nothing = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0))
    grid = AnchorGrid(plugins([(8, 8)]))
    targets = AnchorAssigner(labels=(first_label, -1, 1))(grid, [nothing] * 2)
    assert targets.num_positives == 0 and len(targets.ignored_anchor) == 0


@pytest.mark.parametrize(
    "arguments, key",
    [
        (([0.5, 0.4], [0, -1, 1]), "IOU_THRESHOLDS"),
        (([], [0]), "IOU_THRESHOLDS"),
        (([float("nan")], [0, 1]), "IOU_THRESHOLDS"),
        (([0.4, 0.5], [0, 1]), "IOU_LABELS"),
        (([0.4, 0.5], [0, 2, 1]), "IOU_LABELS"),
    ],
)
def test_impossible_rules(arguments, key: str) -> None:
    with pytest.raises(UserError, match=f"MODEL.RETINANET.{key}: "):
        AnchorAssigner(*arguments)
