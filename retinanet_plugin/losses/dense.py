"""A classification loss summed over all anchors and classes, from sparse targets.

Nearly all of the millions of logits are negatives. So all of them are first treated as negatives,
loss and gradient together, in chunks that stay in the processor's cache. Then the few logits of
assigned and ignored anchors are corrected by index. No dense target, mask or copy of the logits is
made; the only buffer of their size is their gradient.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .binary import BinaryLoss
from .class_loss import ClassLoss
from .layout import in_memory_order, is_dense
from .negatives import Negatives
from .targets import SparseTargets


class DenseLoss(ClassLoss):
    """The sum of a binary loss over all classes of all anchors that are not ignored.

    Args:
        binary: the loss of a logit.
        compile: sum the negatives in a kernel made by ``torch.compile``, if possible.
    """

    def __init__(self, binary: BinaryLoss, *, compile: bool = False) -> None:
        self.binary = binary
        self.negatives = Negatives(binary, compile)

    def __call__(
        self,
        logits: Sequence[Tensor],
        targets: SparseTargets,
        *,
        positives: Sequence[Tensor],
        ignored: Sequence[Tensor],
        num_classes: int,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        scale = 1.0 if normalizer is None else normalizer
        return dense_class_loss(
            logits, self.negatives, positives, ignored, scale, ignored_channels=num_classes
        )


def dense_class_loss(
    logits: Sequence[Tensor],
    loss: BinaryLoss | Negatives,
    positives: Sequence[Tensor],
    ignored: Sequence[Tensor],
    normalizer: Tensor | float = 1.0,
    *,
    ignored_channels: int = 1,
) -> Tensor:
    """Sums ``loss`` over all logits and divides by ``normalizer``.

    Args:
        logits: a tensor per level, (N, A*K, H, W), contiguous or channels-last, of float64,
            float32, bfloat16 or float16; the latter two are summed in float32.
        loss: the loss of a logit, or what sums it over negatives.
        positives: a tensor per level, int64: memory offsets (:func:`offsets_of`) of the logits
            whose class is present, each at most once.
        ignored: likewise, logits that do not count; disjoint from ``positives``.
        normalizer: scalar.
        ignored_channels: how many channels each offset in ``ignored`` stands for, from its own
            onwards; with K, the first class of an anchor ignores all of its classes.

    Returns:
        a scalar, float32 (float64 for float64 logits). A second derivative raises torch's
        RuntimeError for functions that are differentiable once.
    """
    if not all(is_dense(x) for x in logits):
        raise ValueError("logits have gaps in memory: call contiguous(), then offsets_of()")
    negatives = loss if isinstance(loss, Negatives) else Negatives(loss)
    unscaled_sum = partial(_sum, negatives, positives, ignored, ignored_channels)
    return _ScaledSum.apply(unscaled_sum, normalizer, *logits)


def _sum(
    negatives: Negatives,
    positives: Sequence[Tensor],
    ignored: Sequence[Tensor],
    ignored_channels: int,
    logits: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    scale: Tensor,
) -> Tensor:
    """Returns the unscaled sum over all levels; fills ``grads`` with the scaled derivatives."""
    loss = negatives.binary
    total = torch.zeros_like(scale)
    for i, x in enumerate(logits):
        flat = in_memory_order(x.detach())
        grad = grads[i] if grads else None
        flat_grad = None if grad is None else in_memory_order(grad)
        total += negatives.sum(flat, flat_grad, scale)
        # Correct the logits that are not negatives.
        channels = torch.arange(ignored_channels, device=x.device) * x.stride(1)
        for first in ignored[i].split(max(1, negatives.chunk_size(flat) // ignored_channels)):
            index = first[:, None] + channels
            total -= loss.value(flat[index].to(scale.dtype), False).sum()
            if flat_grad is not None:
                flat_grad[index] = 0
        logit = flat[positives[i]].to(scale.dtype)
        as_negative = loss.value(logit, False)
        as_positive, derivative = loss.value_and_grad(logit, True)
        total += (as_positive - as_negative).sum()
        if flat_grad is not None:
            flat_grad[positives[i]] = (derivative * scale).to(flat_grad.dtype)
    return total


class _ScaledSum(torch.autograd.Function):
    """``unscaled_sum(...) / normalizer``, with the gradients that it computes along the way."""

    @staticmethod
    def forward(
        ctx: Any, unscaled_sum: Callable[..., Tensor], normalizer: Tensor | float, *logits: Tensor
    ) -> Tensor:
        accumulate = torch.promote_types(logits[0].dtype, torch.float32)
        device = logits[0].device
        scale = torch.as_tensor(normalizer, dtype=accumulate, device=device).reciprocal()
        ctx.unscaled_sum, ctx.scale = unscaled_sum, scale
        ctx.save_for_backward(*logits)
        # float16 gradients underflow unless the factor of a loss scaler is applied first, and
        # float32 ones would be twice the size of the logits: they wait for backward.
        wait = logits[0].dtype is torch.float16
        ctx.grads = None if wait else _empty_grads(ctx, logits)
        return unscaled_sum(logits, ctx.grads, scale) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Autograd may add to them in place, so a second backward computes them again.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            grads = _empty_grads(ctx, ctx.saved_tensors)
            ctx.unscaled_sum(ctx.saved_tensors, grads, ctx.scale * upstream)
        # Usually the loss is added to others, so upstream is 1. Checking that is free on a CPU;
        # elsewhere it would wait for the device, which costs more than the multiplication.
        elif upstream.device.type != "cpu" or upstream.item() != 1:
            for grad in grads:
                if grad is not None:
                    grad *= upstream
        return None, None, *grads


def _empty_grads(ctx: Any, logits: Sequence[Tensor]) -> list[Tensor | None]:
    needed = ctx.needs_input_grad[-len(logits) :]
    return [torch.empty_like(x) if y else None for x, y in zip(logits, needed, strict=True)]
