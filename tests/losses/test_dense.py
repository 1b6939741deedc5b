"""The dense sum from sparse indices against a loss over dense one-hot targets."""

import pytest
import torch
from torch import Tensor

from retinanet_plugin.losses import (
    BinaryLoss,
    CrossEntropyLoss,
    FocalLoss,
    FocalStarLoss,
    dense_class_loss,
    offsets_of,
)

LOSSES = [
    FocalLoss(),
    FocalLoss(0.5, 0.0),
    FocalLoss(0.25, 0.5),
    CrossEntropyLoss(),
    FocalStarLoss(),
]
SHAPES = [(2, 12, 9, 7), (2, 12, 5, 4), (2, 12, 1, 1)]


def scene(memory_format: torch.memory_format, dtype: torch.dtype, scale: float = 4.0):
    """Random logits, with dense 0 / 1 / ignored (-1) targets, and the same as sparse offsets."""
    logits, dense, positives, ignored = [], [], [], []
    for shape in SHAPES:
        x = (torch.randn(shape) * scale).to(dtype).contiguous(memory_format=memory_format)
        target = torch.randint(0, 30, shape)
        target = torch.where(target == 0, 1, torch.where(target <= 3, -1, 0))
        for value, offsets in ((1, positives), (-1, ignored)):
            n, c, y, xx = torch.where(target == value)
            offsets.append(offsets_of(x, n, y * shape[3] + xx, c))
        logits.append(x.detach().requires_grad_())
        dense.append(target)
    return logits, dense, positives, ignored


def by_hand(loss: BinaryLoss, logits: list[Tensor], dense: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, target in zip(logits, dense, strict=True):
        value = loss(x.double(), target)
        total = total + value[target >= 0].sum()
    return total


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda x: type(x).__name__ + str(getattr(x, "gamma", ""))
)
def test_equals_dense_targets(loss: BinaryLoss, memory_format: torch.memory_format) -> None:
    logits, dense, positives, ignored = scene(memory_format, torch.float32)
    expected = by_hand(loss, logits, dense) / 7
    expected_grads = torch.autograd.grad(expected, logits)
    ours = dense_class_loss(logits, loss, positives, ignored, torch.tensor(7.0))
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-6)
    for grad, wanted in zip(torch.autograd.grad(ours, logits), expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**6])
def test_any_chunk_size(chunk: int, monkeypatch) -> None:
    logits, _, positives, ignored = scene(torch.contiguous_format, torch.float64)
    expected = dense_class_loss(logits, FocalLoss(), positives, ignored)
    expected_grads = torch.autograd.grad(expected, logits)
    monkeypatch.setattr("retinanet_plugin.losses.layout._CHUNK_PER_CORE", chunk)
    ours = dense_class_loss(logits, FocalLoss(), positives, ignored)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), expected_grads)


def test_gradcheck() -> None:
    logits, _, positives, ignored = scene(torch.contiguous_format, torch.float64, scale=2.0)
    for loss in LOSSES:
        assert torch.autograd.gradcheck(
            lambda *x, loss=loss: dense_class_loss(x, loss, positives[1:], ignored[1:], 3.0) * 1.7,
            logits[1:],
            nondet_tol=1e-14,  # a second backward multiplies in another order
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    logits, dense, positives, ignored = scene(torch.contiguous_format, dtype)
    ours = dense_class_loss(logits, FocalLoss(), positives, ignored)
    assert ours.dtype is torch.float32
    torch.testing.assert_close(
        ours.double(), by_hand(FocalLoss(), logits, dense), rtol=1e-5, atol=0
    )
    grads = torch.autograd.grad(ours, logits)
    wanted = torch.autograd.grad(by_hand(FocalLoss(), logits, dense), logits)
    assert all(g.dtype is dtype for g in grads)
    torch.testing.assert_close(grads, wanted, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [-100.0, 100.0])
def test_finite_at_the_far_ends(level: float, dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 1, 2), level, dtype=dtype, requires_grad=True)
    value = dense_class_loss([x], FocalLoss(), [torch.tensor([0])], [torch.tensor([1])])
    value.backward()
    # One positive, one ignored, two negatives; the wrong ones cost alpha_t * 100.
    expected = 0.25 * 100 if level < 0 else 2 * 0.75 * 100
    assert value.item() == pytest.approx(expected, rel=1e-6)
    slopes = [-0.25, 0, 0, 0] if level < 0 else [0, 0, 0.75, 0.75]
    torch.testing.assert_close(
        x.grad.flatten().float(), torch.tensor(slopes), rtol=1e-6, atol=1e-12
    )


