"""What a classification loss of a dense detector is: one logit against one bit."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .targets import ClassLoss, ClassTargets


class BinaryLoss:
    """Base of the losses that treat every class of every anchor as a problem of its own.

    A subclass writes :meth:`value` in plain torch operations; that is enough to train with it.
    Where the derivative has a closed form, overriding :meth:`value_and_grad` is faster.

    Attributes:
        compiled: whether :func:`~retinanet_plugin.losses.dense_class_loss` runs these two methods
            on the negatives through ``torch.compile``.
    """

    compiled = False

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        """Loss of each logit, given that its class is present (``positive``) or is not.

        Args:
            logits: any shape, float32 or float64.

        Returns:
            the losses, shaped as ``logits``.
        """
        raise NotImplementedError

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        """:meth:`value` and its derivative by the logit, both shaped as ``logits``."""
        if torch.compiler.is_compiling():  # not through autograd.grad
            value, pull_back = torch.func.vjp(lambda x: self.value(x, positive), logits)[:2]
            return value, pull_back(torch.ones_like(value))[0]
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            value = self.value(logits, positive)
            (grad,) = torch.autograd.grad(value.sum(), logits)
        return value.detach(), grad

    def over_anchors(
        self, logits: Sequence[Tensor], targets: ClassTargets, normalizer: Tensor | float
    ) -> ClassLoss:
        """What a head trains its classes with: here the sum over all anchors that are not ignored.

        Args:
            logits: a tensor a level, (N, A*K, H, W), contiguous or channels-last.
            targets: what the anchors are.
            normalizer: scalar that the sum is divided by.
        """
        from .dense import dense_class_loss  # both import this file
        from .per_anchor import loss_of_positives

        total = dense_class_loss(
            logits,
            self,
            targets.positives,
            targets.ignored,
            normalizer,
            ignored_channels=targets.num_classes,
        )
        return ClassLoss(total, lambda: loss_of_positives(self, logits, targets) / normalizer)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each logit against dense 0/1 ``targets`` of its shape: for figures and tests."""
        return torch.where(targets > 0, self.value(logits, True), self.value(logits, False))


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, finite and right at both ends; a new tensor, without a gradient graph.

    With ``u = exp(-|x|)`` it is ``max(x, 0) + log1p(u)``. On a CPU log1p can be ten times as slow
    as ``2 atanh(u / (2 + u))``, which is the same.
    """
    compiling = torch.compiler.is_compiling()
    if not (x.is_cpu or compiling):
        return F.softplus(x)
    u = x.abs().neg_().exp_()
    u = u.div_(u + 2)
    u = _atanh(u) if compiling and x.dtype is torch.float32 else u.atanh_()
    return u.mul_(2).add_(x.clamp(min=0))


def _atanh(x: Tensor) -> Tensor:
    """Within 2e-8 of itself for ``x`` in [0, 1/3]: the series, for a compiler to fuse."""
    square = x * x
    series = torch.full_like(x, 1 / 13)
    for odd in range(11, 0, -2):
        series = series * square + 1 / odd
    return series * x


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``; compiled, it shares the exp of :func:`softplus`."""
    if not torch.compiler.is_compiling():
        return torch.sigmoid(x)
    u = torch.exp(-x.abs())
    return torch.where(x < 0, u, 1.0) / (1 + u)


def class_weight(alpha: float | None, positive: bool) -> float:
    """``a_t``: ``alpha`` for the class, ``1 - alpha`` for its absence; 1 where alpha is unset.

    A negative alpha also means unset, as in detectron2's ``FOCAL_LOSS_ALPHA``.
    """
    if alpha is None or alpha < 0:
        return 1.0
    if alpha > 1:
        raise ValueError(f"alpha must be at most 1, got {alpha}")
    return alpha if positive else 1.0 - alpha
