"""What a classification loss of a dense detector is: one logit against one bit."""

import torch
import torch.nn.functional as F
from torch import Tensor


class BinaryLoss:
    """Base of the losses that treat every class of every anchor as a problem of its own.

    A subclass writes :meth:`value` in plain torch operations; that is enough to train with it.
    Where the derivative has a closed form, overriding :meth:`value_and_grad` is faster.
    """

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
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            value = self.value(logits, positive)
            (grad,) = torch.autograd.grad(value.sum(), logits)
        return value.detach(), grad

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each logit against dense 0/1 ``targets`` of its shape: for figures and tests."""
        return torch.where(targets > 0, self.value(logits, True), self.value(logits, False))


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, finite and right at both ends; a new tensor, without a gradient graph.

    On a CPU torch's own spends nine tenths of its time in log1p, which is six times as slow there
    as atanh: ``log1p(u) = 2 atanh(u / (2 + u))`` for ``u = exp(-|x|)``.
    """
    if not x.is_cpu:
        return F.softplus(x)
    u = x.abs().neg_().exp_()
    return u.div_(u + 2).atanh_().mul_(2).add_(x.clamp(min=0))


def class_weight(alpha: float | None, positive: bool) -> float:
    """``a_t``: ``alpha`` for the class, ``1 - alpha`` for its absence; 1 where alpha is unset.

    A negative alpha also means unset, as in detectron2's ``FOCAL_LOSS_ALPHA``.
    """
    if alpha is None or alpha < 0:
        return 1.0
    if alpha > 1:
        raise ValueError(f"alpha must be at most 1, got {alpha}")
    return alpha if positive else 1.0 - alpha
