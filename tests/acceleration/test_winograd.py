"""Winograd's convolution against torch's: outputs and all gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from retinanet_plugin.acceleration import winograd
from retinanet_plugin.acceleration.fast_conv import FastConv2d, use_fast_convolutions
from retinanet_plugin.acceleration.winograd import algorithm_for, is_faster, winograd_conv2d

TWO, FOUR = algorithm_for(torch.bfloat16), algorithm_for(torch.float32)
SHAPES = [(1, 3, 1, 1, 2), (1, 3, 4, 4, 2), (2, 5, 9, 11, 7), (3, 4, 13, 6, 5), (2, 2, 30, 41, 3)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c, h, w, k = shape
    sizes = ((n, c, h, w), (k, c, 3, 3), (k,))
    x, weight, bias = (torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes)
    return x, weight, bias, torch.randn(n, k, h, w, dtype=dtype)


def all_of(convolve: Any, given: tuple[Tensor, ...]) -> list[Tensor]:
    y = convolve(*given[:3])
    return [y, *torch.autograd.grad(y, given[:3], given[3])]


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("algorithm", [TWO, FOUR], ids=["F(2x2)", "F(4x4)"])
@pytest.mark.parametrize("tiles", [1, 5, 190])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients(
    shape: tuple[int, ...], tiles: int, algorithm: winograd.Algorithm
) -> None:
    given = inputs(shape, torch.float64)
    algorithm = replace(algorithm, tiles=tiles)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return winograd_conv2d(x, weight, bias, algorithm)

    expected = all_of(plain, given)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, upstream = (t.detach().contiguous(memory_format=memory_format) for t in given[::3])
        results = all_of(convolve, (x.requires_grad_(), *given[1:3], upstream))
        torch.testing.assert_close(results, expected, rtol=1e-11, atol=1e-11)


def test_rounding_in_float32() -> None:
    given = inputs((1, 256, 40, 36, 128), torch.float32)
    exact = all_of(plain, tuple(x.double() for x in given))
    for a, b in zip(all_of(winograd_conv2d, given), exact, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.std()
        assert (a - b).std() < 5e-6 * b.std()


def test_rounding_in_bfloat16_is_twice_that_of_the_plain_sum() -> None:
    x, weight, bias, upstream = inputs((1, 256, 40, 36, 128), torch.float32)
    half = (x.bfloat16().detach().requires_grad_(), weight, bias, upstream.bfloat16())
    exact = all_of(plain, tuple(t.double() for t in half))
    with torch.autocast("cpu", torch.bfloat16):  # float32 weights, as in training
        results = [all_of(convolve, half) for convolve in (winograd_conv2d, plain)]
    for ours, theirs, b in zip(*results, exact, strict=True):
        assert ours.dtype is theirs.dtype
        assert (ours - b).std() < 3 * (theirs - b).std() < 0.02 * b.std()


def test_in_place_layers_and_unneeded_gradients() -> None:
    x, weight, _, upstream = inputs((1, 4, 8, 8, 3), torch.float64)
    for height in (7, 8):  # 7 does not fill its tiles
        y = winograd_conv2d(x[:, :, :height].detach(), weight, None).relu_()
        expected = F.conv2d(x[:, :, :height].detach(), weight, padding=1).relu()
        torch.testing.assert_close(y, expected)
        results = torch.autograd.grad(y, weight, upstream[:, :, :height])
        wanted = torch.autograd.grad(expected, weight, upstream[:, :, :height])
        torch.testing.assert_close(results, wanted)


@pytest.mark.parametrize("fast_bfloat16", [True, False])
def test_where_it_is_faster(fast_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_has_fast_bfloat16", lambda: fast_bfloat16)
    x, weight = torch.empty(1, 256, 40, 40), torch.empty(256, 256, 3, 3)
    assert is_faster(x, weight)
    assert not is_faster(x, weight[:36])  # the box subnet's last layer
    assert not is_faster(x[:, :, :8, :8], weight)  # few tiles
    assert not is_faster(torch.empty(4, 256, 5, 160), weight)  # many, half of them outside
    assert not is_faster(x[0], weight)
    assert not is_faster(x.double(), weight.double())
    assert not is_faster(x.half(), weight.half())
    assert not is_faster(x.to("meta"), weight)
    large = torch.empty(1, 256, 80, 80)
    assert is_faster(large.bfloat16(), weight) == fast_bfloat16
    assert not is_faster(large, weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_faster(x, weight)
        assert is_faster(large, weight) == fast_bfloat16
        assert not is_faster(large[:, :128], weight[:128, :128])


def test_only_plain_3x3_convolutions_change() -> None:
    others = [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Conv2d(4, 4, 1),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
    ]
    changed = [nn.Conv2d(4, 4, 3, padding=1), Conv2d(4, 4, 3, padding=1, norm=get_norm("BN", 4))]
    use_fast_convolutions(nn.ModuleList(others + changed), fold_norms=True, winograd=True)
    assert not any(isinstance(x, FastConv2d) for x in others)
    assert all(isinstance(x, FastConv2d) for x in changed)
