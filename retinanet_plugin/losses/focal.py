"""Focal loss, equation 5 of "Focal Loss for Dense Object Detection" (arXiv 1708.02002)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .binary import BinaryLoss, class_weight, sigmoid, softplus


class FocalLoss(BinaryLoss):
    """``FL(p_t) = -a_t (1 - p_t)^gamma log(p_t)``, computed from logits.

    With ``x_t = x`` for a present class and ``-x`` for an absent one, ``p_t = sigmoid(x_t)``.
    ``log(p_t)`` is ``-softplus(-x_t)`` and ``1 - p_t`` is ``sigmoid(-x_t)``: neither rounds to
    ``log(0)`` or cancels, so value and derivative stay finite and right at logits of +-100.

    Args:
        alpha: weight of the positives in [0, 1]; negative or None: no weights.
        gamma: focusing parameter, at least 0; 0 is the balanced cross entropy.
    """

    def __init__(self, alpha: float | None = 0.25, gamma: float = 2.0) -> None:
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        class_weight(alpha, True)  # refuses an alpha that cannot be
        self.alpha, self.gamma = alpha, gamma

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        wrong = -logits if positive else logits  # -x_t: the higher, the worse
        weight = class_weight(self.alpha, positive)
        return weight * torch.sigmoid(wrong) ** self.gamma * F.softplus(wrong)

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        """As the base; appendix B's derivative ``a_t y (1-p_t)^g (g p_t log(p_t) + p_t - 1)``."""
        wrong = -logits if positive else logits
        weight = class_weight(self.alpha, positive)
        miss = sigmoid(wrong)  # 1 - p_t
        surprise = softplus(wrong)  # -log(p_t)
        focus = _power(miss, self.gamma).mul_(-weight if positive else weight)
        # d/dx of -log(p_t) is y (p_t - 1); of the factor, gamma (1 - p_t)^gamma p_t log(p_t).
        grad = torch.addcmul(surprise, miss, surprise, value=-1).mul_(self.gamma)
        grad.add_(miss).mul_(focus)
        value = surprise.mul_(focus)
        return (value.neg_() if positive else value), grad


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` in a new tensor; the paper's exponents without a call of pow."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent == 1:
        return base.clone()
    if exponent == 2:
        return base * base
    return base**exponent
