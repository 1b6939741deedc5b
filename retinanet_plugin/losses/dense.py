"""A classification loss summed over every anchor and class, from sparse targets.

Nearly all of the millions of logits are negatives. So each is first treated as one, loss and
gradient together, in pieces that stay in the processor's cache; then the few logits of assigned
and ignored anchors are corrected by index. No dense target, mask, copy or transposition of the
logits is made: beside them stands one buffer of their size, their gradient.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .binary import BinaryLoss
from .negatives import sum_as_negatives

# Logits a piece. On a CPU, for each core: what lets torch share the work, while the five buffers
# it takes (256 KB each) stay in the core's cache. Elsewhere: running a kernel then takes longer
# than launching it (5 us), while its buffers (32 MB each) are few beside the network's.
_PIECE_PER_CORE = 64 * 1024
_PIECE = 8 * 1024 * 1024


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
    *,
    ignored_channels: int = 1,
) -> Tensor:
    """Sum of ``loss`` over all logits, divided by ``normalizer``.

    Args:
        logits: a tensor a level, (N, A*K, H, W), contiguous or channels-last, of float64,
            float32, bfloat16 or float16; the latter two are summed in float32.
        loss: the loss of one logit; ``loss.compiled`` chooses how the negatives are summed.
        positives: a tensor a level, int64: the memory offsets (:func:`offsets_of`) of the logits
            whose class is present, each at most once.
        ignored: likewise, the logits that count for nothing; disjoint from ``positives``.
        normalizer: scalar.
        ignored_channels: how many channels each offset in ``ignored`` stands for, from its own
            onwards: with K, the first class of an anchor ignores them all.

    Returns:
        a scalar, float32 (float64 for float64 logits). It can be differentiated once: asking
        for a second derivative raises torch's RuntimeError of a once-differentiable function.
    """
    if not all(is_dense(x) for x in logits):
        raise ValueError("logits with gaps in memory: make them contiguous, then take the offsets")
    unscaled_sum = partial(_sum, loss, positives, ignored, ignored_channels)
    return _DenseClassLoss.apply(unscaled_sum, normalizer, *logits)


def is_dense(x: Tensor) -> bool:
    """Whether the elements (N, C, H, W) fill their memory, in either format."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


class _DenseClassLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, unscaled_sum: Callable[..., Tensor], normalizer: Tensor | float, *logits: Tensor
    ) -> Tensor:
        accumulate = torch.promote_types(logits[0].dtype, torch.float32)
        device = logits[0].device
        scale = torch.as_tensor(normalizer, dtype=accumulate, device=device).reciprocal()
        ctx.unscaled_sum, ctx.scale = unscaled_sum, scale
        ctx.save_for_backward(*logits)
        # float16 loses what is small before a loss scaler can enlarge it, and float32 gradients
        # would be twice the logits: those wait for backward, which knows the whole factor.
        wait = logits[0].dtype is torch.float16
        ctx.grads = None if wait else _empty_grads(ctx, logits)
        return unscaled_sum(logits, ctx.grads, scale) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Given away, for autograd may add to them in place: a second backward starts afresh.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            grads = _empty_grads(ctx, ctx.saved_tensors)
            ctx.unscaled_sum(ctx.saved_tensors, grads, ctx.scale * upstream)
        # The loss is mostly added to others and differentiated: then upstream is 1. A CPU can look;
        # elsewhere looking would stall the queue, and the multiplication costs less.
        elif upstream.device.type != "cpu" or upstream.item() != 1:
            for grad in grads:
                if grad is not None:
                    grad *= upstream
        return None, None, *grads


def _empty_grads(ctx: Any, logits: Sequence[Tensor]) -> list[Tensor | None]:
    needed = ctx.needs_input_grad[-len(logits) :]
    return [torch.empty_like(x) if y else None for x, y in zip(logits, needed, strict=True)]


def _sum(
    loss: BinaryLoss,
    positives: Sequence[Tensor],
    ignored: Sequence[Tensor],
    ignored_channels: int,
    logits: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    scale: Tensor,
) -> Tensor:
    """The unscaled sum over all levels; ``grads`` are filled with the scaled derivatives."""
    total = torch.zeros_like(scale)
    for i, x in enumerate(logits):
        flat = in_memory_order(x.detach())
        grad = grads[i] if grads else None
        flat_grad = None if grad is None else in_memory_order(grad)
        piece = _piece(loss, flat)
        starts = range(0, len(flat), piece)
        # One tensor for the sums: many small ones would lie between the buffers of the pieces on
        # the heap, which then grew by each.
        sums = scale.new_zeros(len(starts))
        for k, start in enumerate(starts):
            here = slice(start, start + piece)
            grad_here = None if flat_grad is None else flat_grad[here]
            sums[k] = sum_as_negatives(loss, flat[here], grad_here, scale)
        total += sums.sum()
        # What was counted as negatives above and is not: take it back.
        channels = torch.arange(ignored_channels, device=x.device) * x.stride(1)
        for first in ignored[i].split(max(1, piece // ignored_channels)):
            index = first[:, None] + channels
            total -= loss.value(flat[index].to(scale.dtype), False).sum()
            if flat_grad is not None:
                flat_grad[index] = 0
        found = flat[positives[i]].to(scale.dtype)
        as_negative = loss.value(found, False)
        as_positive, derivative = loss.value_and_grad(found, True)
        total += (as_positive - as_negative).sum()
        if flat_grad is not None:
            flat_grad[positives[i]] = (derivative * scale).to(flat_grad.dtype)
    return total


def piece_of(x: Tensor) -> int:
    """How many logits to work on at a time, on the device of ``x``."""
    return _PIECE_PER_CORE * min(torch.get_num_threads(), 8) if x.is_cpu else _PIECE


def _piece(loss: BinaryLoss, flat: Tensor) -> int:
    """As :func:`piece_of`, for the logits of a level and a loss that may be compiled."""
    if loss.compiled and not flat.is_cpu:
        return max(1, len(flat))
    # Compiled, one buffer is left of the work.
    return piece_of(flat) * (4 if loss.compiled else 1)
