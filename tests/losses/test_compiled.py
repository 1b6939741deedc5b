"""The compiled class loss against float64, and its fallback if nothing can be compiled."""

import warnings

import pytest
import torch
from test_dense import FORMATS, LOSSES, NONE, check
from torch import Tensor
from torch._dynamo.utils import counters

from retinanet_plugin.losses import BinaryLoss, FocalLoss, dense_class_loss, negatives
from retinanet_plugin.losses.negatives import Negatives


class Own(BinaryLoss):
    """A user's loss with the value only, and a tensor."""

    gamma = None

    def __init__(self) -> None:
        self.scale = torch.tensor(0.7)

    def value(self, logits: Tensor, positive: bool) -> Tensor:
        return self.scale * logits**2 * (3.0 if positive else 1.0)


@pytest.fixture(autouse=True)
def afresh():
    """Nothing compiled is shared between tests, and no fallback is unnoticed."""
    negatives._compiled.cache_clear()
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The class loss")
        yield


@pytest.fixture
def traced(monkeypatch):
    """A compiler that traces as torch.compile does but makes no kernels: fast.

    Returns:
        a count of the graphs made.
    """
    compile_, backend = torch.compile, "aot_eager"  # which takes no options before torch 2.5
    monkeypatch.setattr(
        torch, "compile", lambda f, fullgraph, options: compile_(f, fullgraph=True, backend=backend)
    )
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def compiler():
    try:
        torch.compile(lambda x: x + 1, fullgraph=True)(torch.zeros(3))
    except Exception as error:
        pytest.skip(f"torch.compile makes no kernels here: {error}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels(compiler, dtype: torch.dtype) -> None:
    loss = Negatives(FocalLoss(), compile=True)
    for memory_format in FORMATS:
        check(loss, memory_format, dtype)
    # So many equal numbers would show a sum that loses the small ones.
    x = torch.full((1, 1, 1024, 1024), -2.3, dtype=dtype)
    expected = loss.binary.value(x[0, 0, 0, 0].double(), False) * x.numel()
    ours = dense_class_loss([x], loss, [NONE], [NONE])
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=0)
    assert loss.compile


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [(x, torch.float32) for x in (*LOSSES, Own())]
    + [(FocalLoss(), x) for x in (torch.float64, torch.bfloat16, torch.float16)],
    ids=lambda x: str(x) if isinstance(x, torch.dtype) else f"{type(x).__name__}{x.gamma}",
)
def test_losses_and_dtypes(traced, loss: BinaryLoss, dtype: torch.dtype) -> None:
    check(Negatives(loss, compile=True), torch.contiguous_format, dtype)
    # float16 sums first and differentiates later.
    assert traced() == (2 if dtype is torch.float16 else 1)


def test_any_size_with_one_compilation(traced, monkeypatch) -> None:
    monkeypatch.setattr("retinanet_plugin.losses.layout._CHUNK_PER_CORE", 50)
    loss = Negatives(FocalLoss(), compile=True)
    for height, width in ((1, 1), (9, 7), (1, 2), (40, 31), (17, 16), (2, 1), (100, 3)):
        x = torch.randn(2, 3, height, width, requires_grad=True)
        total = dense_class_loss([x, x[:1, :1]], loss, [NONE] * 2, [NONE] * 2)
        expected = loss.binary.value(x.detach(), False)
        torch.testing.assert_close(total.detach(), expected.sum() + expected[0, 0].sum())
    assert traced() == 1


def test_each_gamma_has_its_own_kernel(compiler) -> None:
    """PyTorch 2.14 makes variables of numbers that change, then mixes up their kernels."""
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    for gamma in (1.5, 1.4, 1.7):
        loss = FocalLoss(gamma=gamma)
        expected = loss.value(x.detach().double(), False).sum().float()
        total = dense_class_loss([x], Negatives(loss, compile=True), [NONE], [NONE])
        torch.testing.assert_close(total.detach(), expected, rtol=1e-6, atol=0)


def test_falls_back_with_one_warning(monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler here\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    loss = Negatives(FocalLoss(), compile=True)
    with pytest.warns(UserWarning, match="no compiler here$") as caught:
        check(loss, torch.contiguous_format, torch.float32)
    assert len(caught) == 1 and not loss.compile
