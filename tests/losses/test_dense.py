"""The dense sum from sparse indices against a loss over dense one-hot targets, in float64."""

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
from retinanet_plugin.losses.negatives import Negatives

K = 4
SHAPES = [(2, 3 * K, 9, 7), (2, 3 * K, 5, 4), (2, 3 * K, 1, 1)]
LOSSES = [
    FocalLoss(),
    FocalLoss(0.5, 0.0),
    FocalLoss(0.25, 0.5),
    CrossEntropyLoss(),
    FocalStarLoss(),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
NONE = torch.zeros(0, dtype=torch.int64)


def scene(memory_format: torch.memory_format, dtype: torch.dtype):
    """Random logits, dense 0 / 1 / ignored (-1) targets, and the latter as sparse offsets."""
    logits, dense, positives, ignored = [], [], [], []
    for shape in SHAPES:
        x = torch.randn(shape) * 4
        target = (torch.rand(shape) < 0.05).long()
        x[0, :4, 0, 0], target[0, 2:4, 0, 0] = torch.tensor([-100.0, 100.0] * 2), 1
        of_anchor = target.view(2, 3, K, -1)
        n, a, cell = torch.where((torch.rand(2, 3, of_anchor.shape[3]) < 0.1) & ~of_anchor.any(2))
        of_anchor[n, a, :, cell] = -1
        x = x.to(dtype).contiguous(memory_format=memory_format)
        ignored.append(offsets_of(x, n, cell, a * K))
        n, channel, cell = torch.where(target.flatten(2) == 1)
        positives.append(offsets_of(x, n, cell, channel))
        logits.append(x.requires_grad_())
        dense.append(target)
    return logits, dense, positives, ignored


def check(loss: BinaryLoss | Negatives, memory_format, dtype: torch.dtype) -> None:
    """Loss to 1e-6, gradients of 3 times the loss to 1e-5 or the precision of ``dtype``."""
    logits, dense, positives, ignored = scene(memory_format, dtype)
    binary = loss.binary if isinstance(loss, Negatives) else loss
    terms = [binary(x.double(), t)[t >= 0].sum() for x, t in zip(logits, dense, strict=True)]
    expected = torch.stack(terms).sum() / 7

    def ours() -> Tensor:
        return dense_class_loss(logits, loss, positives, ignored, 7.0, ignored_channels=K)

    with torch.no_grad():
        without_grad = ours()
    value = ours()
    assert value.dtype is torch.promote_types(dtype, torch.float32)
    assert not without_grad.requires_grad
    for x in (value, without_grad):
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=0)
    grads, wanted = (torch.autograd.grad(3 * x, logits) for x in (value, expected))
    assert [x.stride() for x in grads] == [x.stride() for x in logits]
    rtol = max(1e-5, 2 * torch.finfo(dtype).eps)
    atol = torch.finfo(dtype).smallest_normal if dtype is torch.float16 else 1e-9
    torch.testing.assert_close(grads, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("chunk", [1, 50, 10**6])
def test_any_chunk_size(chunk: int, memory_format: torch.memory_format, monkeypatch) -> None:
    monkeypatch.setattr("retinanet_plugin.losses.layout._CHUNK_PER_CORE", chunk)
    check(FocalLoss(), memory_format, torch.float32)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: f"{type(x).__name__}{x.gamma}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_losses_and_dtypes(loss: BinaryLoss, dtype: torch.dtype) -> None:
    check(loss, torch.contiguous_format, dtype)


def test_second_derivative_is_refused() -> None:
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    total = dense_class_loss([x], FocalLoss(), [NONE], [NONE]) * x.sum()
    (grad,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradients_of_a_retained_graph_add_up() -> None:
    """The first gradient becomes ``x.grad``, to which the next are added in place."""
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    total = dense_class_loss([x], FocalLoss(), [NONE], [NONE])
    (once,) = torch.autograd.grad(total * 2, x, retain_graph=True)
    for _ in range(3):
        total.backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 1.5 * once)


def test_gaps_in_memory_are_refused() -> None:
    """Offsets of a slice would not be those of its copy."""
    with pytest.raises(ValueError, match="gaps in memory"):
        dense_class_loss([torch.randn(1, 4, 3, 8)[..., ::2]], FocalLoss(), [NONE], [NONE])


def test_float16_keeps_small_gradients_for_a_loss_scaler() -> None:
    """The gradient of an easy negative, 2e-8, underflows in float16; 65536 times that does not."""
    half = torch.full((1, 4, 8, 8), -4.6, dtype=torch.float16, requires_grad=True)
    full = half.detach().float().requires_grad_()
    for x in (half, full):
        (dense_class_loss([x], FocalLoss(), [NONE], [NONE], 100.0) * 65536).backward()
    assert half.grad.dtype is torch.float16 and half.grad.abs().min() > 0
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=2e-3, atol=0)
