"""3x3 convolutions with a fraction of the multiplications, for CPUs: Winograd's algorithms.

A tile of inputs and the kernel are transformed to as many numbers each; their products, summed over
the channels, transform back to a tile of outputs. F(4x4, 3x3) makes 4x4 outputs of 6x6 inputs by 36
multiplications where the sum over the kernel has 144; F(2x2, 3x3) by 16 instead of 36. Both
gradients save as much. F(4x4) has some ten times the rounding errors of the plain sum, in float32
at most about 5e-5 of the spread of the outputs: too many for bfloat16. There F(2x2), whose factors
are 0, 1 and 1/2, doubles them. (Lavin and Gray, arXiv 1509.09308; on a GPU, cuDNN chooses such
algorithms itself.)
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
    """F(m x m, 3x3), which makes m x m outputs of n x n inputs; n = m + 2.

    Args:
        outputs: m.
        input, kernel, output: the transforms of rows and columns at once: (n * n, n * n),
            (n * n, 9) and (m * m, n * n), float64.
        tiles: how many are worked on at a time: enough for a matrix product to be efficient, while
            their transforms stay in the cache that the cores share.
        least_tiles, least_channels: where it was measured to be faster than the plain sum, in its
            dtype; the latter is half of the harmonic mean of C and K.
    """

    outputs: int
    input: Tensor
    kernel: Tensor
    output: Tensor
    tiles: int
    least_tiles: int
    least_channels: int

    @property
    def inputs(self) -> int:
        return self.outputs + 2


def _both(matrix: list[list[float]]) -> Tensor:
    """The transform of rows and columns at once: the Kronecker product with itself."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one)


