"""3x3 convolutions with a quarter of the multiplications, for CPUs: Winograd's F(4x4, 3x3).

A tile of 6x6 inputs and the kernel are transformed to 36 numbers each; their products, summed over
the channels, transform back to 4x4 outputs: 36 multiplications where the sum over the kernel has
144. Both gradients save as much. Rounding errors are some ten times those of the plain sum: in
float32 the largest is about 5e-5 of the spread of the outputs. (Lavin and Gray, arXiv 1509.09308;
on a GPU, cuDNN chooses such algorithms itself.)
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_Matrix: TypeAlias = list[list[float]]
# Of the paper's section 4.3, for one dimension: inputs (6, 6), kernel (6, 3), outputs (4, 6).
_INPUT: _Matrix = [
    [4.0, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_KERNEL: _Matrix = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1.0],
]
_OUTPUT: _Matrix = [
    [1.0, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]
# Tiles worked on at a time: enough for a matrix product to be efficient, while their transforms
# (36 KB each for 256 channels) stay in the cache that the cores share.
_TILES = 190


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`winograd_conv2d` is faster than ``conv2d`` on what it can do at all.

    The transforms cost as many operations as there are channels, the products as many as there
    are pairs of them; and a map that does not fill its tiles is computed beyond its edges.
    """
    if x.dim() != 4 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    float32 = x.dtype is weight.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    (channels_out, channels_in), (images, _, height, width) = weight.shape[:2], x.shape
    tiles = images * -(-height // 4) * -(-width // 4)
    return (
        x.is_cpu
        and float32
        and channels_in * channels_out >= 64 * (channels_in + channels_out)
        and tiles >= 64
        and 16 * tiles <= 1.25 * images * height * width
    )


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``conv2d(x, weight, bias, padding=1)``, up to rounding.

    Args:
        x: (N, C, H, W), on a CPU.
        weight: (K, C, 3, 3).
        bias: (K,).

    Returns:
        (N, K, H, W), channels-last. It can be differentiated once. A value that is not finite
        spreads over its tile as NaN.
    """
    y: Tensor = _Winograd.apply(x, weight, bias)
    return y


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, _transform(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:  # the convolution with the kernel turned round
            grad_x = _convolve(grad, _transform(weight.transpose(0, 1).flip(2, 3)), None)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_grad(x, grad)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _transform(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) to (36, C, K)."""
    channels_out, channels_in = weight.shape[:2]
    kernel = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_both(_KERNEL, weight) @ kernel).view(36, channels_in, channels_out)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) by the transformed kernel (36, C, K) to (N, K, H, W), channels-last."""
    if bias is None:
        bias = x.new_zeros(())
    (images, channels_in, height, width), channels_out = x.shape, kernel.shape[2]
    inputs = _input_tiles(x)
    rows, columns = inputs.shape[3:5]
    y = torch.empty(
        (images, channels_out, 4 * rows, 4 * columns),
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    outputs = _output_tiles(y)
    into, back = _both(_INPUT, x), _both(_OUTPUT, x)
    gathered, transformed = _Buffer(x), _Buffer(x)
    products, results = _Buffer(x), _Buffer(x)
    for pictures, here in _chunks(inputs):
        part = inputs[:, :, pictures, here]
        tiles = part.shape[2:5].numel()
        whole = gathered.shaped(*part.shape).copy_(part)
        spectrum = transformed.shaped(36, tiles * channels_in)
        torch.mm(into, whole.view(36, -1), out=spectrum)
        product = products.shaped(36, tiles, channels_out)
        torch.bmm(spectrum.view(36, tiles, channels_in), kernel, out=product)
        result = results.shaped(16, tiles * channels_out)
        torch.mm(back, product.view(36, -1), out=result)
        to = outputs[:, :, pictures, here]
        torch.add(result.view(to.shape), bias, out=to)
    if y.shape[2:] == (height, width):
        return y  # no view of it: what follows may work in place
    return y[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """The derivative (K, C, 3, 3) by the kernel, given that by the outputs (N, K, H, W)."""
    channels_in, channels_out = x.shape[1], grad.shape[1]
    inputs, outputs = _input_tiles(x), _output_tiles(grad)
    into, back = _both(_INPUT, x), _both(_OUTPUT, x).T
    total = x.new_zeros(36, channels_in, channels_out)
    gathered, transformed = _Buffer(x), _Buffer(x)
    upstream, products = _Buffer(x), _Buffer(x)
    for pictures, here in _chunks(inputs):
        part, part_grad = inputs[:, :, pictures, here], outputs[:, :, pictures, here]
        tiles = part.shape[2:5].numel()
        whole = gathered.shaped(*part.shape).copy_(part)
        spectrum = transformed.shaped(36, tiles * channels_in)
        torch.mm(into, whole.view(36, -1), out=spectrum)
        whole = upstream.shaped(*part_grad.shape).copy_(part_grad)
        product = products.shaped(36, tiles * channels_out)
        torch.mm(back, whole.view(16, -1), out=product)
        total.baddbmm_(
            spectrum.view(36, tiles, channels_in).transpose(1, 2),
            product.view(36, tiles, channels_out),
        )
    kernel = _both(_KERNEL, x).T @ total.view(36, -1)
    return kernel.view(3, 3, channels_in, channels_out).permute(3, 2, 0, 1)


def _both(matrix: _Matrix, like: Tensor) -> Tensor:
    """The transform of rows and columns at once: the Kronecker product with itself."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).to(like.dtype)


