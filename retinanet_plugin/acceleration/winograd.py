"""Winograd's algorithms: 3x3 convolutions with a fraction of the multiplications, for CPUs.

A tile of inputs and the kernel are transformed; their products, summed over the channels, are
transformed back to a tile of outputs. F(4x4, 3x3) computes 4x4 outputs from 6x6 inputs with 36
multiplications instead of 144, F(2x2, 3x3) 2x2 outputs with 16 instead of 36. Both gradients save
as much. The rounding errors of F(4x4) are about ten times those of the direct convolution, in
float32 at most about 5e-5 of the standard deviation of the outputs. That is too much for bfloat16,
which uses F(2x2); its factors are 0, 1 and 1/2, and it doubles the errors. See Lavin and Gray,
arXiv 1509.09308. On a GPU, cuDNN chooses such algorithms itself.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Algorithm:
    """F(m x m, 3x3), which computes m x m outputs from n x n inputs; n = m + 2.

    Args:
        outputs: m.
        input, kernel, output: the transforms of rows and columns together: (n * n, n * n),
            (n * n, 9) and (m * m, n * n), float64.
        tiles: how many to process at a time: enough for an efficient matrix product, while their
            transforms stay in the cache that the cores share.
        min_tiles, min_channels: from where it was measured to be faster than the direct
            convolution; channels are half the harmonic mean of C and K.
    """

    outputs: int
    input: Tensor
    kernel: Tensor
    output: Tensor
    tiles: int
    min_tiles: int
    min_channels: int

    @property
    def inputs(self) -> int:
        return self.outputs + 2


def _both(matrix: list[list[float]]) -> Tensor:
    """The transform of rows and columns together: the Kronecker product with itself."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one)


