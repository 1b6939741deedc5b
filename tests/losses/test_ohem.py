"""OHEM against a brute-force version: dense targets, every IoU, Python's sort, autograd."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torchvision.ops import nms

from retinanet_plugin import RetinaNetAnchorGenerator
from retinanet_plugin.losses import (
    BinaryLoss,
    ClassTargets,
    FocalLoss,
    OhemLoss,
    SelectingLoss,
    offsets_of,
)
from retinanet_plugin.losses.per_anchor import anchor_losses
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


def targets_of(logits: list[Tensor], labels: Tensor) -> ClassTargets:
    positives, ignored = [], []
    start = 0
    for x in logits:
        count = x.shape[2] * x.shape[3] * A
        here = labels[:, start : start + count].unflatten(1, (-1, A))
        for found, chosen in ((positives, here >= 0), (ignored, here == -2)):
            n, cell, a = torch.where(chosen)
            found.append(offsets_of(x, n, cell, a * K + here[n, cell, a].clamp(min=0)))
        start += count
    return ClassTargets(K, positives, ignored, lambda: labels, GRID)


def dense(logits: list[Tensor]) -> Tensor:
    """(N, R, K), float64."""
    parts = [x.permute(0, 2, 3, 1).reshape(N, -1, K).double() for x in logits]
    return torch.cat(parts, dim=1)


def dense_losses(logits: list[Tensor], labels: Tensor) -> Tensor:
    """(N, R): binary cross entropy, summed over classes."""
    bits = torch.nn.functional.one_hot(labels.clamp(min=0), K) * (labels >= 0)[..., None]
    return torch.nn.functional.binary_cross_entropy_with_logits(
        dense(logits), bits.double(), reduction="none"
    ).sum(2)


def brute_force(
    losses: Tensor, labels: Tensor, batch: int, threshold: float, fraction: float, grid: AnchorGrid
) -> list[int]:
    """Anchor numbers of a picture: NMS over everything first, as the paper says, then the batch."""
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
    expected = losses[chosen].sum() / max(int(chosen.sum()), 1)
    loss = OhemLoss(batch, threshold, fraction)
    ours = loss.over_anchors(logits, targets_of(logits, labels), 123.0)
    torch.testing.assert_close(ours.total.double(), expected, rtol=1e-6, atol=1e-7)
    of_positives = losses[chosen & (labels >= 0)].sum().detach() / max(int(chosen.sum()), 1)
    torch.testing.assert_close(ours.of_positives().double(), of_positives, rtol=1e-6, atol=1e-7)
    grads = torch.autograd.grad(ours.total, logits)
    wanted = torch.autograd.grad(expected, logits)
    for x, grad, other in zip(logits, grads, wanted, strict=True):
        assert grad.dtype is x.dtype and grad.stride() == x.stride()
        rtol = max(1e-5, torch.finfo(x.dtype).eps)
        torch.testing.assert_close(grad, other, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "no-ties"])
@pytest.mark.parametrize("batch, fraction", [(1, 0.0), (12, 0.0), (12, 0.25), (500, 0.25)])
def test_equals_brute_force(batch, fraction, ties, memory_format) -> None:
    for threshold in (0.5, 0.7, 1.0):
        labels = random_labels()
        check(random_logits(ties, torch.float32, memory_format), labels, batch, threshold, fraction)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    for ties in (True, False):
        for fraction in (0.0, 0.25):
            logits = random_logits(ties, dtype, memory_format)
            check(logits, random_labels(), 12, 0.5, fraction)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("case", ["no positive", "all ignored", "one ignored", "all positive"])
def test_unusual_pictures(case: str, fraction: float) -> None:
    labels = {
        "no positive": random_labels(positive=0.0),
        "all ignored": torch.full((N, R), -2),
        "one ignored": torch.stack([torch.full((R,), -2), random_labels()[0]]),
        "all positive": random_labels(positive=1.0),
    }[case]
    check(random_logits(False, torch.float32, torch.contiguous_format), labels, 12, 0.5, fraction)


def test_positives_are_few_or_many() -> None:
    """1:3 is kept: few positives make a small batch, a picture without gives three negatives."""
    losses = torch.rand(R)
    for positives, expected in ((0, (0, 3)), (2, (2, 6)), (R // 2, (4, 12))):
        positive = torch.zeros(R, dtype=torch.bool)
        positive[torch.randperm(R)[:positives]] = True
        chosen = OhemLoss(16, 1.0, 0.25).choose(losses, positive, GRID)
        assert (int(positive[chosen].sum()), int((~positive[chosen]).sum())) == expected


@pytest.mark.parametrize("batch, expected", [(1, (1, 0)), (2, (1, 1)), (6, (2, 4)), (7, (2, 5))])
def test_batches_that_do_not_divide(batch: int, expected: tuple[int, int]) -> None:
    positive = torch.arange(R) % 3 == 0
    chosen = OhemLoss(batch, 1.0, 0.25).choose(torch.rand(R), positive, GRID)
    assert (int(positive[chosen].sum()), int((~positive[chosen]).sum())) == expected


@pytest.mark.parametrize("candidates", [1, 7, 10**6])
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_the_size_of_a_chunk_changes_nothing(candidates, fraction, monkeypatch) -> None:
    monkeypatch.setattr("retinanet_plugin.losses.ohem._CANDIDATES", candidates)
    logits = random_logits(True, torch.float32, torch.contiguous_format)
    check(logits, random_labels(), 20, 0.5, fraction)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize("levels", [3, 10**6], ids=["ties", "few ties"])
@pytest.mark.parametrize("looked_at", [0, 200, 10**6])
def test_easy_positives(looked_at: int, levels: int, threshold: float, monkeypatch) -> None:
    """Easier than most negatives, as late in a training: NMS does not come down to them."""
    monkeypatch.setattr("retinanet_plugin.losses.ohem._CANDIDATES", 16)
    monkeypatch.setattr("retinanet_plugin.losses.ohem._MOST_LOOKED_AT", looked_at)
    grid = make_grid([(8, 7), (4, 4)], scales=2)
    count = grid.num_anchors
    for easier, positives in ((levels // 2, 60), (levels, 3), (levels, 60)):
        labels = torch.where(torch.rand(count) < 0.1, -2, -1)
        # Some stand together, as around an object: a third of the picture has them all.
        labels[torch.randperm(count // 3)[:positives]] = 1
        losses = torch.randint(levels, (count,)).float()
        losses[labels >= 0] -= easier
        losses[labels == -2] = -torch.inf
        expected = brute_force(losses, labels, 64, threshold, 0.25, grid)
        chosen = OhemLoss(64, threshold, 0.25).choose(losses, labels >= 0, grid)
        assert chosen.tolist() == expected


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_equals_torchvisions_nms_on_many_anchors(threshold: float) -> None:
    """Two scales an octave: the IoU of nested anchors is 0.5 but for the last bit."""
    grid = make_grid([(30, 32), (15, 16), (8, 8)], scales=2)
    boxes = grid.boxes_of(torch.arange(grid.num_anchors))
    losses = torch.rand(grid.num_anchors)
    expected = nms(boxes, losses, threshold)
    assert len(expected) > 700
    no_positive = torch.zeros(len(losses), dtype=torch.bool)
    for batch in (64, 700, len(losses)):
        chosen = OhemLoss(batch, threshold).choose(losses, no_positive, grid)
        assert torch.equal(chosen, expected[:batch])


def test_nan_is_chosen_first() -> None:
    """A model that has diverged shows it in the loss, which stops the training."""
    losses = torch.rand(R)
    losses[[5, 50]] = torch.tensor([torch.nan, torch.inf])
    chosen = OhemLoss(2, 1.0).choose(losses, torch.zeros(R, dtype=torch.bool), GRID)
    assert chosen.tolist() == [5, 50]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("piece", [1, 10, 50, 10**6])
def test_losses_of_anchors(piece: int, memory_format, monkeypatch) -> None:
    monkeypatch.setattr("retinanet_plugin.losses.dense._PIECE_PER_CORE", piece)
    logits = random_logits(False, torch.float32, memory_format)
    labels = random_labels(ignored=0.0)
    targets = targets_of(logits, labels)
    found = anchor_losses(OhemLoss(), logits, targets.positives, K)
    torch.testing.assert_close(
        found.double(), dense_losses(logits, labels).detach(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_one_class_and_anchor_a_place(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 1, 3, 5).contiguous(memory_format=memory_format)
    found = anchor_losses(OhemLoss(), [x], [torch.tensor([7])], 1)
    expected = torch.nn.functional.softplus(x.flatten(1))
    expected[0, 7] = torch.nn.functional.softplus(-x[0, 0, 1, 2])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_what_positive_anchors_hold_of_a_loss_over_all(memory_format: torch.memory_format) -> None:
    logits = random_logits(False, torch.float32, memory_format)
    labels = random_labels()
    bits = torch.nn.functional.one_hot(labels.clamp(min=0), K) * (labels >= 0)[..., None]
    losses = FocalLoss()(dense(logits), bits).sum(2).detach()
    found = FocalLoss().over_anchors(logits, targets_of(logits, labels), 7.0)
    near = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(
        found.total.double().detach(), losses[labels != -2].sum() / 7, **near
    )
    torch.testing.assert_close(found.of_positives().double(), losses[labels >= 0].sum() / 7, **near)


def test_hard_mining_of_another_loss() -> None:
    """What trains is the mean over the chosen, of whichever loss chose them."""

    class Largest(SelectingLoss):
        def value(self, logits: Tensor, positive: bool) -> Tensor:
            return FocalLoss().value(logits, positive)

        def choose(self, losses: Tensor, positive: Tensor, anchors: object) -> Tensor:
            return losses.topk(3).indices

    def rows(loss: BinaryLoss) -> Tensor:
        bits = torch.nn.functional.one_hot(labels.clamp(min=0), K) * (labels >= 0)[..., None]
        return torch.where(labels == -2, 0, loss(dense(logits), bits).sum(2))

    logits = random_logits(False, torch.float32, torch.contiguous_format)
    labels = random_labels()
    targets = targets_of(logits, labels)
    expected = rows(FocalLoss()).topk(3).values.mean().float()
    torch.testing.assert_close(Largest().over_anchors(logits, targets, 1.0).total, expected)
    one = OhemLoss(1, loss=FocalLoss()).over_anchors(logits, targets, 1.0).total
    torch.testing.assert_close(one, rows(FocalLoss()).amax(1).mean().float())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"nms_thresh": 0.0}, "nms_thresh must be above 0"),
        ({"nms_thresh": 1.1}, "nms_thresh must be .* at most 1"),
        ({"positive_fraction": 1.0}, "positive_fraction must be .* below 1"),
        ({"positive_fraction": -0.1}, "positive_fraction must be at least 0"),
    ],
)
def test_impossible_parameters(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OhemLoss(**arguments)
