"""FL*, the alternative form of the focal loss in appendix A of the paper."""

import torch.nn.functional as F
from torch import Tensor

from .binary import BinaryLoss, class_weight, sigmoid, softplus


class FocalStarLoss(BinaryLoss):
    """``FL* = -alpha_t log(p_t*) / gamma`` with ``p_t* = sigmoid(gamma x_t + beta)``.

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
        """``-(gamma x_t + beta)``."""
        return logits * (-self.gamma if positive else self.gamma) - self.beta

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        weight = class_weight(self.alpha, positive) / self.gamma
        return weight * F.softplus(self._scaled(logits, positive))

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        x = self._scaled(logits, positive)
        weight = class_weight(self.alpha, positive)
        grad = sigmoid(x).mul_(-weight if positive else weight)
        return softplus(x).mul_(weight / self.gamma), grad
