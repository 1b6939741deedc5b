"""The focal loss of arXiv 1708.02002, its alternative form FL*, and the cross entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .binary import BinaryLoss, class_weight, sigmoid, softplus


class FocalLoss(BinaryLoss):
    """Equation 5: ``FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)``, computed from logits.

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
        """Computes value and derivative, which is that of appendix B.

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


class FocalStarLoss(BinaryLoss):
    """Appendix A: ``FL* = -alpha_t log(p_t*) / gamma`` with ``p_t* = sigmoid(gamma x_t + beta)``.

    Args:
        alpha: weight of the positives in [0, 1]; negative or None: no weights.
        gamma: steepness, above 0. The paper trains with (gamma 2, beta 1) and (gamma 4, beta 0).
        beta: shift.
    """

    def __init__(self, alpha: float | None = 0.25, gamma: float = 2.0, beta: float = 1.0) -> None:
        if gamma <= 0:
            raise ValueError(f"gamma must be above 0, got {gamma}")
        class_weight(alpha, True)  # raises if alpha is out of range
        self.alpha, self.gamma, self.beta = alpha, gamma, beta

    def _scaled(self, logits: Tensor, positive: bool) -> Tensor:
        """Computes ``-(gamma x_t + beta)``."""
        return logits * (-self.gamma if positive else self.gamma) - self.beta

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        weight = class_weight(self.alpha, positive) / self.gamma
        return weight * F.softplus(self._scaled(logits, positive))

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        x = self._scaled(logits, positive)
        weight = class_weight(self.alpha, positive)
        grad = sigmoid(x).mul_(-weight if positive else weight)
        return softplus(x).mul_(weight / self.gamma), grad


class CrossEntropyLoss(FocalStarLoss):
    """Equations 1 and 3: ``CE(p_t) = -alpha_t log(p_t)``, which is FL* with gamma 1 and beta 0.

    Args:
        alpha: weight of the positives in [0, 1]; negative or None: no weights.
    """

    def __init__(self, alpha: float | None = None) -> None:
        super().__init__(alpha, gamma=1.0, beta=0.0)

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        x = self._scaled(logits, positive)
        loss = F.softplus(x) if torch.is_grad_enabled() else softplus(x)
        return class_weight(self.alpha, positive) * loss


def _power(base: Tensor, exponent: float) -> Tensor:
    """Computes ``base ** exponent`` as a new tensor; the paper's exponents avoid a slow ``pow``."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent == 1:
        return base.clone()
    if exponent == 2:
        return base * base
    return base**exponent
