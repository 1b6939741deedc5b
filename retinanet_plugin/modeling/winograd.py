"""3x3 convolutions with a quarter of the multiplications, for CPUs: Winograd's F(4x4, 3x3).

A tile of 6x6 inputs and the kernel are transformed to 36 numbers each; their products, summed over
the channels, transform back to 4x4 outputs: 36 multiplications where the sum over the kernel has
144. Both gradients save as much. Rounding errors are some ten times those of the plain sum: in
float32 the largest is about 5e-5 of the spread of the outputs. (Lavin and Gray, arXiv 1509.09308;
on a GPU, cuDNN chooses such algorithms itself.)
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _both(matrix: list[list[float]]) -> Tensor:
    """The transform of rows and columns at once: the Kronecker product with itself."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one)


# Of the paper's section 4.3: inputs (36, 36), kernel (36, 9), outputs (16, 36).
_INPUT = _both(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = _both(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1.0],
    ]
)
_OUTPUT = _both(
    [
        [1.0, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)
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
    (channels_out, channels_in), (rows, columns) = weight.shape[:2], _tiles_of(x)
    tiles = x.shape[0] * rows * columns
    return (
        x.is_cpu
        and float32
        and channels_in * channels_out >= 64 * (channels_in + channels_out)
        and tiles >= 64
        and 16 * rows * columns <= 1.25 * x.shape[2] * x.shape[3]
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
    return (_KERNEL.to(weight.dtype) @ kernel).view(36, channels_in, channels_out)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) by the transformed kernel (36, C, K) to (N, K, H, W), channels-last."""
    if bias is None:
        bias = x.new_zeros(())
    (images, _, height, width), channels_out = x.shape, kernel.shape[2]
    rows, columns = _tiles_of(x)
    y = torch.empty(
        (images, channels_out, 4 * rows, 4 * columns),
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    outputs, back = _output_tiles(y), _OUTPUT.to(x.dtype)
    products, results = _Buffer(x), _Buffer(x)
    for (pictures, here), spectrum in _spectra(x):
        to = outputs[:, :, pictures, here]
        product = products.shaped(36, spectrum.shape[1], channels_out)
        torch.bmm(spectrum, kernel, out=product)
        result = results.shaped(*to.shape)
        torch.mm(back, product.view(36, -1), out=result.view(16, -1))
        torch.add(result, bias, out=to)
    if y.shape[2:] == (height, width):
        return y  # no view of it: what follows may work in place
    return y[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_grad(x: Tensor, grad: Tensor) -> Tensor:
    """The derivative (K, C, 3, 3) by the kernel, given that by the outputs (N, K, H, W)."""
    channels_in, channels_out = x.shape[1], grad.shape[1]
    outputs, back = _output_tiles(grad), _OUTPUT.to(x.dtype).T
    total = x.new_zeros(36, channels_in, channels_out)
    upstream, products = _Buffer(x), _Buffer(x)
    for (pictures, here), spectrum in _spectra(x):
        part = outputs[:, :, pictures, here]
        whole = upstream.shaped(*part.shape).copy_(part)
        product = products.shaped(36, spectrum.shape[1], channels_out)
        torch.mm(back, whole.view(16, -1), out=product.view(36, -1))
        total.baddbmm_(spectrum.transpose(1, 2), product)
    kernel = _KERNEL.to(x.dtype).T @ total.view(36, -1)
    return kernel.view(3, 3, channels_in, channels_out).permute(3, 2, 0, 1)


def _spectra(x: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """The tiles of (N, C, H, W) transformed, some at a time.

    Yields:
        which pictures and rows of tiles they are; and (36, tiles, C), until the next is asked for.
    """
    inputs, into = _input_tiles(x), _INPUT.to(x.dtype)
    gathered, transformed = _Buffer(x), _Buffer(x)
    for pictures, rows in _chunks(inputs):
        part = inputs[:, :, pictures, rows]
        whole = gathered.shaped(*part.shape).copy_(part)
        spectrum = transformed.shaped(36, part.shape[2:5].numel(), part.shape[5])
        torch.mm(into, whole.view(36, -1), out=spectrum.view(36, -1))
        yield (pictures, rows), spectrum


def _tiles_of(x: Tensor) -> tuple[int, int]:
    """Rows and columns of 4x4 tiles that cover (N, C, H, W)."""
    return -(-x.shape[2] // 4), -(-x.shape[3] // 4)


def _input_tiles(x: Tensor) -> Tensor:
    """Of (N, C, H, W) the overlapping tiles (6, 6, N, rows, columns, C): a view of padded x."""
    images, channels, height, width = x.shape
    rows, columns = _tiles_of(x)
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
    rows, columns = _tiles_of(y)
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
