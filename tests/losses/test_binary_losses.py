"""Each loss and its derivative against the formula, computed by mpmath."""

import mpmath
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinanet_plugin.losses import BinaryLoss, CrossEntropyLoss, FocalLoss, FocalStarLoss

mpmath.mp.dps = 60


def focal(x: mpmath.mpf, positive: bool, alpha: float, gamma: float) -> mpmath.mpf:
    """FL = -a_t (1 - p_t)^gamma log(p_t)."""
    p = 1 / (1 + mpmath.exp(-x))
    p_t, a_t = (p, alpha) if positive else (1 - p, 1 - alpha)
    return -a_t * (1 - p_t) ** gamma * mpmath.log(p_t)


def focal_star(
    x: mpmath.mpf, positive: bool, alpha: float, gamma: float, beta: float
) -> mpmath.mpf:
    """FL* = -a_t log(sigmoid(gamma x_t + beta)) / gamma."""
    x_t = x if positive else -x
    a_t = alpha if positive else 1 - alpha
    return -a_t * mpmath.log(1 / (1 + mpmath.exp(-(gamma * x_t + beta)))) / gamma


CASES = {
    "focal": (FocalLoss(), lambda x, y: focal(x, y, 0.25, 2)),
    "focal-gamma-0": (FocalLoss(0.75, 0.0), lambda x, y: focal(x, y, 0.75, 0)),
    "focal-gamma-0.5": (FocalLoss(0.5, 0.5), lambda x, y: focal(x, y, 0.5, mpmath.mpf("0.5"))),
    "focal-gamma-1": (FocalLoss(0.25, 1.0), lambda x, y: focal(x, y, 0.25, 1)),
    "focal-gamma-5": (FocalLoss(0.25, 5.0), lambda x, y: focal(x, y, 0.25, 5)),
    "focal-unweighted": (FocalLoss(-1, 2.0), lambda x, y: 2 * focal(x, y, 0.5, 2)),
    "cross-entropy": (CrossEntropyLoss(), lambda x, y: 2 * focal(x, y, 0.5, 0)),
    "balanced": (CrossEntropyLoss(0.75), lambda x, y: focal(x, y, 0.75, 0)),
    "focal-star-2-1": (FocalStarLoss(), lambda x, y: focal_star(x, y, 0.25, 2, 1)),
    "focal-star-4-0": (FocalStarLoss(0.25, 4, 0), lambda x, y: focal_star(x, y, 0.25, 4, 0)),
}
LOGITS = [-100.0, -30.0, -5.0, -1.0, -1e-3, 0.0, 1e-3, 0.7, 4.0, 17.0, 30.0, 100.0]


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_derivative(case: str, positive: bool, dtype: torch.dtype) -> None:
    loss, formula = CASES[case]
    logits = torch.tensor(LOGITS, dtype=dtype)
    values, grads = loss.value_and_grad(logits, positive)
    points = [mpmath.mpf(x) for x in logits.tolist()]
    expected = [float(formula(x, positive)) for x in points]
    slopes = [float(mpmath.diff(lambda t: formula(t, positive), x)) for x in points]
    # softplus turns linear beyond 20, which is off by 2e-9; float32 rounds at 1e-7 of the value.
    tolerance = {"rtol": 2e-5 if dtype is torch.float32 else 1e-6, "atol": 5e-9}
    torch.testing.assert_close(values, torch.tensor(expected, dtype=dtype), **tolerance)
    torch.testing.assert_close(grads, torch.tensor(slopes, dtype=dtype), **tolerance)
    torch.testing.assert_close(loss.value(logits, positive), values, rtol=1e-5, atol=1e-9)


@given(
    st.floats(0.01, 0.99),
    st.floats(0, 6),
    st.lists(st.floats(-60, 60), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=60)
def test_torchvision_agrees(alpha: float, gamma: float, logits: list[float]) -> None:
    x = torch.tensor(logits, dtype=torch.float64)
    targets = (torch.arange(len(x)) % 2).double()
    expected = torchvision.ops.sigmoid_focal_loss(x, targets, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(FocalLoss(alpha, gamma)(x, targets), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bad", [lambda: FocalLoss(gamma=-0.1), lambda: FocalStarLoss(gamma=0.0)])
def test_impossible_parameters(bad) -> None:
    with pytest.raises(ValueError, match="gamma must be"):
        bad()


class _Tilted(BinaryLoss):
    """A user's loss with the value only."""

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        return (logits - (1.0 if positive else -1.0)) ** 2


def test_own_loss_needs_only_its_value() -> None:
    x = torch.randn(9)
    value, grad = _Tilted().value_and_grad(x, True)
    torch.testing.assert_close(value, (x - 1) ** 2)
    torch.testing.assert_close(grad, 2 * (x - 1))