# Section 4.1 of the paper. The transforms of a tile of 256 channels are 8 KB each.
_TWO = Algorithm(
    outputs=2,
    input=_both([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=_both([[1.0, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    output=_both([[1.0, 1, 1, 0], [0, 1, -1, -1]]),
    tiles=380,
    min_tiles=900,
    min_channels=128,
)
# Section 4.3; 36 KB.
_FOUR = Algorithm(
    outputs=4,
    input=_both(
        [
            [4.0, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    kernel=_both(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1.0],
        ]
    ),
    output=_both(
        [
            [1.0, 1, 1, 1, 1, 0],
            [0, 1, -1, 2, -2, 0],
            [0, 1, 1, 4, 4, 0],
            [0, 1, -1, 8, -8, 1],
        ]
    ),
    tiles=190,
    min_tiles=64,
    min_channels=64,
)


def algorithm_for(dtype: torch.dtype) -> Algorithm:
    """The algorithm whose rounding errors suit ``dtype``."""
    return _TWO if torch.finfo(dtype).bits == 16 else _FOUR


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`winograd_conv2d` applies and is faster than ``conv2d``.

    The transforms take time proportional to the channels, the products to the pairs of channels;
    a feature map that does not fill its tiles is computed beyond its edges.
    """
    if x.dim() != 4 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    dtype = _compute_dtype(x)
    suits = dtype is torch.float32 or (dtype is torch.bfloat16 and _has_fast_bfloat16())
    if not (x.is_cpu and suits):
        return False
    algorithm = algorithm_for(dtype)
    m = algorithm.outputs
    (channels_out, channels_in), (rows, columns) = weight.shape[:2], _tiles_of(x, m)
    channels = channels_in * channels_out / (channels_in + channels_out)
    return (
        weight.dtype in (dtype, torch.float32)
        and channels >= algorithm.min_channels
        and x.shape[0] * rows * columns >= algorithm.min_tiles
        and m * m * rows * columns <= 1.25 * x.shape[2] * x.shape[3]
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a convolution of ``x``, given autocast."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@functools.cache
def _has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in vectors; with AMX there is nothing to save."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return [getattr(torch.cpu, name, lambda: False)() for name in names] == [True, False]


def winograd_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm | None = None
) -> Tensor:
    """``conv2d(x, weight, bias, padding=1)``, up to rounding; under autocast in its dtype.

    Args:
        x: (N, C, H, W), on a CPU.
        weight: (K, C, 3, 3), of the same dtype or float32; rounded after its transform.
        bias: (K,).
        algorithm: None: the one that suits the dtype.

    Returns:
        (N, K, H, W), channels-last, differentiable once. A value that is not finite makes its
        whole tile NaN.
    """
    x = x.to(_compute_dtype(x))
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _Winograd.apply(x, weight, bias, algorithm or algorithm_for(x.dtype))
    return y


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.algorithm = algorithm
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _convolve(algorithm, x, _transform(algorithm, weight, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        algorithm: Algorithm = ctx.algorithm
        grad_x = grad_weight = grad_bias = None
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:  # the convolution with the flipped kernel
                flipped = weight.transpose(0, 1).flip(2, 3)
                grad_x = _convolve(algorithm, grad, _transform(algorithm, flipped, x.dtype), None)
            if ctx.needs_input_grad[1]:
                grad_weight = _weight_grad(algorithm, x, grad).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                grad_bias = grad.sum((0, 2, 3), dtype=ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None


def _transform(algorithm: Algorithm, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Transforms a kernel (K, C, 3, 3) to (n * n, C, K) of ``dtype``."""
    channels_out, channels_in = weight.shape[:2]
    exact = _at_least_float32(weight.dtype)
    kernel = weight.permute(2, 3, 1, 0).reshape(9, -1).to(exact)
    transformed = (algorithm.kernel.to(exact) @ kernel).to(dtype)
    return transformed.view(-1, channels_in, channels_out)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _convolve(algorithm: Algorithm, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves (N, C, H, W) with a transformed kernel (n * n, C, K): (N, K, H, W)."""
    m = algorithm.outputs
    (images, _, height, width), channels_out = x.shape, kernel.shape[2]
    rows, columns = _tiles_of(x, m)
    y = torch.empty(
        (images, channels_out, m * rows, m * columns),
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    outputs, back = _output_tiles(y, m), algorithm.output.to(x.dtype)
    for (images_i, rows_i), transformed in _transformed_tiles(algorithm, x):
        product = torch.bmm(transformed, kernel)
        if bias is not None:  # transformed back, this element becomes a constant
            product[algorithm.inputs + 1] += bias
        to = outputs[:, :, images_i, rows_i]
        to.copy_(torch.mm(back, product.view(len(kernel), -1)).view(to.shape))
    if y.shape[2:] == (height, width):
        return y  # no view: the next layer may work in place
    return y[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_grad(algorithm: Algorithm, x: Tensor, grad: Tensor) -> Tensor:
    """The gradient (K, C, 3, 3) of the kernel, given that of the outputs (N, K, H, W)."""
    channels_in, channels_out = x.shape[1], grad.shape[1]
    outputs, back = _output_tiles(grad, algorithm.outputs), algorithm.output.to(x.dtype).T
    numbers, exact = len(back), _at_least_float32(x.dtype)
    total = x.new_zeros(numbers, channels_in, channels_out, dtype=exact)
    for (images_i, rows_i), transformed in _transformed_tiles(algorithm, x):
        upstream = outputs[:, :, images_i, rows_i].reshape(back.shape[1], -1)
        product = torch.mm(back, upstream).view(numbers, -1, channels_out)
        if exact is x.dtype:
            total.baddbmm_(transformed.transpose(1, 2), product)
        else:
            total += torch.bmm(transformed.transpose(1, 2), product)
    kernel = algorithm.kernel.to(exact).T @ total.view(numbers, -1)
    return kernel.view(3, 3, channels_in, channels_out).permute(3, 2, 0, 1)


def _transformed_tiles(
    algorithm: Algorithm, x: Tensor
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Transforms the tiles of (N, C, H, W), some at a time.

    Yields:
        the slices of images and rows of tiles; and (n * n, tiles, C).
    """
    inputs, transform = _input_tiles(x, algorithm), algorithm.input.to(x.dtype)
    numbers = len(transform)
    for images, rows in _chunks(inputs, algorithm.tiles):
        tiles = inputs[:, :, images, rows].reshape(numbers, -1)
        yield (images, rows), torch.mm(transform, tiles).view(numbers, -1, x.shape[1])


def _tiles_of(x: Tensor, m: int) -> tuple[int, int]:
    """Number of rows and columns of m x m tiles that cover (N, C, H, W)."""
    return -(-x.shape[2] // m), -(-x.shape[3] // m)


def _input_tiles(x: Tensor, algorithm: Algorithm) -> Tensor:
    """The overlapping tiles of (N, C, H, W): a view (n, n, N, rows, columns, C) of padded x."""
    images, channels, height, width = x.shape
    m, n = algorithm.outputs, algorithm.inputs
    rows, columns = _tiles_of(x, m)
    beyond = (0, 0, 1, m * columns + 1 - width, 1, m * rows + 1 - height)
    padded = F.pad(x.permute(0, 2, 3, 1), beyond)
    per_image, per_row, per_column, per_channel = padded.stride()
    return padded.as_strided(
        (n, n, images, rows, columns, channels),
        (per_row, per_column, per_image, m * per_row, m * per_column, per_channel),
    )


def _output_tiles(y: Tensor, m: int) -> Tensor:
    """The tiles of (N, K, H, W), zero-padded at the edges: (m, m, N, rows, columns, K).

    A view of ``y`` if it fills its tiles and is channels-last.
    """
    images, channels, height, width = y.shape
    rows, columns = _tiles_of(y, m)
    y = y.permute(0, 2, 3, 1)
    if (height, width) != (m * rows, m * columns):
        y = F.pad(y, (0, 0, 0, m * columns - width, 0, m * rows - height))
    return y.reshape(images, rows, m, columns, m, channels).permute(2, 4, 0, 1, 3, 5)


def _chunks(tiles: Tensor, max_tiles: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and rows of tiles (n, n, N, rows, columns, C) to process at a time."""
    images, rows, columns = tiles.shape[2:5]
    at_once = max(1, min(images, max_tiles // (rows * columns)))
    step = max(1, max_tiles // (at_once * columns))
    for first in range(0, images, at_once):
        for start in range(0, rows, step):
            yield slice(first, first + at_once), slice(start, start + step)
