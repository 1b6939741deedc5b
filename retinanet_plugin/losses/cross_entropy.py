"""Binary cross entropy on logits, equations 1 and 3 of the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .binary import BinaryLoss, class_weight, sigmoid, softplus


class CrossEntropyLoss(BinaryLoss):
    """``CE(p_t) = -alpha_t log(p_t)``.

    Args:
        alpha: weight of the positives in [0, 1]; negative or None: no weights.
    """

    def __init__(self, alpha: float | None = None) -> None:
        class_weight(alpha, True)  # raises if alpha is out of range
        self.alpha = alpha

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        x = -logits if positive else logits  # -x_t
        loss = F.softplus(x) if torch.is_grad_enabled() else softplus(x)
        return class_weight(self.alpha, positive) * loss

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        x = -logits if positive else logits
        weight = class_weight(self.alpha, positive)
        grad = sigmoid(x).mul_(-weight if positive else weight)
        return softplus(x).mul_(weight), grad