# The paper's section 4.1. The transforms of a tile of 256 channels are 8 KB each.
_TWO = Algorithm(
    outputs=2,
    input=_both([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=_both([[1.0, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    output=_both([[1.0, 1, 1, 0], [0, 1, -1, -1]]),
    tiles=380,
    least_tiles=900,
    least_channels=128,
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
    least_tiles=64,
    least_channels=64,
)


def algorithm_for(dtype: torch.dtype) -> Algorithm:
    """The one whose rounding errors fit the precision of ``dtype``."""
    return _TWO if torch.finfo(dtype).bits == 16 else _FOUR


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`winograd_conv2d` is faster than ``conv2d`` on what it can do at all.

    The transforms cost as many operations as there are channels, the products as many as there
    are pairs of them; and a map that does not fill its tiles is computed beyond its edges.
    """
    if x.dim() != 4 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    dtype = _computed_in(x)
    if not x.is_cpu or not (dtype is torch.float32 or (dtype is torch.bfloat16 and _multiplies())):
        return False
    algorithm = algorithm_for(dtype)
    m = algorithm.outputs
    (channels_out, channels_in), (rows, columns) = weight.shape[:2], _tiles_of(x, m)
    channels = channels_in * channels_out / (channels_in + channels_out)
    return (
        weight.dtype in (dtype, torch.float32)
        and channels >= algorithm.least_channels
        and x.shape[0] * rows * columns >= algorithm.least_tiles
        and m * m * rows * columns <= 1.25 * x.shape[2] * x.shape[3]
    )


def _computed_in(x: Tensor) -> torch.dtype:
    """What autocast would convert a convolution of ``x`` to."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@functools.cache
def _multiplies() -> bool:
    """Whether this CPU multiplies bfloat16, and at a vector's rate: AMX leaves nothing to save."""
    there = [
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return there == [True, False]


def winograd_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, algorithm: Algorithm | None = None
) -> Tensor:
    """``conv2d(x, weight, bias, padding=1)``, up to rounding; under autocast in its dtype.

    Args:
        x: (N, C, H, W), on a CPU.
        weight: (K, C, 3, 3), of that dtype or float32: it is rounded when it is transformed.
        bias: (K,).
        algorithm: None: what fits the dtype.

    Returns:
        (N, K, H, W), channels-last. It can be differentiated once. A value that is not finite
        spreads over its tile as NaN.
    """
    x = x.to(_computed_in(x))
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
            if ctx.needs_input_grad[0]:  # the convolution with the kernel turned round
                turned = weight.transpose(0, 1).flip(2, 3)
                grad_x = _convolve(algorithm, grad, _transform(algorithm, turned, x.dtype), None)
            if ctx.needs_input_grad[1]:
                grad_weight = _weight_grad(algorithm, x, grad).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                grad_bias = grad.sum((0, 2, 3), dtype=ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None


def _transform(algorithm: Algorithm, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, C, 3, 3) to (n * n, C, K) of ``dtype``."""
    channels_out, channels_in = weight.shape[:2]
    exact = _at_least_float32(weight.dtype)
    kernel = weight.permute(2, 3, 1, 0).reshape(9, -1).to(exact)
    transformed = (algorithm.kernel.to(exact) @ kernel).to(dtype)
    return transformed.view(-1, channels_in, channels_out)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _convolve(algorithm: Algorithm, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) by the transformed kernel (n * n, C, K) to (N, K, H, W), channels-last."""
    m = algorithm.outputs
    (images, _, height, width), (numbers, _, channels_out) = x.shape, kernel.shape
    rows, columns = _tiles_of(x, m)
    y = torch.empty(
        (images, channels_out, m * rows, m * columns),
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    outputs, back = _output_tiles(y, m), algorithm.output.to(x.dtype)
    products, results = _Buffer(x), _Buffer(x)
    for (pictures, here), spectrum in _spectra(algorithm, x):
        to = outputs[:, :, pictures, here]
        product = products.shaped(numbers, spectrum.shape[1], channels_out)
        torch.bmm(spectrum, kernel, out=product)
        if bias is not None:  # transformed back, the second of its row and column is a constant
            product[algorithm.inputs + 1] += bias
        result = results.shaped(*to.shape)
        torch.mm(back, product.view(numbers, -1), out=result.view(m * m, -1))
        to.copy_(result)
    if y.shape[2:] == (height, width):
        return y  # no view of it: what follows may work in place
    return y[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_grad(algorithm: Algorithm, x: Tensor, grad: Tensor) -> Tensor:
    """The derivative (K, C, 3, 3) by the kernel, given that by the outputs (N, K, H, W)."""
    channels_in, channels_out = x.shape[1], grad.shape[1]
    outputs, back = _output_tiles(grad, algorithm.outputs), algorithm.output.to(x.dtype).T
    numbers, exact = len(back), _at_least_float32(x.dtype)
    total = x.new_zeros(numbers, channels_in, channels_out, dtype=exact)
    upstream, products = _Buffer(x), _Buffer(x)
    for (pictures, here), spectrum in _spectra(algorithm, x):
        part = outputs[:, :, pictures, here]
        whole = upstream.shaped(*part.shape).copy_(part)
        product = products.shaped(numbers, spectrum.shape[1], channels_out)
        torch.mm(back, whole.view(part.shape[:2].numel(), -1), out=product.view(numbers, -1))
        if exact is x.dtype:
            total.baddbmm_(spectrum.transpose(1, 2), product)
        else:
            total += torch.bmm(spectrum.transpose(1, 2), product)
    kernel = algorithm.kernel.to(exact).T @ total.view(numbers, -1)
    return kernel.view(3, 3, channels_in, channels_out).permute(3, 2, 0, 1)


def _spectra(algorithm: Algorithm, x: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """The tiles of (N, C, H, W) transformed, some at a time.

    Yields:
        which pictures and rows of tiles they are; and (n * n, tiles, C), until the next is asked
        for.
    """
    inputs, into = _input_tiles(x, algorithm), algorithm.input.to(x.dtype)
    numbers = len(into)
    gathered, transformed = _Buffer(x), _Buffer(x)
    for pictures, rows in _chunks(inputs, algorithm.tiles):
        part = inputs[:, :, pictures, rows]
        whole = gathered.shaped(*part.shape).copy_(part)
        spectrum = transformed.shaped(numbers, part.shape[2:5].numel(), part.shape[5])
        torch.mm(into, whole.view(numbers, -1), out=spectrum.view(numbers, -1))
        yield (pictures, rows), spectrum


def _tiles_of(x: Tensor, m: int) -> tuple[int, int]:
    """Rows and columns of m x m tiles that cover (N, C, H, W)."""
    return -(-x.shape[2] // m), -(-x.shape[3] // m)


def _input_tiles(x: Tensor, algorithm: Algorithm) -> Tensor:
    """Of (N, C, H, W) the overlapping tiles (n, n, N, rows, columns, C): a view of padded x."""
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
    """Of (N, K, H, W) the tiles (m, m, N, rows, columns, K), filled with zeros at the edges.

    A view of ``y``, if that fills its tiles and is channels-last.
    """
    images, channels, height, width = y.shape
    rows, columns = _tiles_of(y, m)
    y = y.permute(0, 2, 3, 1)
    if (height, width) != (m * rows, m * columns):
        y = F.pad(y, (0, 0, 0, m * columns - width, 0, m * rows - height))
    return y.reshape(images, rows, m, columns, m, channels).permute(2, 4, 0, 1, 3, 5)


def _chunks(tiles: Tensor, at_most: int) -> Iterator[tuple[slice, slice]]:
    """Pictures and rows of tiles (n, n, N, rows, columns, C) to work on at a time."""
    images, rows, columns = tiles.shape[2:5]
    at_once = max(1, min(images, at_most // (rows * columns)))
    step = max(1, at_most // (at_once * columns))
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
