"""FL*, the alternative form of focal loss in the paper's appendix A."""

import torch.nn.functional as F
from torch import Tensor

from .binary import BinaryLoss, class_weight, sigmoid, softplus


class FocalStarLoss(BinaryLoss):
    """``FL* = -a_t log(p_t*) / gamma`` with ``p_t* = sigmoid(gamma x_t + beta)``.

    Args:
        alpha: weight of the positives in [0, 1]; negative or None: no weights.
        gamma: steepness, above 0. The paper trains (gamma 2, beta 1) and (gamma 4, beta 0).
        beta: shift.
    """

    def __init__(self, alpha: float | None = 0.25, gamma: float = 2.0, beta: float = 1.0) -> None:
        if gamma <= 0:
            raise ValueError(f"gamma must be above 0, got {gamma}")
        class_weight(alpha, True)  # refuses an alpha that cannot be
        self.alpha, self.gamma, self.beta = alpha, gamma, beta

    def _wrong(self, logits: Tensor, positive: bool) -> Tensor:
        return logits * (-self.gamma if positive else self.gamma) - self.beta

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        weight = class_weight(self.alpha, positive) / self.gamma
        return weight * F.softplus(self._wrong(logits, positive))

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        wrong = self._wrong(logits, positive)
        weight = class_weight(self.alpha, positive)
        grad = sigmoid(wrong).mul_(-weight if positive else weight)
        return softplus(wrong).mul_(weight / self.gamma), grad