def test_second_derivative_is_refused() -> None:
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    (grad,) = torch.autograd.grad(
        dense_class_loss([x], FocalLoss(), [none], [none]) * x.sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradients_of_a_retained_graph_add_up() -> None:
    """The first gradient becomes ``x.grad``, to which the next are added in place."""
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    total = dense_class_loss([x], FocalLoss(), [none], [none])
    (once,) = torch.autograd.grad(total * 2, x, retain_graph=True)
    for _ in range(3):
        total.backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 1.5 * once)


def test_without_gradients() -> None:
    logits, dense, positives, ignored = scene(torch.contiguous_format, torch.float32)
    with torch.no_grad():
        value = dense_class_loss(logits, FocalLoss(), positives, ignored)
    assert not value.requires_grad
    torch.testing.assert_close(
        value.double(), by_hand(FocalLoss(), logits, dense), rtol=1e-5, atol=0
    )


def test_offsets_find_elements_in_either_format() -> None:
    x = torch.randn(2, 6, 3, 5)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = x.contiguous(memory_format=memory_format)
        offset = offsets_of(y, torch.tensor(1), torch.tensor(2 * 5 + 4), torch.tensor(3))
        assert y.as_strided((y.numel(),), (1,))[offset] == x[1, 3, 2, 4]


@pytest.mark.parametrize("chunk", [1, 50, 10**6])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_ignored_anchors_by_their_first_channel(memory_format, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr("retinanet_plugin.losses.layout._CHUNK_PER_CORE", chunk)
    anchors, classes = 3, 4
    x = torch.randn(2, anchors * classes, 5, 7).contiguous(memory_format=memory_format)
    x.requires_grad_()
    image, cell, anchor = torch.where(torch.rand(2, 35, anchors) < 0.3)
    first = offsets_of(x, image, cell, anchor * classes)
    none = torch.zeros(0, dtype=torch.int64)
    ours = dense_class_loss([x], FocalLoss(), [none], [first], ignored_channels=classes)
    counts = torch.ones(2, anchors, classes, 35)
    counts[image, anchor, :, cell] = 0
    losses = FocalLoss().value(x.double(), False) * counts.view(x.shape)
    torch.testing.assert_close(ours.double(), losses.sum(), rtol=1e-6, atol=0)
    ours, expected = (torch.autograd.grad(y, x)[0] for y in (ours, losses.sum()))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-9)


def test_gaps_in_memory_are_refused() -> None:
    """Offsets of a slice would not be those of its copy."""
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="gaps in memory"):
        dense_class_loss([torch.randn(1, 4, 3, 8)[..., ::2]], FocalLoss(), [none], [none])


def test_float16_keeps_small_gradients_for_a_loss_scaler() -> None:
    """The gradient of an easy negative, 2e-8, underflows in float16; 65536 times that does not."""
    none = torch.zeros(0, dtype=torch.int64)
    half = torch.full((1, 4, 8, 8), -4.6, dtype=torch.float16, requires_grad=True)
    full = half.detach().float().requires_grad_()
    for x in (half, full):
        (dense_class_loss([x], FocalLoss(), [none], [none], 100.0) * 65536).backward()
    assert half.grad.dtype is torch.float16 and half.grad.abs().min() > 0
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=2e-3, atol=0)