def _input_tiles(x: Tensor) -> Tensor:
    """Of (N, C, H, W) the overlapping tiles (6, 6, N, rows, columns, C): a view of padded x."""
    images, channels, height, width = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    beyond = (0, 0, 1, 4 * columns + 1 - width, 1, 4 * rows + 1 - height)
    padded = F.pad(x.permute(0, 2, 3, 1), beyond)
    per_image, per_row, per_column, per_channel = padded.stride()
    return padded.as_strided(
        (6, 6, images, rows, columns, channels),
        (per_row, per_column, per_image, 4 * per_row, 4 * per_column, per_channel),
    )


def _output_tiles(y: Tensor) -> Tensor:
    """Of (N, K, H, W) the tiles (4, 4, N, rows, columns, K), filled with zeros at the edges.

    A view of ``y``, if that fills its tiles and is channels-last.
    """
    images, channels, height, width = y.shape
    rows, columns = -(-height // 4), -(-width // 4)
    y = y.permute(0, 2, 3, 1)
    if (height, width) != (4 * rows, 4 * columns):
        y = F.pad(y, (0, 0, 0, 4 * columns - width, 0, 4 * rows - height))
    return y.reshape(images, rows, 4, columns, 4, channels).permute(2, 4, 0, 1, 3, 5)


def _chunks(tiles: Tensor) -> Iterator[tuple[slice, slice]]:
    """Pictures and rows of tiles (6, 6, N, rows, columns, C) to work on at a time."""
    images, rows, columns = tiles.shape[2:5]
    at_once = max(1, min(images, _TILES // (rows * columns)))
    step = max(1, _TILES // (at_once * columns))
    for first in range(0, images, at_once):
        for start in range(0, rows, step):
            yield slice(first, first + at_once), slice(start, start + step)


class _Buffer:
    """Memory that is used again for each chunk: new memory would have to be cleared first."""

    def __init__(self, like: Tensor) -> None:
        self.memory = like.new_empty(0)

    def shaped(self, *shape: int) -> Tensor:
        """A tensor of that shape, contiguous; the first is to be the largest."""
        count = torch.Size(shape).numel()
        if len(self.memory) < count:
            self.memory = self.memory.new_empty(count)
        return self.memory[:count].view(shape)
