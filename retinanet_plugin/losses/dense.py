"""A classification loss summed over every anchor and class, from sparse targets.

Nearly all of the millions of logits are negatives. So each is first treated as one, in pieces
that stay in the processor's cache, loss and gradient together; then the few logits of assigned
and ignored anchors are corrected by index. No dense target, mask, copy or transposition of the
logits is made: beside them stands one buffer of their size, their gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .binary import BinaryLoss

# Logits a piece on a CPU: enough for torch to use every core, while the four buffers of the work
# (1 MB each) still come from cache.
_CPU_PIECE = 256 * 1024


def offsets_of(dense: Tensor, image: Tensor, cell: Tensor, channel: Tensor) -> Tensor:
    """Where in the memory of ``dense`` the given elements lie, whatever its memory format.

    Args:
        dense: (N, C, H, W), contiguous or channels-last.
        image, cell, channel: int64, any shapes that broadcast; ``cell`` is ``y * W + x``.

    Returns:
        int64: indices into :func:`in_memory_order` of ``dense``.
    """
    per_image, per_channel, per_row, per_column = dense.stride()
    width = dense.shape[3]
    row = torch.div(cell, width, rounding_mode="floor")
    return (
        image * per_image
        + channel * per_channel
        + row * per_row
        + (cell - row * width) * per_column
    )


def in_memory_order(dense: Tensor) -> Tensor:
    """All elements of a dense tensor as one row, as they lie in memory: a view."""
    return dense.as_strided((dense.numel(),), (1,))


def dense_class_loss(
    logits: Sequence[Tensor],
    loss: BinaryLoss,
    positives: Sequence[Tensor],
    ignored: Sequence[Tensor],
    normalizer: Tensor | float = 1.0,
) -> Tensor:
    """Sum of ``loss`` over all logits, divided by ``normalizer``.

    Args:
        logits: a tensor a level, (N, A*K, H, W), contiguous or channels-last, of float64,
            float32, bfloat16 or float16; the latter two are summed in float32.
        loss: the loss of one logit.
        positives: a tensor a level, int64: the memory offsets (:func:`offsets_of`) of the logits
            whose class is present, each at most once.
        ignored: likewise, the logits that count for nothing; disjoint from ``positives``.
        normalizer: scalar.

    Returns:
        a scalar, float32 (float64 for float64 logits). It can be differentiated once: asking
        for a second derivative raises torch's RuntimeError of a once-differentiable function.
    """
    if not all(is_dense(x) for x in logits):
        raise ValueError("logits with gaps in memory: make them contiguous, then take the offsets")
    return _DenseClassLoss.apply(loss, positives, ignored, normalizer, *logits)


def is_dense(x: Tensor) -> bool:
    """Whether the elements (N, C, H, W) fill their memory, in either format."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


class _DenseClassLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: BinaryLoss,
        positives: Sequence[Tensor],
        ignored: Sequence[Tensor],
        normalizer: Tensor | float,
        *logits: Tensor,
    ) -> Tensor:
        accumulate = torch.promote_types(logits[0].dtype, torch.float32)
        scale = torch.as_tensor(normalizer, device=logits[0].device).to(accumulate).reciprocal()
        total = logits[0].new_zeros((), dtype=accumulate)
        # float16 would lose what is small before a loss scaler can enlarge it: kept in float32.
        keep = accumulate if logits[0].dtype is torch.float16 else logits[0].dtype
        grads: list[Any] = []
        for i, x in enumerate(logits):
            needed = ctx.needs_input_grad[4 + i]
            grad = torch.empty_like(x, dtype=keep) if needed else None
            total += _sum_level(loss, x, grad, positives[i], ignored[i], scale, accumulate)
            grads.append(grad)
        ctx.save_for_backward(*grads)
        ctx.dtype = logits[0].dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        # The loss is mostly added to others and differentiated: then upstream is 1. A CPU can look;
        # elsewhere looking would stall the queue, and the multiplication costs less.
        if upstream.device.type != "cpu" or upstream.item() != 1:
            grads = tuple(None if g is None else g * upstream for g in grads)
        grads = tuple(None if g is None else g.to(ctx.dtype) for g in grads)
        return None, None, None, None, *grads


def _sum_level(
    loss: BinaryLoss,
    logits: Tensor,
    grad: Tensor | None,
    positives: Tensor,
    ignored: Tensor,
    scale: Tensor,
    accumulate: torch.dtype,
) -> Tensor:
    """The unscaled sum over one level; ``grad``, if any, is filled with scaled derivatives."""
    flat = in_memory_order(logits.detach())
    flat_grad = None if grad is None else in_memory_order(grad)
    piece = _CPU_PIECE if logits.device.type == "cpu" else max(flat.numel(), 1)
    total = logits.new_zeros((), dtype=accumulate)
    for start in range(0, flat.numel(), piece):
        x = flat[start : start + piece].to(accumulate)
        value, derivative = loss.value_and_grad(x, False)
        total += value.sum()
        if flat_grad is not None:
            torch.mul(derivative, scale, out=flat_grad[start : start + piece])
    # What was counted as negatives above and is not: take it back.
    for start in range(0, len(ignored), _CPU_PIECE):
        index = ignored[start : start + _CPU_PIECE]
        value, _ = loss.value_and_grad(flat[index].to(accumulate), False)
        total -= value.sum()
        if flat_grad is not None:
            flat_grad[index] = 0
    x = flat[positives].to(accumulate)
    as_negative, _ = loss.value_and_grad(x, False)
    value, derivative = loss.value_and_grad(x, True)
    total += (value - as_negative).sum()
    if flat_grad is not None:
        flat_grad[positives] = (derivative * scale).to(flat_grad.dtype)
    return total
