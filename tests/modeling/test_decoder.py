"""Decoding against detectron2's, and the search for scores against float64."""

import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import ImageList
from torch import Tensor, nn

from retinanet_plugin.modeling import DetectionDecoder
from retinanet_plugin.modeling import decoder as decoder_module

# A level's logits fill whole vectors of 32: torch rounds the sigmoids of a remainder differently,
# and in detectron2's order the remainder has other logits than in memory order.
NUM_CLASSES = 16
LEVELS = [(40, 56), (20, 28), (10, 14), (6, 8), (3, 4)]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def random_outputs(memory_format: torch.memory_format, step: float = 0.0) -> list[list[Tensor]]:
    """Logits and deltas of two images; logits in multiples of ``step`` give equal scores."""
    logits, deltas = [], []
    for height, width in LEVELS:
        x = torch.randn(2, 9 * NUM_CLASSES, height, width) * 2 - 5
        logits.append((x / step).round() * step if step else x)
        deltas.append(torch.randn(2, 9 * 4, height, width) * 0.3)
    return [[x.contiguous(memory_format=memory_format) for x in part] for part in (logits, deltas)]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("step", [0.0, 0.25], ids=["all scores differ", "equal scores"])
@pytest.mark.parametrize(
    "score_thresh, topk, nms_thresh, kept",
    [(0.05, 1000, 0.5, 100), (0.5, 1000, 0.5, 2000), (0.3, 100, 0.3, 100), (0.0, 400, 0.7, 2000)],
)
def test_detections_are_detectron2s(
    memory_format: str, step: float, score_thresh: float, topk: int, nms_thresh: float, kept: int
) -> None:
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    theirs = RetinaNet(
        backbone=nn.Identity(),
        head=nn.Identity(),
        head_in_features=[],
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[32 * 2 ** (i / 3 + level) for i in range(3)] for level in range(5)],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        box2box_transform=transform,
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1]),
        num_classes=NUM_CLASSES,
        test_topk_candidates=topk,
        max_detections_per_image=kept,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        test_score_thresh=score_thresh,
        test_nms_thresh=nms_thresh,
    )
    ours = DetectionDecoder(
        num_classes=NUM_CLASSES,
        apply_deltas=transform.apply_deltas,
        score_thresh=score_thresh,
        topk_candidates=topk,
        nms_thresh=nms_thresh,
        max_detections=kept,
    )
    sizes = [(320, 448), (300, 401)]
    features = [torch.zeros(2, 1, *shape) for shape in LEVELS]
    logits, deltas = random_outputs(FORMATS[memory_format], step)
    anchors = [x.tensor for x in theirs.anchor_generator(features)]
    detections = ours(logits, deltas, anchors, sizes)
    # Last, because it turns the logits into scores in place.
    expected = theirs.forward_inference(
        ImageList(torch.zeros(2, 3, 320, 448), sizes), features, [logits, deltas]
    )
    for mine, reference in zip(detections, expected, strict=True):
        assert len(mine) == len(reference) > 50
        assert mine.image_size == reference.image_size
        assert torch.equal(mine.pred_classes, reference.pred_classes)
        assert torch.equal(mine.pred_boxes.tensor, reference.pred_boxes.tensor)
        torch.testing.assert_close(mine.scores, reference.scores, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_of_half_precision_are_decoded_in_float32(dtype: torch.dtype) -> None:
    decode = DetectionDecoder(
        num_classes=NUM_CLASSES, apply_deltas=Box2BoxTransform((1.0,) * 4).apply_deltas
    )
    anchors = [torch.rand(h * w * 9, 2).mul(300).repeat(1, 2) for h, w in LEVELS]
    for x in anchors:
        x[:, 2:] += 50
    logits, deltas = ([x.to(dtype) for x in part] for part in random_outputs(torch.channels_last))
    sizes = [(320, 448)] * 2
    detections = decode(logits, deltas, anchors, sizes)
    expected = decode([x.float() for x in logits], [x.float() for x in deltas], anchors, sizes)
    for mine, reference in zip(detections, expected, strict=True):
        assert len(mine) == 100
        assert mine.scores.dtype == mine.pred_boxes.tensor.dtype == torch.float32
        assert torch.equal(mine.scores, reference.scores)
        assert torch.equal(mine.pred_boxes.tensor, reference.pred_boxes.tensor)


SEARCHES = {"on a CPU": decoder_module.scores_above, "on a GPU": decoder_module._above_at_once}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("score_thresh", [0.0, 1e-4, 0.05, 0.5, 0.9999, 1.0])
def test_search_finds_each_score(search: str, dtype: torch.dtype, score_thresh: float) -> None:
    tensors = []
    for size in (0, 1, 63, 64, 65, 1000, 5003):
        x = (torch.randn(size) * 6).to(dtype)
        x[torch.rand(size) < 0.3] = -30
        x[torch.rand(size) < 0.02] = math.nan
        x[torch.rand(size) < 0.02] = math.inf
        x[torch.rand(size) < 0.02] = -math.inf
        # If float32 cannot tell the score from the threshold, neither answer is wrong.
        x[(x.double().sigmoid() - score_thresh).abs() < 1e-6] = -math.inf
        tensors.append(x)
    results = SEARCHES[search](tensors, score_thresh)
    assert len(results) == len(tensors)
    for x, (index, scores) in zip(tensors, results, strict=True):
        exact = x.double().sigmoid()
        assert index.tolist() == [i for i, p in enumerate(exact.tolist()) if p > score_thresh]
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, exact[index].float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("score_thresh", [1e-6, 0.05, 0.999, 0.9999999])
def test_search_at_the_threshold(search: str, dtype: torch.dtype, score_thresh: float) -> None:
    """Adjacent numbers around the threshold, each alone in its block."""
    limit = math.log(score_thresh / (1 - score_thresh))
    step = max(torch.finfo(dtype).eps * abs(limit), 2e-8 / (1 - score_thresh))
    logits = torch.full((129, 64), -100.0, dtype=dtype)
    logits[:, 5] = (limit + step * torch.arange(-64.0, 65.0, dtype=torch.float64)).to(dtype)
    ((index, _),) = SEARCHES[search]([logits.flatten()], score_thresh)
    (expected,) = torch.where(logits.float().sigmoid().flatten() > score_thresh)
    assert torch.equal(index, expected)
    assert 0 < len(index) < len(logits)


def test_clipping_before_nms() -> None:
    """Two boxes that differ outside the image only."""
    anchors = torch.tensor([[-90.0, 0.0, 10.0, 10.0], [-20.0, 0.0, 10.0, 10.0]])
    logits = torch.tensor([3.0, 2.0]).view(1, 2, 1, 1)
    kept = {}
    for clip in (False, True):
        decoder = DetectionDecoder(
            num_classes=1, apply_deltas=lambda _, boxes: boxes, clip_before_nms=clip
        )
        (detections,) = decoder([logits], [torch.zeros(1, 8, 1, 1)], [anchors], [(10, 10)])
        kept[clip] = detections.pred_boxes.tensor.tolist()
    assert kept[False] == anchors.tolist()
    assert kept[True] == [[0.0, 0.0, 10.0, 10.0]]
