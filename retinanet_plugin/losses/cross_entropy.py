"""Binary cross entropy from logits, equations 1 and 3 of the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .binary import BinaryLoss, class_weight, sigmoid, softplus


class CrossEntropyLoss(BinaryLoss):
    """``CE(p_t) = -a_t log(p_t)``; ``alpha`` None is plain CE, a number is balanced CE."""

    def __init__(self, alpha: float | None = None) -> None:
        class_weight(alpha, True)  # refuses an alpha that cannot be
        self.alpha = alpha

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        wrong = -logits if positive else logits
        surprise = F.softplus(wrong) if torch.is_grad_enabled() else softplus(wrong)
        return class_weight(self.alpha, positive) * surprise

    def value_and_grad(self, logits: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
        wrong = -logits if positive else logits
        weight = class_weight(self.alpha, positive)
        grad = sigmoid(wrong).mul_(-weight if positive else weight)
        return softplus(wrong).mul_(weight), grad
