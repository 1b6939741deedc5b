"""Focal loss, equation 5 of "Focal Loss for Dense Object Detection" (arXiv 1708.02002)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .binary import BinaryLoss, class_weight, sigmoid, softplus


class FocalLoss(BinaryLoss):
    """``FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)``, computed from logits.

    With ``x_t = x`` for positives and ``-x`` for negatives, ``1 - p_t = sigmoid(-x_t)`` and
    ``-log(p_t) = softplus(-x_t)``. Neither cancels or overflows, so value and derivative stay
    accurate at logits of +-100.

    Args:
        alpha: weight of the positives in [0, 1]; negative or None: no weights.
        gamma: focusing parameter, at least 0; 0 is the balanced cross entropy.
    """

    def __init__(self, alpha: float | None = 0.25, gamma: float = 2.0) -> None:
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        class_weight(alpha, True)  # raises if alpha is out of range
        self.alpha, self.gamma = alpha, gamma

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        x = -logits if positive else logits  # -x_t
        weight = class_weight(self.alpha, positive)
        return weight * torch.sigmoid(x) ** self.gamma * F.softplus(x)

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        """As the base class, with the derivative of appendix B.

        ``dFL/dx = alpha_t y (1 - p_t)^gamma (gamma p_t log(p_t) + p_t - 1)``, with y = +-1.
        """
        x = -logits if positive else logits
        weight = class_weight(self.alpha, positive)
        error = sigmoid(x)  # 1 - p_t
        entropy = softplus(x)  # -log(p_t)
        factor = _power(error, self.gamma).mul_(-weight if positive else weight)
        grad = torch.addcmul(entropy, error, entropy, value=-1).mul_(self.gamma)
        grad.add_(error).mul_(factor)
        value = entropy.mul_(factor)
        return (value.neg_() if positive else value), grad


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` as a new tensor; the paper's exponents avoid a slow ``pow``."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent == 1:
        return base.clone()
    if exponent == 2:
        return base * base
    return base**exponent
