"""Mined losses against a brute-force version: dense targets, every IoU, Python's sort, autograd."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import nms

from retinanet_plugin import RetinaNetAnchorGenerator
from retinanet_plugin.losses import (
    CrossEntropyLoss,
    FocalLoss,
    HardExamples,
    MinedLoss,
    SparseTargets,
    offsets_of,
)
from retinanet_plugin.losses.mined import anchor_losses
from retinanet_plugin.modeling.anchor_grid import AnchorGrid
from retinanet_plugin.modeling.anchors import HostAnchors

SHAPES = [(6, 5), (3, 3)]
A, K, N = 3, 4, 2
R = sum(h * w * A for h, w in SHAPES)
FORMATS = [torch.contiguous_format, torch.channels_last]


def make_grid(shapes: list[tuple[int, int]] = SHAPES, scales: int = 1) -> AnchorGrid:
    strides = [8 * 2**i for i in range(len(shapes))]
    generator = RetinaNetAnchorGenerator(strides=strides, scales_per_octave=scales)
    return HostAnchors(generator)([torch.zeros(1, 1, *shape) for shape in shapes])


GRID = make_grid()


def random_logits(ties: bool, dtype: torch.dtype, memory_format: torch.memory_format):
    """With ties, losses are 0, 64, 96 and their sums: exact in any dtype and order of summation."""
    logits = []
    for shape in SHAPES:
        x = torch.randn(N, A * K, *shape) * 3 - 2
        if ties:
            x = torch.tensor([-800.0, 64.0, 96.0])[torch.randint(3, x.shape)]
        x = x.to(dtype).contiguous(memory_format=memory_format)
        logits.append(x.requires_grad_())
    return logits


def random_labels(positive: float = 0.1, ignored: float = 0.1) -> Tensor:
    chance = torch.rand(N, R)
    labels = torch.where(chance < positive, torch.randint(K, (N, R)), -1)
    return torch.where(chance > 1 - ignored, -2, labels)


def positives_of(logits: list[Tensor], labels: Tensor) -> list[Tensor]:
    positives, start = [], 0
    for x in logits:
        count = x.shape[2] * x.shape[3] * A
        here = labels[:, start : start + count].unflatten(1, (-1, A))
        n, cell, a = torch.where(here >= 0)
        positives.append(offsets_of(x, n, cell, a * K + here[n, cell, a]))
        start += count
    return positives


def loss_of(loss: MinedLoss, logits: list[Tensor], labels: Tensor, **arguments: object) -> Tensor:
    image, anchor = torch.where(labels >= 0)
    boxes = torch.zeros(len(anchor), 4)
    ignored = torch.where(labels == -2)
    targets = SparseTargets(image, anchor, boxes, boxes, labels[image, anchor], *ignored, GRID)
    positives = positives_of(logits, labels)
    return loss(logits, targets, positives=positives, ignored=[], num_classes=K, **arguments)


def dense(logits: list[Tensor]) -> Tensor:
    """(N, R, K), float64."""
    parts = [x.permute(0, 2, 3, 1).reshape(N, -1, K).double() for x in logits]
    return torch.cat(parts, dim=1)


def bits_of(labels: Tensor) -> Tensor:
    return (labels[..., None] == torch.arange(K)).double()


def dense_losses(logits: list[Tensor], labels: Tensor) -> Tensor:
    """(N, R): binary cross entropy, summed over classes."""
    x, bits = dense(logits), bits_of(labels)
    return binary_cross_entropy_with_logits(x, bits, reduction="none").sum(2)


def brute_force(
    losses: Tensor, labels: Tensor, batch: int, threshold: float, fraction: float, grid: AnchorGrid
) -> list[int]:
    """Chosen anchors of an image: NMS over everything first, as in the paper, then the batch."""
    boxes = Boxes(grid.boxes_of(torch.arange(len(losses))))
    overlap = pairwise_iou(boxes, boxes) > threshold
    kept: list[int] = []
    for i in sorted(range(len(losses)), key=lambda i: (-losses[i].item(), i)):
        if labels[i] != -2 and not overlap[i][kept].any():
            kept.append(i)
    if fraction == 0:
        return kept[:batch]
    positives = [i for i in kept if labels[i] >= 0][: int(batch * fraction)]
    negatives = [i for i in kept if labels[i] < 0]
    wanted = max(len(positives), 1) * (1 - fraction) / fraction
    return positives + negatives[: min(int(wanted), batch - len(positives))]


def check(
    logits: list[Tensor], labels: Tensor, batch: int, threshold: float, fraction: float
) -> None:
    losses = dense_losses(logits, labels)
    chosen = torch.zeros(N, R, dtype=torch.bool)
    for i in range(N):
        # Rounded: float64 holds an exp(-64) that float32 adds to nothing.
        score = losses[i].detach().round(decimals=5)
        chosen[i, brute_force(score, labels[i], batch, threshold, fraction, GRID)] = True
    count = int(chosen.sum())
    expected = losses[chosen].sum() / max(count, 1)
    loss = MinedLoss(CrossEntropyLoss(), HardExamples(batch, threshold, fraction))
    ours = loss_of(loss, logits, labels, normalizer=123.0)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-7)
    assert chosen[loss.chosen].all() and len(loss.chosen[0]) == count
    grads = torch.autograd.grad(ours, logits)
    wanted = torch.autograd.grad(expected, logits)
    rtol = max(1e-5, torch.finfo(logits[0].dtype).eps)
    torch.testing.assert_close(grads, wanted, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "no-ties"])
@pytest.mark.parametrize(
    "batch, fraction, dtype",
    [
        *((x, y, torch.float32) for x, y in ((1, 0.0), (12, 0.0), (12, 0.25), (500, 0.25))),
        *((12, 0.25, x) for x in (torch.float16, torch.bfloat16, torch.float64)),
    ],
)
def test_equals_brute_force(batch, fraction, dtype, ties, memory_format) -> None:
    for threshold in (0.5, 0.7, 1.0):
        logits = random_logits(ties, dtype, memory_format)
        check(logits, random_labels(), batch, threshold, fraction)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("case", ["no positive", "all ignored", "one ignored", "all positive"])
def test_unusual_images(case: str, fraction: float) -> None:
    labels = {
        "no positive": random_labels(positive=0.0),
        "all ignored": torch.full((N, R), -2),
        "one ignored": torch.stack([torch.full((R,), -2), random_labels()[0]]),
        "all positive": random_labels(positive=1.0),
    }[case]
    check(random_logits(False, torch.float32, torch.contiguous_format), labels, 12, 0.5, fraction)


@pytest.mark.parametrize(
    "batch, positives, expected",
    [
        # 1:3 is kept: few positives make a small batch, an image without any gives three negatives.
        *((16, 0, (0, 3)), (16, 2, (2, 6)), (16, R // 2, (4, 12))),
        # Batches that do not divide.
        *((1, R // 3, (1, 0)), (2, R // 3, (1, 1)), (6, R // 3, (2, 4)), (7, R // 3, (2, 5))),
    ],
)
def test_ratio(batch: int, positives: int, expected: tuple[int, int]) -> None:
    positive = torch.zeros(R, dtype=torch.bool)
    positive[torch.randperm(R)[:positives]] = True
    chosen = HardExamples(batch, 1.0, 0.25)(torch.rand(R), positive, GRID)
    assert (int(positive[chosen].sum()), int((~positive[chosen]).sum())) == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize("levels", [3, 10**6], ids=["ties", "few ties"])
def test_easy_positives(levels: int, threshold: float, monkeypatch) -> None:
    """Easier than most negatives, as late in training."""
    monkeypatch.setattr("retinanet_plugin.losses.ohem._CANDIDATES", 16)
    grid = make_grid([(8, 7), (4, 4)], scales=2)
    count = grid.num_anchors
    for easier, positives in ((levels // 2, 60), (levels, 3), (levels, 60)):
        labels = torch.where(torch.rand(count) < 0.1, -2, -1)
        # Close together, as around an object: all in a third of the image.
        labels[torch.randperm(count // 3)[:positives]] = 1
        losses = torch.randint(levels, (count,)).float()
        losses[labels >= 0] -= easier
        losses[labels == -2] = -torch.inf
        expected = brute_force(losses, labels, 64, threshold, 0.25, grid)
        assert HardExamples(64, threshold, 0.25)(losses, labels >= 0, grid).tolist() == expected


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_equals_torchvisions_nms_on_many_anchors(threshold: float) -> None:
    """With two scales per octave, the IoU of nested anchors is 0.5 except for the last bit."""
    grid = make_grid([(30, 32), (15, 16), (8, 8)], scales=2)
    losses = torch.rand(grid.num_anchors)
    expected = nms(grid.boxes_of(torch.arange(grid.num_anchors)), losses, threshold)
    assert len(expected) > 700
    no_positive = torch.zeros(len(losses), dtype=torch.bool)
    for batch in (64, 700, len(losses)):
        chosen = HardExamples(batch, threshold)(losses, no_positive, grid)
        assert torch.equal(chosen, expected[:batch])


def test_nan_is_chosen_first() -> None:
    """The loss of a diverged model is NaN, which stops the training."""
    losses = torch.rand(R)
    losses[[5, 50]] = torch.tensor([torch.nan, torch.inf])
    chosen = HardExamples(2, 1.0)(losses, torch.zeros(R, dtype=torch.bool), GRID)
    assert chosen.tolist() == [5, 50]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("chunk", [1, 10, 50, 10**6])
def test_losses_of_anchors(chunk: int, memory_format, monkeypatch) -> None:
    monkeypatch.setattr("retinanet_plugin.losses.layout._CHUNK_PER_CORE", chunk)
    logits = random_logits(False, torch.float32, memory_format)
    labels = random_labels(ignored=0.0)
    losses = anchor_losses(CrossEntropyLoss(), logits, positives_of(logits, labels), K)
    expected = dense_losses(logits, labels).detach()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)


def test_any_binary_loss_and_choice() -> None:
    logits, labels = random_logits(False, torch.float32, FORMATS[0]), random_labels()
    losses = FocalLoss()(dense(logits), bits_of(labels)).sum(2)
    largest = torch.where(labels == -2, 0, losses).topk(3).values
    loss = MinedLoss(FocalLoss(), lambda losses, positive, anchors: losses.topk(3).indices)
    mean, total = (loss_of(loss, logits, labels, normalizer=x) for x in (1.0, None))
    torch.testing.assert_close(mean, largest.mean().float())
    torch.testing.assert_close(total, largest.sum().float())


@pytest.mark.parametrize(
    "name, value", [("batch_size", 0), ("nms_thresh", 0.0), ("positive_fraction", 1.0)]
)
def test_impossible_parameters(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        HardExamples(**{name: value})
